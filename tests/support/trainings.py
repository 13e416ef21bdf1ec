"""Small trainings for tests: a configuration, its data, and a run of both steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.reports import TerminationReport
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.batches import Collator
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate import evaluating, token_losses
from finetune_trainer.interruption import Interruption
from finetune_trainer.loop import FineTuner
from finetune_trainer.picture import read_history
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from finetune_trainer.progress import FILE, ProgressLog
from finetune_trainer.train import train
from safetensors.torch import load_file

COLOURS = ("red", "green", "blue", "grey", "black", "white", "pink", "brown")


def rows(count: int = 24) -> str:
    """Answers of different lengths, so that batches differ in their tokens."""
    lines = []
    for number in range(count):
        answer = " and ".join(COLOURS[: number % len(COLOURS) + 1])
        lines.append(json.dumps({"instruction": f"Colours of flag {number}?", "output": f"It is {answer}."}))
    return "\n".join(lines)


def configure(tmp_path: Path, base: Path, **edits: Any) -> TrainerConfig:
    """Six steps of LoRA on the model ``base``; ``edits`` are laid over it, but ``method`` replaces."""
    data = tmp_path / "rows.jsonl"
    data.write_text(rows())
    body: dict[str, Any] = {
        "job": {"name": "tune"},
        "model": {"uri": "hf://org/tiny", "path": str(base)},
        "sources": [{"uri": "file:///rows.jsonl", "path": str(data)}],
        "maxLength": 256,
        "method": {"lora": {"rank": 4}},
        "precision": "fp32",
        "validation": {"fraction": 0.2},
        "hyperparameters": {"maxSteps": 6, "globalBatchSize": 4, "microBatchSize": 2, "learningRate": 0.01},
        "checkpoint": {"everySteps": 2, "keep": 2},
        "paths": {"cache": str(tmp_path / "cache"), "output": str(tmp_path / "output")},
    }
    for key, value in edits.items():
        body[key] = {**body[key], **value} if isinstance(body.get(key), dict) and key != "method" else value
    return TrainerConfig.model_validate_json(json.dumps(body))


def at(config: TrainerConfig, output: Path) -> TrainerConfig:
    """The same with another output directory."""
    return config.model_copy(update={"paths": config.paths.model_copy(update={"output": str(output)})})


def run(config: TrainerConfig, interrupted: Interruption | None = None, attempt: int = 1) -> TerminationReport:
    """Both steps."""
    prepare(config)
    return train(config, attempt=attempt, interrupted=interrupted or Interruption(), known={})


def output_of(config: TrainerConfig, *parts: str) -> Path:
    """A path in the output directory."""
    return Path(config.paths.output, *parts)


def held_out(model: Any, config: TrainerConfig) -> float:
    """Mean loss of ``model`` on the tokens of the job's held-out rows, in fp32."""
    sequences = load_prepared(config).validation
    with evaluating(model, "fp32"):
        batch = Collator(0, packed=False)([sequences[i] for i in range(len(sequences))])
        return float(token_losses(model, batch).mean())


def run_interrupted(config: TrainerConfig, after: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train until step ``after`` is reported and then tell the process to end; the checkpoint of the step behind it."""
    told, written = Interruption(), ProgressLog.report

    def tell(log: ProgressLog, progress: Any) -> None:
        written(log, progress)
        if progress.step == after:
            told.tell()

    monkeypatch.setattr(ProgressLog, "report", tell)
    with pytest.raises(TrainerError) as raised:
        run(config, told)
    assert raised.value.exit_code is ExitCode.INTERRUPTED
    monkeypatch.setattr(ProgressLog, "report", written)
    saved = Checkpoints(output_of(config), keep=2).newest()
    assert saved is not None
    assert saved.name == f"checkpoint-{after + 1}"
    return saved


def assert_same_result(one: TrainerConfig, other: TrainerConfig) -> None:
    """Two runs reported the same losses and delivered the same weights, bit for bit."""
    name = "adapter/adapter_model.safetensors" if one.method.lora is not None else "model/model.safetensors"
    first, second = load_file(output_of(one, name)), load_file(output_of(other, name))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    reports = [
        [(report.loss, report.reward_margin) for report in read_history(output_of(config, FILE))[1:]]
        for config in (one, other)
    ]
    assert reports[0] == reports[1]


class Spoiler:
    """Spoils the loss or the gradients of one step, and remembers the rows of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, *, loss: float = 1.0, gradient: float = 1.0) -> None:
        self.rows: dict[int, list[int]] = {}
        known, train_step = FineTuner.compute_loss, FineTuner.training_step

        def compute_loss(tuner: FineTuner, *arguments: Any, **options: Any) -> Any:
            found = known(tuner, *arguments, **options)
            if tuner.state.global_step + 1 == step:
                found = found * loss
                found.register_hook(lambda value: value * gradient)
            return found

        def training_step(tuner: FineTuner, model: Any, inputs: dict[str, Any], *arguments: Any) -> Any:
            self.rows.setdefault(tuner.state.global_step + 1, []).extend(inputs["rows"])
            return train_step(tuner, model, inputs, *arguments)

        monkeypatch.setattr(FineTuner, "compute_loss", compute_loss)
        monkeypatch.setattr(FineTuner, "training_step", training_step)
