"""The contract between plan, trainer and operator."""

from __future__ import annotations

import pytest
from finetune_api.failures import EXIT_REASONS, REASONS, ExitCode, FailureReason, reason_of_exit_code
from finetune_api.job import FineTuneJob
from finetune_api.reports import TERMINATION_MESSAGE_BYTES, TerminationReport
from finetune_api.status import DatasetStatus, DroppedRows, Sample
from finetune_api.trainer_config import JobIdentity, Paths, ResolvedModel, ResolvedSource, TrainerConfig, resolve_config
from finetune_api.uris import parse_uri
from hypothesis import given
from hypothesis import strategies as st
from manifests import finetunejob


def test_every_reason_has_advice_and_every_exit_code_a_reason() -> None:
    assert set(REASONS) == set(FailureReason)
    assert set(EXIT_REASONS) == set(ExitCode) - {ExitCode.OK}
    assert all(facts.advice.endswith(".") for facts in REASONS.values())


def test_exit_codes_outside_the_contract_are_a_crash() -> None:
    assert reason_of_exit_code(134) is FailureReason.TRAINER_CRASH
    assert reason_of_exit_code(ExitCode.VOLUME_FULL) is FailureReason.VOLUME_FULL


def test_no_exit_code_collides_with_shells_or_signals() -> None:
    taken = {2, *range(64, 79), *range(126, 256)}
    assert not taken & {int(code) for code in ExitCode}


@given(
    message=st.text(max_size=6000),
    log=st.text(max_size=20000),
    prompts=st.lists(st.text(max_size=3000), max_size=16),
    dropped=st.lists(st.text(max_size=256), max_size=32),
)
def test_a_report_always_fits_the_kubelets_limit_and_keeps_its_reason(
    message: str, log: str, prompts: list[str], dropped: list[str]
) -> None:
    report = TerminationReport(
        step="train",
        exit_code=ExitCode.DATASET_INVALID,
        message=message,
        log_tail=log,
        samples=[Sample(prompt=prompt, before=prompt, after=prompt) for prompt in prompts],
        dataset=DatasetStatus(samples=1, dropped=[DroppedRows(reason=text, count=1) for text in dropped]),
    )
    encoded = report.encode()
    assert len(encoded) <= TERMINATION_MESSAGE_BYTES
    decoded = TerminationReport.decode(encoded)
    assert decoded is not None
    assert decoded.exit_code == ExitCode.DATASET_INVALID
    if message:
        assert decoded.message
        assert message.startswith(decoded.message.rstrip("…")) or decoded.message[:50] == message[:50]


@pytest.mark.parametrize("text", [None, "", "Traceback (most recent call last):", "{}", '{"version": 2}'])
def test_what_is_no_report_is_none(text: str | None) -> None:
    assert TerminationReport.decode(text) is None


def test_a_config_survives_its_file_and_its_digest_tells_it_apart() -> None:
    spec = FineTuneJob.from_dict(finetunejob(dataset__maxLength=64)).spec
    config = resolve_config(
        spec,
        job=JobIdentity(name="job"),
        model=ResolvedModel(uri=spec.model.source),
        sources=[ResolvedSource(uri="configmap://rows/rows.jsonl", path="/finetune/sources/0/rows.jsonl")],
        paths=Paths(),
    )
    assert TrainerConfig.model_validate_json(config.to_json()) == config
    assert config.max_length == 64
    other = config.model_copy(update={"max_length": 65})
    assert other.digest() != config.digest()


@pytest.mark.parametrize(
    ("text", "scheme", "name", "path"),
    [
        ("hf://org/model", "hf", "org/model", ""),
        ("hf://org/data/dir/train.jsonl", "hf", "org/data", "dir/train.jsonl"),
        ("pvc://claim/a/b", "pvc", "claim", "a/b"),
        ("configmap://rows/rows.jsonl", "configmap", "rows", "rows.jsonl"),
        ("file:///a/b", "file", "", "/a/b"),
    ],
)
def test_uris(text: str, scheme: str, name: str, path: str) -> None:
    uri = parse_uri(text)
    assert (uri.scheme, uri.name, uri.path) == (scheme, name, path)


@pytest.mark.parametrize("text", ["", "model", "ftp://host/x", "hf://name", "configmap://rows", "pvc:///x"])
def test_malformed_uris(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_uri(text)
