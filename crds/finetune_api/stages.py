"""The stages of training, and what each of them takes: one place for the rules and for the trainer."""

from __future__ import annotations

from finetune_api.training import DatasetFormat, Stage

STAGE_FORMATS: dict[Stage, tuple[DatasetFormat, ...]] = {
    "sft": ("alpaca", "sharegpt", "openai"),
    "pt": ("text",),
    "dpo": ("preference",),
    "orpo": ("preference",),
    "rm": ("preference",),
    "kto": ("kto",),
}
"""Shapes of rows by stage."""
PREFERENCE_STAGES: tuple[Stage, ...] = ("dpo", "kto", "orpo", "rm")
"""Stages that learn from which answer is better, or from whether one is good."""
REFERENCE_STAGES: tuple[Stage, ...] = ("dpo", "kto")
"""Stages that hold the model to where it started: its log-probabilities before training are needed too."""
PREFERENCE_NUMBERS: tuple[Stage, ...] = ("dpo", "kto", "orpo")
"""Stages that ``spec.preference`` is for."""
