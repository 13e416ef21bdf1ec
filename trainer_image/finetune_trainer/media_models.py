"""Models that take images or sounds: what this release trains them on, and which of their modules take that in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune_trainer.messages import MediaKind


@dataclass(frozen=True)
class MediaModel:
    """A type of model. What belongs neither to tower nor projector is the language model."""

    kinds: tuple[MediaKind, ...]
    tower: tuple[str, ...]
    """Modules that see or hear, by the end of their names or what is before a dot within."""
    projector: tuple[str, ...]
    """What lies between these and the language model."""
    token_types: str | None = None
    """Input that says of each token which kind it is of."""


_LLAVA = MediaModel(("image",), ("vision_tower",), ("multi_modal_projector", "image_newline"))
_QWEN = MediaModel(("image", "video"), ("visual.patch_embed", "visual.blocks"), ("visual.merger",), "mm_token_type_ids")

MEDIA_MODELS: dict[str, MediaModel] = {
    "gemma3": MediaModel(("image",), ("vision_tower",), ("multi_modal_projector",), "token_type_ids"),
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "qwen2_5_vl": _QWEN,
    "qwen2_audio": MediaModel(("audio",), ("audio_tower",), ("multi_modal_projector",)),
    "qwen2_vl": _QWEN,
}
"""By ``model_type`` in config.json. Each is trained in a test; others of transformers' are left out until they are."""


def media_model(settings: Any) -> MediaModel | None:
    """What is known of the model with these settings; None where it is trained on text alone."""
    return MEDIA_MODELS.get(settings.model_type)


def within(name: str, modules: tuple[str, ...]) -> bool:
    """Whether the module or parameter ``name`` is one of ``modules``, or part of one."""
    return any(f".{module}." in f".{name}." for module in modules)


def pattern_of(modules: tuple[str, ...]) -> str:
    """A regular expression that matches names of what is in ``modules``, for peft."""
    return rf"(?:.*\.)?(?:{'|'.join(map(re.escape, modules))})(?:\..*)?"


def frozen_modules(settings: Any, *, tower: bool, projector: bool) -> tuple[str, ...]:
    """Of the model's modules those that the job leaves as they are.

    Args:
        settings: the model's.
        tower: whether that is left.
        projector: whether that is.
    """
    known = media_model(settings)
    if known is None:
        return ()
    return (*(known.tower if tower else ()), *(known.projector if projector else ()))


def takes_in(settings: Any) -> tuple[str, ...]:
    """All modules that are no part of the language model."""
    return frozen_modules(settings, tower=True, projector=True)


def forget_positions(model: nn.Module) -> None:
    """Have ``model`` answer a text as if it had seen no image before: Qwen2-VL keeps how far the images of its last
    batch moved positions, and takes that for a text's too."""
    for part in model.modules():
        if getattr(part, "rope_deltas", None) is not None:
            part.rope_deltas = None
