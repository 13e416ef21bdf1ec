"""Unsloth before everything that it changes. It rewrites transformers, peft and TRL as it is imported, so it comes
first of them, in a process that has a GPU; and it is no part of the default image (docs/unsloth.md).

Imports none of these libraries itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.errors import TrainerError

NAME = "unsloth"
"""Of the package, of its kernels and of its attention."""
IMAGE = "trainer-unsloth"
"""The image that has it."""
MODEL_TYPES = ("gemma", "llama", "mistral", "qwen2", "qwen3")
"""transformers' types of models that FastLanguageModel has kernels for (unsloth/models/loader.py), of those whose
attention is plain and causal. It compiles others by a path of its own, which is not tried here."""
_CHANGED = ("peft", "transformers", "trl")


def missing(config: TrainerConfig) -> Iterator[str]:
    """Why Unsloth cannot be had here, where ``config`` asks for it and nothing but the image is in the way."""
    if config.acceleration.unsloth and importlib.util.find_spec(NAME) is None:
        yield (
            f"spec.acceleration.unsloth: this trainer image does not have Unsloth, for its licence; use the image "
            f"{IMAGE} (docs/unsloth.md), or leave it false"
        )


def start() -> None:
    """Import Unsloth into this process.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE where it cannot be imported.
        RuntimeError: what it changes was imported before it, and would be trained with as it was.
    """
    if NAME in sys.modules:
        return
    if early := [name for name in _CHANGED if name in sys.modules]:
        raise RuntimeError(f"Unsloth must be imported before {', '.join(early)}")
    os.environ |= {
        "UNSLOTH_DISABLE_STATISTICS": "1",  # it counts its users by downloads from the hub
        "HF_HUB_OFFLINE": "1",  # all that is trained on is here
        "UNSLOTH_COMPILE_LOCATION": f"{tempfile.gettempdir()}/unsloth",  # else the working directory
    }
    try:
        importlib.import_module(NAME)
    except Exception as error:  # whatever a driver or a version that does not fit makes it raise
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            f"spec.acceleration.unsloth: Unsloth cannot be imported: {type(error).__name__}: {error}",
        ) from error


def check_model(config: TrainerConfig, settings: Any, *, plain_attention: bool) -> None:
    """Refuse a model that Unsloth's kernels are not for.

    Args:
        config: the job's.
        settings: the model's configuration.
        plain_attention: whether each token of it attends to all before it.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE.
    """
    if settings.model_type not in MODEL_TYPES or not plain_attention:
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            f"acceleration.unsloth: not for models of type {settings.model_type!r}"
            f"{'' if plain_attention else ' with windows or caps in their attention'}; leave it false. It is for: "
            f"{', '.join(MODEL_TYPES)}",
        )
    if config.max_length > settings.max_position_embeddings:
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            f"acceleration.unsloth: dataset.maxLength {config.max_length} is more than the model's positions, "
            f"{settings.max_position_embeddings}, which Unsloth would stretch; lower it, or leave unsloth false",
        )
