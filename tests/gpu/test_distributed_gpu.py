"""Several GPUs, and one whose optimizer or weights lie in host memory: through the launcher, as a pod runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.reports import TERMINATION_PATH_ENV, TerminationReport
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.batches import Collator
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.evaluate import evaluating, token_losses
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from peft import PeftModel
from tiny_model import make_tiny_model
from trainings import configure, output_of
from transformers import AutoModelForCausalLM

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
STEPS = {"maxSteps": 24, "globalBatchSize": 4, "microBatchSize": 1, "learningRate": 0.01}
METHODS: dict[str, dict[str, Any]] = {"lora": {"lora": {"rank": 4}}, "full": {"full": {}}}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def launched(config: TrainerConfig, directory: Path) -> TerminationReport:
    """The report of ``finetune-train train``, which must end well."""
    done, report = launch(config, directory)
    assert done.returncode == ExitCode.OK, done.stdout + done.stderr
    return report


def launch(config: TrainerConfig, directory: Path) -> tuple[subprocess.CompletedProcess[str], TerminationReport]:
    """How ``finetune-train train`` ended, and its report."""
    prepare(config)
    (directory / "config.json").write_text(config.to_json())
    word = directory / "termination-log"
    done = subprocess.run(
        [sys.executable, "-m", "finetune_trainer.cli", "train", "--config", str(directory / "config.json")],
        env={**os.environ, TERMINATION_PATH_ENV: str(word)},
        capture_output=True,
        text=True,
        check=False,
    )
    report = TerminationReport.decode(word.read_bytes())
    assert report is not None
    return done, report


def assert_learnt_and_loads(config: TrainerConfig, report: TerminationReport, base: Path) -> None:
    progress = report.progress
    assert progress is not None
    assert progress.eval_loss is not None
    assert progress.eval_loss < (progress.initial_eval_loss or 0) - 0.1
    if config.method.lora is not None:
        plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        model: Any = PeftModel.from_pretrained(plain, output_of(config, "adapter"))
    else:
        model = AutoModelForCausalLM.from_pretrained(output_of(config, "model")).float()
    held = load_prepared(config).validation
    with evaluating(model, "fp32"):
        batch = Collator(0, packed=False)([held[i] for i in range(len(held))])
        assert float(token_losses(model, batch).mean()) == pytest.approx(progress.eval_loss, rel=5e-2)


@two_gpus
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "wishes",
    [{}, {"gradientCheckpointing": True}, {"gradientCheckpointing": True, "keepAttention": True}],
    ids=["kept", "recomputed", "attention kept"],
)
def test_two_gpus_learn(tmp_path: Path, base: Path, method: str, strategy: str, wishes: Any) -> None:
    config = configure(
        tmp_path,
        base,
        method=METHODS[method],
        precision="bf16",
        hyperparameters=STEPS,
        acceleration=wishes,
        evaluation={"prompts": ["Colours of flag 3?"], "maxNewTokens": 4, "everySteps": 8},
        distributed={"gpusPerNode": 2, "strategy": strategy},
    )
    report = launched(config, tmp_path)
    assert_learnt_and_loads(config, report, base)
    assert report.acceleration is not None
    assert (report.acceleration.strategy, report.acceleration.devices) == (strategy, 2)
    assert len(report.samples) == 1


@two_gpus
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
@pytest.mark.parametrize("method", METHODS)
def test_sharded_weights_go_on_from_a_checkpoint(tmp_path: Path, base: Path, method: str, strategy: str) -> None:
    """The result is removed, and with it all that says that training is over: the last checkpoint is taken up."""
    config = configure(
        tmp_path,
        base,
        method=METHODS[method],
        precision="bf16",
        hyperparameters=STEPS,
        checkpoint={"everySteps": 10, "keep": 9},
        distributed={"gpusPerNode": 2, "strategy": strategy},
    )
    first = launched(config, tmp_path)
    output_of(config, "result.json").unlink()
    for step in (20, 24):  # as if it had been killed after step 10
        (Checkpoints(output_of(config), keep=9).path_of(step) / "manifest.json").unlink()
    second = launched(config, tmp_path)
    assert_learnt_and_loads(config, second, base)
    assert first.progress is not None
    assert second.progress is not None
    assert second.progress.eval_loss == pytest.approx(first.progress.eval_loss, abs=2e-2)
    output_of(config, "result.json").unlink()  # and after the last step
    third = launched(config, tmp_path)
    assert third.progress is not None
    assert third.progress.eval_loss == pytest.approx(second.progress.eval_loss, abs=1e-3)


@two_gpus
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_two_gpus_train_adapters_on_4_bits(tmp_path: Path, base: Path, strategy: str) -> None:
    config = configure(
        tmp_path,
        base,
        quantization={"bits": 4},
        precision="bf16",
        hyperparameters=STEPS,
        distributed={"gpusPerNode": 2, "strategy": strategy},
    )
    report = launched(config, tmp_path)
    assert report.progress is not None
    assert report.progress.eval_loss is not None
    assert report.progress.eval_loss < (report.progress.initial_eval_loss or 0) - 0.1
    settings = json.loads((output_of(config, "adapter") / "adapter_config.json").read_text())
    assert settings["r"] == 4
    log = report.model_dump_json()
    assert strategy in log


@two_gpus
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_an_adapter_on_sharded_weights_is_merged(tmp_path: Path, base: Path, strategy: str) -> None:
    config = configure(
        tmp_path,
        base,
        precision="bf16",
        merge={"dtype": "bf16"},
        hyperparameters=STEPS,
        distributed={"gpusPerNode": 2, "strategy": strategy},
    )
    report = launched(config, tmp_path)
    assert report.output is not None
    assert report.output.merged == "merged"
    assert AutoModelForCausalLM.from_pretrained(output_of(config, "merged")).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("strategy", "offload"),
    [
        ("zero1", "optimizer"),
        ("zero2", "optimizer"),
        ("zero3", "none"),
        ("zero3", "optimizer"),
        ("zero3", "parameters"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_one_gpu_learns_with_the_rest_in_host_memory(
    tmp_path: Path, base: Path, method: str, strategy: str, offload: str
) -> None:
    config = configure(
        tmp_path,
        base,
        method=METHODS[method],
        precision="bf16",
        hyperparameters=STEPS,
        distributed={"gpusPerNode": 1, "strategy": strategy, "offload": offload},
    )
    report = launched(config, tmp_path)
    assert_learnt_and_loads(config, report, base)
    assert report.acceleration is not None
    assert (report.acceleration.strategy, report.acceleration.devices) == (strategy, 1)
    assert report.acceleration.offload == (None if offload == "none" else offload)


def test_more_gpus_than_there_are_is_a_refusal(tmp_path: Path, base: Path) -> None:
    count = torch.cuda.device_count() + 1
    config = configure(
        tmp_path,
        base,
        hyperparameters={"globalBatchSize": count, "microBatchSize": 1},
        distributed={"gpusPerNode": count},
    )
    done, report = launch(config, tmp_path)
    assert done.returncode == ExitCode.ACCELERATION_UNAVAILABLE
    assert f"{count} GPUs" in (report.message or "")
