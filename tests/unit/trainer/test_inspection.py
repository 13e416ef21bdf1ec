"""What finetune inspect is told of a job's data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedModel, TrainerConfig
from finetune_trainer import inspection
from finetune_trainer.errors import TrainerError
from finetune_trainer.inspection import inspect, main
from finetune_trainer.prepare import prepare
from huggingface_hub import constants
from stage_data import stage_config
from trainer_configs import ROWS, local_model, local_source, make_config, write_rows

BAD = {"instruction": "Where is the answer?"}


@pytest.fixture
def job(tiny: Path, tmp_path: Path) -> TrainerConfig:
    rows = [*ROWS[:20], BAD, *ROWS[20:], {"instruction": "Long?", "output": "very " * 400}]
    file = write_rows(tmp_path / "data" / "rows.jsonl", rows)
    return make_config(tmp_path, model=local_model(tiny), sources=[local_source(file)], max_length=256, on_error="skip")


def test_it_says_what_prepare_finds(job: TrainerConfig) -> None:
    report = inspect(job, count=4)
    assert not Path(job.paths.output).exists()
    prepared = prepare(job).dataset
    assert prepared is not None
    assert report["dataset"] == prepared.model_copy(update={"digest": None, "reused": False}).to_dict()
    assert {row["reason"] for row in report["dataset"]["dropped"]} == {
        "missing field", "first exchange longer than maxLength"
    }  # fmt: skip
    lengths = report["lengths"]
    assert sum(lengths["counts"]) == prepared.samples == len(ROWS)
    assert len(lengths["edges"]) == len(lengths["counts"]) + 1
    assert lengths["least"] <= lengths["median"] <= lengths["p90"] <= lengths["p99"] <= lengths["most"] <= 256
    assert lengths["mean"] == round(prepared.tokens / prepared.samples, 1)
    assert report["packed"]["sequences"] < len(ROWS)
    assert report["packed"]["filled"] == round(prepared.tokens / (256 * report["packed"]["sequences"]), 4)


def test_samples_are_spread_and_their_trained_text_is_the_answer(job: TrainerConfig) -> None:
    samples = inspect(job, count=3)["samples"]
    # The 21st row is bad: behind it samples and rows differ by one.
    assert [sample["where"] for sample in samples] == ["rows.jsonl:1", "rows.jsonl:22", "rows.jsonl:41"]
    for sample, row in zip(samples, (ROWS[0], ROWS[20], ROWS[39]), strict=True):
        said = [piece["text"] for piece in sample["pieces"] if piece["trained"]]
        assert said == [f"{row['output']}<|im_end|>"]
        assert row["instruction"] in sample["pieces"][0]["text"]
        assert 0 < sample["trained"] < sample["tokens"]


@pytest.mark.parametrize("count", [0, 1, 99])
def test_as_many_samples_as_are_asked_for_or_there(job: TrainerConfig, count: int) -> None:
    assert len(inspect(job, count=count)["samples"]) == min(count, len(ROWS))


def test_pairs_have_no_packing(tiny: Path, tmp_path: Path) -> None:
    report = inspect(stage_config(tmp_path, tiny, "dpo"), count=2)
    assert report["packed"] is None
    assert [sample["where"] for sample in report["samples"]] == ["dpo.jsonl:1", "dpo.jsonl:24"]


def test_a_picture(job: TrainerConfig, tmp_path: Path) -> None:
    inspect(job, count=0, picture=tmp_path / "lengths.png")
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_of_a_model_on_the_hub_the_tokenizer_alone_is_fetched(
    job: TrainerConfig, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "hub/models/acme/tiny")
    remote = job.model_copy(update={"model": ResolvedModel(uri="hf://acme/tiny")})
    with FakeHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert inspect(remote, count=0)["dataset"]["samples"] == len(ROWS)
        assert not [request for request in hub.requests if "safetensors" in request]
        hub.fail_with = 503
        assert inspect(remote, count=0)["dataset"]["samples"] == len(ROWS)  # from the cache
    nobody = job.model_copy(update={"model": ResolvedModel(uri="pvc://models/gone", path=str(tmp_path / "gone"))})
    with pytest.raises(TrainerError, match="there is no directory") as failure:
        inspect(nobody, count=0)
    assert failure.value.exit_code is ExitCode.MODEL_NOT_FOUND


def test_the_program_leaves_a_report_or_what_is_wrong(
    job: TrainerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection.surroundings, "set_up", lambda _cache: None)  # this process has its own
    monkeypatch.setattr(inspection.logs, "set_up", lambda: None)

    def run(config: TrainerConfig) -> tuple[Any, dict[str, Any]]:
        (tmp_path / "config.json").write_text(config.to_json())
        with pytest.raises(SystemExit) as ended:
            main(["--config", str(tmp_path / "config.json"), "--report", str(tmp_path / "report.json")])
        return ended.value.code, json.loads((tmp_path / "report.json").read_text())

    code, report = run(job)
    assert (code, len(report["samples"])) == (0, 3)
    code, report = run(job.model_copy(update={"on_error": "fail"}))
    assert code == ExitCode.DATASET_INVALID
    assert "rows.jsonl:21: has no 'output'" in report["error"]
