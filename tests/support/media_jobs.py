"""Small jobs on models that see or hear: files, rows and the configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.batches import Collator
from finetune_trainer.media_batches import MediaBatches
from finetune_trainer.media_processor import find_processor
from finetune_trainer.prepared import Prepared
from tiny_media import MAKERS, TEMPLATES, image, image_bytes, tone

COLOURS = ("red", "green", "blue", "yellow")
KINDS = {name: "audio" if name == "qwen2_audio" else "image" for name in MAKERS}


def files_of(kind: str, directory: Path) -> list[Path]:
    """A file for each colour: an image of it, or a tone of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    found = []
    for number, colour in enumerate(COLOURS):
        content = image_bytes(image(colour, (60 + 20 * number, 40))) if kind == "image" else tone(200 * (number + 1))
        found.append(directory / f"{colour}.{'png' if kind == 'image' else 'wav'}")
        found[-1].write_bytes(content)
    return found


def rows_of(kind: str, files: list[Path]) -> list[dict[str, Any]]:
    """A question to each, one to two of them, and one to none."""
    named = [f"media/{file.name}" for file in files]
    column, mark = f"{kind}s", f"<{kind}>"
    rows: list[dict[str, Any]] = [
        {"instruction": f"{mark}Which is it?", "output": f"It is {file.stem}.", column: [name]}
        for file, name in zip(files, named, strict=True)
    ]
    rows.append({"instruction": f"{mark} or {mark}?", "output": "Both.", column: named[:2]})
    rows.append({"instruction": "Which colour?", "output": "Green."})
    return rows


def configure(tmp_path: Path, model: Path, rows: list[dict[str, Any]], **edits: Any) -> TrainerConfig:
    """Four steps of LoRA on ``rows``; ``edits`` are laid over it."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    body: dict[str, Any] = {
        "job": {"name": "see"},
        "model": {"uri": "hf://org/tiny", "path": str(model)},
        "sources": [{"uri": "file:///rows.jsonl", "path": str(data), "root": "/"}],
        "maxLength": 256,
        "method": {"lora": {"rank": 4}},
        "precision": "fp32",
        "template": {"name": TEMPLATES.get(model.name, model.name)},
        "hyperparameters": {"maxSteps": 4, "globalBatchSize": 4, "microBatchSize": 2, "learningRate": 0.02},
        "paths": {"cache": str(tmp_path / "cache"), "output": str(tmp_path / "output")},
    }
    return TrainerConfig.model_validate_json(json.dumps(body | edits))


def collator_of(config: TrainerConfig, prepared: Prepared, **options: Any) -> Collator:
    processor = find_processor(prepared.model_directory, config.multimodal, trust_remote_code=False)
    assert processor is not None
    return Collator(0, packed=False, **options, media=MediaBatches(processor, tuple(config.sources)))


def media_job(tmp_path: Path, model: Path) -> TrainerConfig:
    """Four steps on the rows of :func:`rows_of`."""
    kind = KINDS[model.name]
    return configure(tmp_path, model, rows_of(kind, files_of(kind, tmp_path / "media")))


def edited(config: TrainerConfig, **fields: Any) -> TrainerConfig:
    """The same with other fields, by the wire's names."""
    return TrainerConfig.model_validate_json(json.dumps(json.loads(config.to_json()) | fields))
