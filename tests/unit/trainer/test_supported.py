"""The trainer's own check: by the API's table, on what a spec was resolved to."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.failures import ExitCode
from finetune_api.job import FineTuneJobSpec
from finetune_api.rules import RULES
from finetune_api.trainer_config import JobIdentity, Paths, ResolvedModel, ResolvedSource, TrainerConfig, resolve_config
from finetune_api.validation import validate_spec
from finetune_trainer import unsloth_start
from finetune_trainer.errors import TrainerError
from finetune_trainer.supported import check_supported
from manifests import CASES, Case, finetunejob
from pydantic import ValidationError

ELSEWHERE = ("output.push", "tracking.", "secretRef")
"""Fields that do not reach the trainer, where nothing could be wrong with them."""
RESOLVED = ("set one of full, freeze and lora, such as", "these are numbers of stages")
"""Beginnings of refusals of what a plan makes good, or leaves out, so that they are none of its."""


def resolve(spec: FineTuneJobSpec, **fields: Any) -> TrainerConfig:
    """As the operator does, with directories of nowhere."""
    sources = [ResolvedSource(uri=source.uri, path="/data", format=source.format) for source in spec.dataset.sources]
    return resolve_config(
        spec,
        job=JobIdentity(name="job"),
        model=ResolvedModel(uri=spec.model.source, trust_remote_code=spec.model.trust_remote_code),
        sources=sources,
        paths=Paths(),
        created="2026-01-01T00:00:00Z",
        **fields,
    )


def parsed(case: Case) -> FineTuneJobSpec | None:
    """None where a type or a bound is wrong already."""
    try:
        return FineTuneJobSpec.model_validate(case.manifest()["spec"])
    except ValidationError:
        return None


def messages(spec: FineTuneJobSpec) -> set[str]:
    """Of the table's rules that ``spec`` breaks and the trainer can know of."""
    known = {
        rule.message
        for rule in RULES
        if not rule.cluster_only and not rule.field.startswith(ELSEWHERE) and not rule.message.startswith(RESOLVED)
    }
    return {finding.message for finding in validate_spec(spec, local=True)} & known


WELL_TYPED = {case.sentence: spec for case in CASES if (spec := parsed(case)) is not None}


@pytest.mark.parametrize("sentence", WELL_TYPED)
def test_the_trainer_refuses_what_the_api_refuses_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, sentence: str
) -> None:
    monkeypatch.setattr(unsloth_start, "missing", lambda _config: iter(()))
    spec = WELL_TYPED[sentence]
    config, expected = resolve(spec), messages(spec)
    if config.template.ref is not None and config.chat_template is None:
        expected = {*expected, f"{config.template.ref} was not handed over"}
    if not expected:
        check_supported(config)
        return
    with pytest.raises(TrainerError) as raised:
        check_supported(config)
    assert [message for message in expected if message not in str(raised.value)] == []
    assert raised.value.exit_code is ExitCode.CONFIG_INVALID


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ({"method": {}}, "spec.method: set one of"),
        ({"sources": []}, "spec.dataset.sources: names no data"),
        ({"stage": "orpo"}, "spec.preference: is for stages"),
        (
            {"distributed": {"strategy": "zero2", "deepspeed": {"gradient_clipping": 1}}},
            "gradient_clipping is set by spec.hyperparameters.maxGradNorm",
        ),
    ],
    ids=str,
)
def test_what_a_plan_must_have_resolved_is_missed(edits: dict[str, Any], told: str) -> None:
    spec = FineTuneJobSpec.model_validate(finetunejob()["spec"])
    config = TrainerConfig.model_validate(resolve(spec).to_dict() | edits)
    with pytest.raises(TrainerError) as raised:
        check_supported(config)
    assert told in str(raised.value)
    assert raised.value.exit_code is ExitCode.CONFIG_INVALID
