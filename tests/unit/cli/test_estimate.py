"""``finetune estimate``: the table, the verdict a size, and where config.json comes from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from finetune_cli.main import app
from typer.testing import CliRunner

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: night}
spec:
  model: {source: "SOURCE"}
  dataset: {sources: [{uri: "configmap://rows/rows.jsonl"}], maxLength: 2048}
  method: {METHOD: {}}
  hyperparameters: {microBatchSize: auto}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "hub/models/org/model"
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def run(tmp_path: Path, *options: str, source: str = "hf://org/model", method: str = "lora") -> Any:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("SOURCE", source).replace("METHOD", method))
    return CliRunner().invoke(app, ["estimate", "-f", str(file), *options])


def test_parts_total_and_gpus(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, "--model-config", str(model), "--gpu-memory", "80Gi", "--gpu-memory", "24Gi")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "night: lora, bf16, sequences of 2048; 5,046,272 of 596,049,920 parameters trained: 99.2 % fewer"
    )
    assert [line.split()[0] for line in lines[2:9]] == [
        "weights", "gradients", "optimizer", "activations", "logits", "buffers", "total"]  # fmt: skip
    assert lines[9].startswith("80Gi: fits on 1 GPU, micro-batch")
    assert lines[10].startswith("24Gi: fits on 1 GPU, micro-batch")


def test_json_is_in_bytes(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, "--model-config", str(model / "config.json"), "--gpu-memory", "80Gi", "--json")
    told = json.loads(result.stdout)
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
    assert sum(told["estimate"].get(part, 0) for part in parts) == told["estimate"]["total"]
    (gpu,) = told["gpus"]
    assert (gpu["memory"], gpu["fits"], gpu["count"], gpu["strategy"]) == ("80Gi", True, 1, "ddp")
    assert gpu["total"] <= 0.9 * 80 * 2**30


@pytest.mark.parametrize(("tower", "told"), [("vision_config", True), ("audio_config", True), ("rope_scaling", False)])
def test_a_tower_that_is_not_counted_is_named(tmp_path: Path, model: Path, tower: str, told: bool) -> None:
    (model / "config.json").write_text(json.dumps({**CONFIG, tower: {"depth": 32}}))
    printed = run(tmp_path, "--model-config", str(model)).stdout
    assert (f"Not counted: the part of the model in {tower}" in printed) is told
    found = json.loads(run(tmp_path, "--model-config", str(model), "--json").stdout)
    assert found["notCounted"] == ([tower] if told else [])


def test_what_does_not_fit_says_what_to_change(tmp_path: Path, model: Path) -> None:
    result = run(tmp_path, "--model-config", str(model), "--gpu-memory", "4Gi", method="full")
    assert result.exit_code == 0
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("4Gi")]
    assert "does not fit. To fit: set acceleration.gradientCheckpointing" in line
    assert "Then on" in line


def test_a_local_model_needs_no_option(tmp_path: Path, model: Path) -> None:
    assert run(tmp_path, source=f"file://{model}").exit_code == 0


def test_config_json_comes_from_the_hub_with_the_token(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model.is_dir()
    with FakeHub(tmp_path / "hub", gated=["org/model"], token="hf_secret") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        denied = run(tmp_path)
        assert denied.exit_code == 1
        assert "export HF_TOKEN" in denied.stderr
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        assert run(tmp_path).exit_code == 0
        missing = run(tmp_path, source="hf://org/other")
    assert missing.exit_code == 1
    assert "not found" in missing.stderr


def test_a_hub_that_does_not_answer_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeHub(tmp_path / "hub") as hub:
        gone = hub.url
    monkeypatch.setenv("HF_ENDPOINT", gone)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "cannot be reached" in result.stderr
    assert "--model-config" in result.stderr


def test_without_a_hub_it_says_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    result = run(tmp_path)
    assert result.exit_code == 1
    assert "export HF_ENDPOINT" in result.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"model_type": "llama"}', "lacks hidden_size"),
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
    ],
)
def test_a_config_that_cannot_be_used_is_named(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "config.json").write_text(content)
    result = run(tmp_path, "--model-config", str(tmp_path))
    assert result.exit_code == 1
    assert str(tmp_path / "config.json") in result.stderr
    assert told in result.stderr


@pytest.mark.parametrize("size", ["80 GB", "0Gi", "big", "80Gb"])
def test_a_size_that_is_none_is_wrong_usage(tmp_path: Path, model: Path, size: str) -> None:
    result = run(tmp_path, "--model-config", str(model), "--gpu-memory", size)
    assert result.exit_code == 2


def test_a_claim_needs_the_option(tmp_path: Path) -> None:
    result = run(tmp_path, source="pvc://claim/model")
    assert result.exit_code == 1
    assert "--model-config" in result.stderr
