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
from finetune_api.trainer_config import ResolvedSource
from finetune_api.training import MultimodalSpec
from PIL import Image
from transformers import AutoConfig

from finetune_trainer.errors import TrainerError
from finetune_trainer.media_clips import Clip, open_clip
from finetune_trainer.media_files import Held, MediaError, open_image, open_sound, read_medium
from finetune_trainer.media_models import MediaModel, media_model
from finetune_trainer.messages import Content, MediaKind

Opened = Image.Image | np.ndarray | Clip
"""What the files hold: an image, a sound as float32 (n,), or a video."""
_PARTS = ("image_processor", "video_processor", "feature_extractor")
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

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides what becomes of a file."""
        parts = [getattr(self._processor, name, None) for name in _PARTS]
        facts = [part.to_dict() for part in parts if part is not None]
        limits = self._limits.model_dump(exclude={"freeze_vision_tower", "freeze_multi_modal_projector"})
        told = json.dumps([facts, self.tokens, limits], sort_keys=True, default=str)
        return hashlib.sha256(told.encode()).hexdigest()

    def read(self, source: ResolvedSource, kind: MediaKind, content: Content) -> Held:
        """The files of a medium of ``source``.

        Raises:
            MediaError: one is not there.
        """
        return read_medium(source, kind, content, most=self._limits.video_max_frames)

    def open(self, kind: MediaKind, held: Held) -> Opened:
        """What is in the files.

        Raises:
            MediaError: it cannot be understood.
        """
        limits = self._limits
        if kind == "image":
            return open_image(held.files[0], limits.image_max_pixels)
        if kind == "video":
            fps, most = limits.video_fps, limits.video_max_frames
            return open_clip(held, fps=fps, most=most, max_pixels=limits.video_max_pixels)
        extractor = self._processor.feature_extractor
        return open_sound(held.files[0], extractor.sampling_rate, longest=getattr(extractor, "chunk_length", None))

    def text_of(self, kind: MediaKind, opened: Opened) -> str:
        """What stands for it in the text, in the place of its placeholder.

        Raises:
            MediaError: the processor refuses it.
        """
        try:
            made = self._processor(
                text=[self.tokens[kind]], return_text_replacement_offsets=True, **self._given(kind, [[opened]])
            )
        except ValueError as error:  # such as a strip of one pixel's height
            raise MediaError(f"the model's processor refuses it: {error}") from error
        return str(made["text_replacement_offsets"][0][0]["replacement"])

    def tensors(self, rows: Sequence[Sequence[tuple[MediaKind, Opened]]]) -> dict[str, torch.Tensor]:
        """What the model sees of each row's media, by the names of its inputs; each row has some."""
        text = ["".join(self.tokens[kind] for kind, _ in row) for row in rows]
        given: dict[str, Any] = {}
        for kind in self.known.kinds:
            given |= self._given(kind, [[opened for own, opened in row if own == kind] for row in rows])
        made = self._processor(text=text, padding=True, return_tensors="pt", **given)
        return {name: value for name, value in made.items() if name not in _OF_TEXT}

    def _given(self, kind: MediaKind, rows: list[list[Any]]) -> dict[str, Any]:
        """Arguments of the processor for what each row has of ``kind``."""
        flat = [opened for row in rows for opened in row]
        if not flat:
            return {}
        if kind == "image":
            return {"images": rows}
        if kind == "audio":
            return {"audio": flat, "sampling_rate": self._processor.feature_extractor.sampling_rate}
        # Frames are chosen already; from their rate Qwen2.5-VL's positions follow.
        told = [
            {"total_num_frames": len(clip.frames), "fps": clip.fps, "frames_indices": list(range(len(clip.frames)))}
            for clip in flat
        ]
        return {"videos": [clip.frames for clip in flat], "video_metadata": told, "do_sample_frames": False}

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
