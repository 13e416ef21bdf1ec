"""What a batch holds beside its tokens: the tensors of its images and sounds, made as they are needed."""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import dataclass
from typing import Any

import numpy as np
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedSource

from finetune_trainer.errors import TrainerError
from finetune_trainer.media_files import MediaError
from finetune_trainer.media_processor import MediaProcessor, Opened
from finetune_trainer.media_store import StoredMedium


@dataclass(frozen=True)
class MediaBatches:
    """Makes them by the model's processor."""

    processor: MediaProcessor
    sources: tuple[ResolvedSource, ...]

    def inputs(self, rows: Several[Several[StoredMedium]], ids: np.ndarray) -> dict[str, Any]:
        """Inputs of the model by name.

        Args:
            rows: the media of each.
            ids: (batch, length), padded.

        Raises:
            TrainerError: PREPARED_DATA_MISSING.
        """
        held = [[(medium.kind, self._opened(medium)) for medium in row] for row in rows if row]
        found: dict[str, Any] = self.processor.token_types(ids)
        return found | self.processor.tensors(held) if held else found

    def _opened(self, medium: StoredMedium) -> Opened:
        try:
            return self.processor.open(medium.kind, medium.read(self.sources, self.processor))
        except MediaError as error:
            raise TrainerError(
                ExitCode.PREPARED_DATA_MISSING, f"{medium.content!r} can no longer be opened: {error}"
            ) from error
