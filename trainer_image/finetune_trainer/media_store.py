"""Media of prepared samples: which belong to which, and where their files are.

A file that lies beside the rows stays there, and its path and hash are kept; one that is in a row is kept whole. Pixel
values are not: docs/decisions/0017 says why.
"""

from __future__ import annotations

import base64
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedSource

from finetune_trainer.errors import TrainerError
from finetune_trainer.media_files import Held, MediaError
from finetune_trainer.media_processor import MediaProcessor
from finetune_trainer.messages import MEDIA_KINDS, Content, MediaKind, Medium

ITEM = np.dtype(
    [("kind", "u1"), ("form", "u1"), ("source", "<i4"), ("start", "<i8"), ("end", "<i8"), ("sha256", "S64")]
)
"""One medium: its kind, the form of the bytes from ``start`` to ``end``, and its source's number."""
_PATH, _FILE, _FRAMES = range(3)
"""Forms: a path, a file, or the JSON of a list of frames: texts are paths, lists of one text are files in base64."""
MEDIA_TYPES: dict[str, np.dtype[Any]] = {
    "media": np.dtype("<i8"),
    "media_starts": np.dtype("<i8"),
    "media_items": ITEM,
    "media_bytes": np.dtype("u1"),
}
"""The store's arrays: ``media`` are numbers of items, those of a sample from ``media_starts`` on."""


@dataclass(frozen=True)
class StoredMedium:
    """A file of a prepared sample."""

    kind: MediaKind
    source: int
    content: Content
    sha256: str

    def read(self, sources: Sequence[ResolvedSource], processor: MediaProcessor) -> Held:
        """Its files, as they were when the data was prepared.

        Raises:
            TrainerError: PREPARED_DATA_MISSING where one is gone or changed.
        """
        try:
            held = processor.read(sources[self.source], self.kind, self.content)
        except MediaError as error:
            raise _changed(f"a file of the data is gone: {error}") from error
        if held.sha256.hex() != self.sha256:
            raise _changed(f"{self.content!r} of {sources[self.source].uri} has changed since the data was prepared")
        return held


class MediaWriter:
    """Writes the media of samples as these come."""

    def __init__(self, bytes_file: BinaryIO) -> None:
        self._file = bytes_file
        self._place = 0
        self._known: dict[tuple[str, bytes, int, bytes], int] = {}
        self._items: list[tuple[int, int, int, int, int, bytes]] = []
        self._media, self._starts = array("q"), array("q", [0])

    def __bool__(self) -> bool:
        return bool(self._media)

    def add(self, media: Sequence[Medium]) -> None:
        """Those of the next sample."""
        self._media.extend([self._number(medium) for medium in media])
        self._starts.append(len(self._media))

    def _number(self, medium: Medium) -> int:
        form, content = _written(medium.content)
        key = (medium.kind, medium.digest, -1 if form == _FILE else medium.source, b"" if form == _FILE else content)
        if key not in self._known:
            self._file.write(content)
            start, self._place = self._place, self._place + len(content)
            digest, kind = medium.digest.hex().encode(), MEDIA_KINDS.index(medium.kind)
            self._items.append((kind, form, medium.source, start, self._place, digest))
            self._known[key] = len(self._items) - 1
        return self._known[key]

    def arrays(self) -> dict[str, np.ndarray]:
        """What is to be written beside the bytes; all empty where no sample has any."""
        if not self:
            return {name: np.empty(0, MEDIA_TYPES[name]) for name in ("media", "media_starts", "media_items")}
        return {
            "media": np.frombuffer(self._media, dtype=np.int64),
            "media_starts": np.frombuffer(self._starts, dtype=np.int64),
            "media_items": np.array(self._items, dtype=ITEM),
        }


class MediaTable:
    """The media of a store's samples."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        """``arrays``: those of :data:`MEDIA_TYPES`."""
        self._media, self._starts = arrays["media"], arrays["media_starts"]
        self._items, self._bytes = arrays["media_items"], arrays["media_bytes"]

    def __bool__(self) -> bool:
        return len(self._media) > 0

    @property
    def kinds(self) -> tuple[MediaKind, ...]:
        """Those that there are."""
        return tuple(MEDIA_KINDS[number] for number in np.unique(self._items["kind"]).tolist()) if self else ()

    def of(self, sample: int) -> tuple[StoredMedium, ...]:
        """Those of a sample, in its order."""
        if not self:
            return ()
        numbers = self._media[self._starts[sample] : self._starts[sample + 1]]
        return tuple(self._stored(self._items[number]) for number in numbers)

    def _stored(self, item: Any) -> StoredMedium:
        content = self._bytes[int(item["start"]) : int(item["end"])].tobytes()
        held = _read(int(item["form"]), content)
        return StoredMedium(MEDIA_KINDS[int(item["kind"])], int(item["source"]), held, item["sha256"].decode())


def _written(content: Content) -> tuple[int, bytes]:
    """Form and bytes."""
    if isinstance(content, tuple):
        frames = [one if isinstance(one, str) else [base64.b64encode(one).decode()] for one in content]
        return _FRAMES, json.dumps(frames).encode()
    return (_FILE, content) if isinstance(content, bytes) else (_PATH, content.encode())


def _read(form: int, content: bytes) -> Content:
    if form == _FRAMES:
        return tuple(one if isinstance(one, str) else base64.b64decode(one[0]) for one in json.loads(content))
    return content if form == _FILE else content.decode()


def _changed(problem: str) -> TrainerError:
    return TrainerError(ExitCode.PREPARED_DATA_MISSING, f"{problem}. Put it back, or create the job again")
