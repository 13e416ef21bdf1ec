"""The model's own processor: what stands for an image or sound in the text, and the tensors that the model sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_api.failures import ExitCode
from finetune_api.training import MultimodalSpec
from PIL import Image
from transformers import AutoConfig

from finetune_trainer.errors import TrainerError
from finetune_trainer.media_files import MediaError, open_image, open_sound
from finetune_trainer.media_models import MediaModel, media_model
from finetune_trainer.messages import MediaKind

Opened = Image.Image | np.ndarray
"""What a file holds: an image, or a sound as float32 (n,)."""
_ARGUMENTS: dict[MediaKind, str] = {"image": "images", "video": "videos", "audio": "audio"}
_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "text_replacement_offsets")
"""What a processor gives for the text: we have that from the prepared data."""


class MediaProcessor:
    """Opens what rows hold, and makes the model's text and tensors of it."""

    def __init__(self, processor: Any, known: MediaModel, limits: MultimodalSpec) -> None:
        """``processor``: transformers' for the model."""
        self._processor, self._limits = processor, limits
        self.known = known
        self.tokens: dict[MediaKind, str] = {kind: getattr(processor, f"{kind}_token") for kind in known.kinds}
        """The token of each kind's placeholder."""
        self._options = {"sampling_rate": processor.feature_extractor.sampling_rate} if "audio" in known.kinds else {}

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what becomes of a file."""
        parts = [getattr(self._processor, name, None) for name in ("image_processor", "feature_extractor")]
        facts = [part.to_dict() for part in parts if part is not None]
        told = json.dumps([facts, self.tokens, self._limits.image_max_pixels], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()

    def open(self, kind: MediaKind, content: bytes) -> Opened:
        """What is in a file.

        Raises:
            MediaError: it cannot be understood.
        """
        if kind == "image":
            return open_image(content, self._limits.image_max_pixels)
        extractor = self._processor.feature_extractor
        return open_sound(content, extractor.sampling_rate, longest=getattr(extractor, "chunk_length", None))

    def text_of(self, kind: MediaKind, opened: Opened) -> str:
        """What stands for it in the text, in the place of its placeholder.

        Raises:
            MediaError: the processor refuses it.
        """
        try:
            made = self._processor(
                text=[self.tokens[kind]],
                return_text_replacement_offsets=True,
                **{_ARGUMENTS[kind]: [opened]},
                **self._options,
            )
        except ValueError as error:  # such as a strip of one pixel's height
            raise MediaError(f"the model's processor refuses it: {error}") from error
        return str(made["text_replacement_offsets"][0][0]["replacement"])

    def tensors(self, rows: Sequence[Sequence[tuple[MediaKind, Opened]]]) -> dict[str, torch.Tensor]:
        """What the model sees of each row's media, by the names of its inputs; each row has some."""
        text = ["".join(self.tokens[kind] for kind, _ in row) for row in rows]
        given: dict[str, Any] = {}
        for kind in self.known.kinds:
            held = [[opened for own, opened in row if own == kind] for row in rows]
            if any(held):
                given[_ARGUMENTS[kind]] = held if kind == "image" else [one for row in held for one in row]
        made = self._processor(text=text, padding=True, return_tensors="pt", **given, **self._options)
        return {name: value for name, value in made.items() if name not in _OF_TEXT}

    def token_types(self, ids: np.ndarray) -> dict[str, torch.Tensor]:
        """Where the model asks for it, which kind each of the ``ids`` (batch, length) is of."""
        if self.known.token_types is None:
            return {}
        return {self.known.token_types: torch.tensor(self._processor.create_mm_token_type_ids(ids.tolist()))}


def find_processor(directory: Path, limits: MultimodalSpec, *, trust_remote_code: bool) -> MediaProcessor | None:
    """The processor of the model in ``directory``; None where it is trained on text alone.

    Raises:
        TrainerError: MODEL_INVALID where its files are missing or of no use.
    """
    settings = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    known = media_model(settings)
    if known is None:
        return None
    from transformers import AutoProcessor  # noqa: PLC0415 - text alone does without

    try:
        processor = AutoProcessor.from_pretrained(directory, local_files_only=True)
        return MediaProcessor(processor, known, limits)
    except Exception as error:  # the libraries raise whatever a broken file makes them raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"spec.model.source: the model takes {' and '.join(known.kinds)}, and its processor in {directory} "
            f"(preprocessor_config.json, processor_config.json) cannot be loaded: {first[:300]}",
        ) from error
