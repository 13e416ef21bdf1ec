"""The tokenized data: one directory by content, memory-mapped, made by prepare and read by train.

``<cache>/prepared/<digest>/`` holds the samples one behind another (``tokens``, two bytes each where the vocabulary
fits and four else; ``trained``, a bit each; ``starts``; ``supervised``, how many are trained) and, for training and
validation, which samples make up each sequence (``*_members``, ``*_starts``). A pair of answers is two samples and one
sequence, the chosen one first. ``desirable`` says of each sample whether its answer is good, where the
rows say so; else it is empty. ``media*`` are images and sounds (:mod:`finetune_trainer.media_store`), empty where there
are none. ``manifest.json`` has each file's size: a directory that does not match is as good as none.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from collections.abc import Sequence as Values
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from finetune_api.failures import ExitCode
from finetune_api.status import DatasetStatus, ModelStatus
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.errors import TrainerError
from finetune_trainer.files import read_json, whole_directory, write_json
from finetune_trainer.media_store import MEDIA_TYPES, MediaTable, MediaWriter, StoredMedium
from finetune_trainer.messages import MediaKind, Medium
from finetune_trainer.packing import Sequences

LAYOUT = 7
"""Raise it when the layout or the meaning of the files changes: older stores are then made anew."""
IGNORED = -100
"""Label of a token that is not trained on, as transformers wants it."""
_TYPES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<u4"),
    "trained": np.dtype("u1"),
    "starts": np.dtype("<i8"),
    "supervised": np.dtype("<i4"),
    "desirable": np.dtype("u1"),
    "rows": np.dtype("<i8"),
    "train_members": np.dtype("<i8"),
    "train_starts": np.dtype("<i8"),
    "validation_members": np.dtype("<i8"),
    "validation_starts": np.dtype("<i8"),
    **MEDIA_TYPES,
}


_NARROW = np.dtype("<u2")
_NARROW_IDS = 2**16


@dataclass(frozen=True)
class Sequence:
    """One training sequence: a sample; packed, several behind one another; or a pair, the chosen answer's first."""

    input_ids: np.ndarray
    """int64 (n,)"""
    labels: np.ndarray
    """int64 (n,), -100 where not trained; not shifted. The first label of every sample is -100."""
    lengths: np.ndarray
    """int64 (k,), tokens of each sample in it; their sum is n."""
    desirable: bool | None = None
    """Whether the answer is good; None where the data do not say."""
    rows: tuple[int, ...] = ()
    """Rows of the data that it comes from, counted from 1 over all sources."""
    media: tuple[StoredMedium, ...] = ()
    """Images and sounds, in the order of their tokens."""


class SequenceSet:
    """Sequences in memory-mapped files. Only those that are asked for are read."""

    def __init__(self, directory: Path, part: str) -> None:
        """Open ``part``, which is ``train`` or ``validation``, of a store."""
        self._store = sample_store(directory)
        self._supervised = _open(directory, "supervised")
        self._desirable = _open(directory, "desirable")
        self._members = _open(directory, f"{part}_members")
        self._starts = _open(directory, f"{part}_starts")
        self._media = MediaTable({name: _open(directory, name) for name in MEDIA_TYPES})

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Sequence:
        if not 0 <= index < len(self):
            raise IndexError(index)
        members = self._members[self._starts[index] : self._starts[index + 1]]
        samples = [self._store[int(member)] for member in members]
        ids = np.concatenate([one[0] for one in samples]).astype(np.int64)
        trained = np.concatenate([one[1] for one in samples])
        lengths = np.array([len(one[0]) for one in samples], dtype=np.int64)
        desirable = bool(self._desirable[members[0]]) if len(self._desirable) else None
        rows = tuple(dict.fromkeys(one[2] for one in samples))
        media = tuple(medium for sample in members for medium in self._media.of(sample)) if self._media else ()
        return Sequence(ids, np.where(trained, ids, IGNORED), lengths, desirable, rows, media)

    @property
    def media_kinds(self) -> tuple[MediaKind, ...]:
        """What samples of the store have beside text."""
        return self._media.kinds

    @property
    def samples(self) -> int:
        """Samples in all sequences."""
        return len(self._members)

    @property
    def tokens(self) -> int:
        """Tokens in all sequences."""
        return int(self._store.lengths[self._members].sum())

    @property
    def longest(self) -> int:
        """Index of the sequence with most tokens, the first of several."""
        return int(np.add.reduceat(self._store.lengths[self._members], self._starts[:-1]).argmax())

    @property
    def supervised_tokens(self) -> int:
        """Tokens that the loss is computed on."""
        return int(self._supervised[self._members].sum(dtype=np.int64))


@dataclass(frozen=True)
class SampleStore:
    """Samples one by one, whatever the sequences."""

    _tokens: np.ndarray
    _trained: np.ndarray
    _starts: np.ndarray
    _rows: np.ndarray

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 (n,), tokens of each."""
        return np.diff(self._starts)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Ids, whether each is trained, and the row of the data, counted from 1 over all sources."""
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        first = _first_byte(start, index)
        bits = np.unpackbits(self._trained[first : first + (end - start + 7) // 8], count=end - start)
        return self._tokens[start:end], bits.astype(bool), int(self._rows[index])


def sample_store(directory: Path) -> SampleStore:
    """The samples of the whole store in ``directory``."""
    starts = _open(directory, "starts")
    narrow = _file(directory, "tokens").stat().st_size == starts[-1] * _NARROW.itemsize
    tokens = _open(directory, "tokens", _NARROW if narrow else None)
    return SampleStore(tokens, _open(directory, "trained"), starts, _open(directory, "rows"))


def _first_byte(start: int, index: int) -> int:
    """Where in ``trained`` the sample with this number begins, whose first token is at ``start``: each has a byte to
    spare, so that the place follows from the two."""
    return start // 8 + index


@dataclass(frozen=True)
class Prepared:
    """All that training needs."""

    directory: Path
    digest: str
    train: SequenceSet
    validation: SequenceSet
    dataset: DatasetStatus
    model: ModelStatus
    model_directory: Path
    chat_template: str | None
    """Jinja that the export carries; None for a base model that was trained on plain text."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer, the end of a turn first."""
    replace_eos: bool
    """Whether the export's tokenizer must have ``eos_token`` as its end of sequence."""
    eos_token: str
    """The token that ends an answer."""


class StoreWriter:
    """Writes samples as they come; memory holds their lengths alone."""

    def __init__(self, directory: Path, *, vocabulary: int) -> None:
        """``vocabulary``: no token is as high."""
        self._directory = directory
        self._type = _NARROW if vocabulary <= _NARROW_IDS else _TYPES["tokens"]
        self._files: dict[str, BinaryIO] = {}
        self.lengths = array("i")
        self.supervised = array("i")
        self.desirable = array("b")
        self._rows = array("q")
        self._tokens = 0
        self.origin: dict[str, Any] = {}
        """What the data follow from; the manifest holds it."""

    def __enter__(self) -> Self:
        opened = ("tokens", "trained", "media_bytes")
        self._files = {name: _file(self._directory, name).open("wb") for name in opened}
        self._media = MediaWriter(self._files["media_bytes"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def extend(
        self,
        ids: np.ndarray,
        trained: np.ndarray,
        lengths: Values[int],
        *,
        desirable: Values[bool],
        rows: Values[int],
        media: Values[Values[Medium]] = (),
    ) -> None:
        """Append samples, one behind another in ``ids`` and ``trained``; ``desirable`` is empty where the data do not
        say it, ``media`` where no sample has any."""
        if len(ids) and int(ids.max()) > np.iinfo(self._type).max:
            raise ValueError(f"token {ids.max()} of a vocabulary that was said to be smaller")
        self._files["tokens"].write(ids.astype(self._type).tobytes())
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._files["trained"].write(self._bits(trained, starts))
        counts = np.concatenate([[0], np.cumsum(trained, dtype=np.int64)])
        self.lengths.extend(lengths)
        self.supervised.extend(np.diff(counts[starts]).tolist())
        self.desirable.extend(desirable)
        self._rows.extend(rows)
        self._tokens += len(ids)
        for held in media or [()] * len(lengths):
            self._media.add(held)

    def _bits(self, trained: np.ndarray, starts: np.ndarray) -> bytes:
        """A bit a token, each sample where :func:`_first_byte` says."""
        numbers = np.arange(len(starts)) + len(self.lengths)
        bytes_ = (starts + self._tokens) // 8 + numbers
        shift = (bytes_[:-1] - bytes_[0]) * 8 - starts[:-1]
        bits = np.zeros((bytes_[-1] - bytes_[0]) * 8, dtype=np.uint8)
        bits[np.arange(len(trained)) + np.repeat(shift, np.diff(starts))] = trained
        return np.packbits(bits).tobytes()

    def finish(self, train: Sequences, validation: Sequences, facts: dict[str, Any]) -> None:
        """Write which samples make up which sequence, and at last the manifest with ``facts``."""
        for file in self._files.values():
            file.flush()
        self._write("starts", np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]))
        self._write("supervised", np.frombuffer(self.supervised, dtype=np.int32))
        self._write("desirable", np.frombuffer(self.desirable, dtype=np.int8))
        self._write("rows", np.frombuffer(self._rows, dtype=np.int64))
        for name, values in self._media.arrays().items():
            self._write(name, values)
        for part, sequences in (("train", train), ("validation", validation)):
            self._write(f"{part}_members", sequences.members)
            self._write(f"{part}_starts", sequences.starts)
        sizes = {name: _file(self._directory, name).stat().st_size for name in _TYPES}
        write_json(
            self._directory / "manifest.json", {"layout": LAYOUT, "sizes": sizes, **facts, "origin": self.origin}
        )

    def _write(self, name: str, values: list[int] | np.ndarray) -> None:
        _file(self._directory, name).write_bytes(np.asarray(values, dtype=_TYPES[name]).tobytes())


@contextmanager
def new_store(directory: Path, *, vocabulary: int) -> Iterator[StoreWriter]:
    """A writer whose store becomes ``directory`` when the block ends well."""
    try:
        with whole_directory(directory) as aside, StoreWriter(aside, vocabulary=vocabulary) as writer:
            yield writer
    except OSError as error:
        # Another job may have made the same data in the meantime: equal by digest.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or read_store(directory) is None:
            raise


def read_store(directory: Path) -> dict[str, Any] | None:
    """The manifest of a whole store; None where it is missing or damaged."""
    try:
        manifest = read_json(directory / "manifest.json")
        sizes = {name: _file(directory, name).stat().st_size for name in _TYPES}
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or manifest.get("layout") != LAYOUT or manifest.get("sizes") != sizes:
        return None
    return manifest


def prepared_directory(config: TrainerConfig, digest: str) -> Path:
    """Where the store of that digest is."""
    return Path(config.paths.cache) / "prepared" / digest


def write_handover(config: TrainerConfig, prepared: dict[str, Any], model_directory: Path) -> None:
    """Leave ``prepare.json`` for train. The model's directory is relative to the cache where it lies there."""
    cache, place = Path(config.paths.cache).resolve(), model_directory.resolve()
    model = place.relative_to(cache) if place.is_relative_to(cache) else place
    write_json(_handover(config), {"layout": LAYOUT, **prepared, "modelDirectory": str(model)})


def load_prepared(config: TrainerConfig) -> Prepared:
    """What prepare left for this job.

    Raises:
        TrainerError: PREPARED_DATA_MISSING.
    """
    try:
        left = read_json(_handover(config))
    except (OSError, ValueError) as error:
        raise _missing(f"{_handover(config)} cannot be read: {error}") from error
    if not isinstance(left, dict) or left.get("layout") != LAYOUT:
        raise _missing(f"there is no {_handover(config)} of this release")
    directory = prepared_directory(config, left["digest"])
    if read_store(directory) is None:
        raise _missing(f"{directory} is missing or damaged")
    model_directory = Path(config.paths.cache) / left["modelDirectory"]
    if not (model_directory / "config.json").exists():
        raise _missing(f"the model is no longer in {model_directory}")
    return Prepared(
        directory=directory,
        digest=left["digest"],
        train=SequenceSet(directory, "train"),
        validation=SequenceSet(directory, "validation"),
        dataset=DatasetStatus.model_validate(left["dataset"]),
        model=ModelStatus.model_validate(left["model"]),
        model_directory=model_directory,
        chat_template=left["chatTemplate"],
        stop_token_ids=tuple(left["stopTokenIds"]),
        replace_eos=left["replaceEos"],
        eos_token=left["eosToken"],
    )


def _handover(config: TrainerConfig) -> Path:
    return Path(config.paths.output) / "prepare.json"


def _missing(problem: str) -> TrainerError:
    return TrainerError(
        ExitCode.PREPARED_DATA_MISSING,
        f"{problem}. Run prepare again: on a cluster, create the job again; it needs the same cache and output volumes",
    )


def _file(directory: Path, name: str) -> Path:
    return directory / f"{name}.bin"


def _open(directory: Path, name: str, kind: np.dtype[Any] | None = None) -> np.ndarray:
    path, kind = _file(directory, name), kind or _TYPES[name]
    if path.stat().st_size == 0:  # nothing to map
        return np.empty(0, dtype=kind)
    return np.memmap(path, dtype=kind, mode="r")
