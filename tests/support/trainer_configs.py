"""Configurations for the trainer, as the operator's plan or ``finetune run`` would make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import JobIdentity, Paths, ResolvedModel, ResolvedSource, TrainerConfig
from finetune_api.training import LoraMethod, MethodSpec

Row = dict[str, Any]
ROWS: list[Row] = [
    {"instruction": f"What is {number} and one more?", "output": f"It is {number + 1}. " * (number % 4 + 1)}
    for number in range(40)
]


def write_rows(path: Path, rows: list[Row]) -> Path:
    """Write ``rows`` as JSON lines and return the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def local_model(directory: Path) -> ResolvedModel:
    """A model that lies on this machine, as on a claim."""
    return ResolvedModel(uri="pvc://models/tiny", path=str(directory))


def local_source(file: Path, **fields: Any) -> ResolvedSource:
    """Rows that lie on this machine, as in a ConfigMap."""
    return ResolvedSource(uri=f"configmap://rows/{file.name}", path=str(file), **fields)


def make_config(directory: Path, **fields: Any) -> TrainerConfig:
    """A LoRA job whose cache and output are in ``directory``.

    Args:
        directory: of the job.
        fields: of the configuration; ``model`` and ``sources`` are needed.
    """
    paths = Paths(cache=str(directory / "cache"), output=str(directory / "output"))
    given = {"job": JobIdentity(name="tiny"), "method": MethodSpec(lora=LoraMethod()), "paths": paths} | fields
    return TrainerConfig(**given)
