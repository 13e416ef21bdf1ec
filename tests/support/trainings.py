"""Small trainings for tests: a configuration, its data, and a run of both steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.reports import TerminationReport
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.interruption import Interruption
from finetune_trainer.prepare import prepare
from finetune_trainer.train import train

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
