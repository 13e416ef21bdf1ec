"""What is on top of the model: the language model's own head, or, for stage rm, one that gives a reward."""

from __future__ import annotations

from typing import Any

import torch
from finetune_api.trainer_config import TrainerConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from finetune_trainer.media_models import media_model

_REWARD_HEADS = ("score", "classifier")


def model_class(config: TrainerConfig, settings: PretrainedConfig) -> Any:
    """The class that loads the stage's model, which has these settings."""
    if config.stage == "rm":
        return AutoModelForSequenceClassification
    return AutoModelForCausalLM if media_model(settings) is None else AutoModelForMultimodalLM


def head_options(config: TrainerConfig) -> dict[str, Any]:
    """What the model's settings must say for the stage: a reward is one number."""
    return {"num_labels": 1} if config.stage == "rm" else {}


def reward_head(model: PreTrainedModel) -> str | None:
    """Name of the module that gives the reward; None in a language model."""
    if not type(model).__name__.endswith("ForSequenceClassification"):
        return None
    return next(name for name in _REWARD_HEADS if hasattr(model, name))


def train_head(model: PreTrainedModel) -> None:
    """Have the new head trained, in fp32: nothing has trained it before."""
    name = reward_head(model)
    if name is not None:
        getattr(model, name).requires_grad_(requires_grad=True).to(torch.float32)
