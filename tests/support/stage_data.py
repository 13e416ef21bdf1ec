"""Small data for each stage, and a training of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.stages import STAGE_FORMATS
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import Stage
from trainings import COLOURS, configure

PREFERENCE = ("dpo", "kto", "orpo", "rm")


def stage_rows(stage: Stage, count: int = 24) -> list[dict[str, Any]]:
    """Rows that can be learnt: answers that name a colour are good, those that name a number are not."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        question = f"What is flag {number}?"
        good = "It is " + " and ".join(COLOURS[: number % 4 + 1]) + "."
        bad = f"It is {number + 1}."
        if stage == "pt":
            rows.append({"text": f"Flag {number}. {good} " * (number % 3 + 1)})
        elif stage == "kto":
            rows.append({"prompt": question, "completion": good if number % 2 else bad, "label": bool(number % 2)})
        elif stage == "sft":
            rows.append({"instruction": question, "output": good})
        else:
            rows.append({"prompt": question, "chosen": good, "rejected": bad})
    return rows


def stage_config(directory: Path, base: Path, stage: Stage, **edits: Any) -> TrainerConfig:
    """Six steps of ``stage`` on the model ``base``; ``edits`` as of :func:`trainings.configure`."""
    file = directory / f"{stage}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in stage_rows(stage)))
    source = {"uri": f"file:///{file.name}", "path": str(file), "format": STAGE_FORMATS[stage][0]}
    numbers = {} if stage in ("sft", "pt", "rm") else {"preference": {}}
    return configure(directory, base, **{"stage": stage, "sources": [source], **numbers, **edits})
