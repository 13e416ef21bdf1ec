"""The tokenized data: one directory by content, memory-mapped, made by prepare and read by train.

``<cache>/prepared/<digest>/`` holds the samples one behind another (``tokens``, ``trained``, ``starts``) and, for
training and validation, which samples make up each sequence (``*_members``, ``*_starts``). A pair of answers is two
samples and one sequence, the chosen one first. ``desirable`` says of each sample whether its answer is good, where the
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

LAYOUT = 6
"""Raise it when the layout or the meaning of the files changes: older stores are then made anew."""
IGNORED = -100
"""Label of a token that is not trained on, as transformers wants it."""
_TYPES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("<i4"),
    "trained": np.dtype("u1"),
    "starts": np.dtype("<i8"),
    "desirable": np.dtype("u1"),
    "rows": np.dtype("<i8"),
    "train_members": np.dtype("<i8"),
    "train_starts": np.dtype("<i8"),
    "validation_members": np.dtype("<i8"),
    "validation_starts": np.dtype("<i8"),
    **MEDIA_TYPES,
}


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
        self._tokens = _open(directory, "tokens")
        self._trained = _open(directory, "trained")
        self._sample_starts = _open(directory, "starts")
        self._desirable = _open(directory, "desirable")
        self._rows = _open(directory, "rows")
        self._members = _open(directory, f"{part}_members")
        self._starts = _open(directory, f"{part}_starts")
        self._media = MediaTable({name: _open(directory, name) for name in MEDIA_TYPES})

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> Sequence:
        if not 0 <= index < len(self):
            raise IndexError(index)
        members = self._members[self._starts[index] : self._starts[index + 1]]
        slices = [slice(int(self._sample_starts[i]), int(self._sample_starts[i + 1])) for i in members]
        ids = np.concatenate([self._tokens[part] for part in slices]).astype(np.int64)
        trained = np.concatenate([self._trained[part] for part in slices]).astype(bool)
        lengths = np.array([part.stop - part.start for part in slices], dtype=np.int64)
        desirable = bool(self._desirable[members[0]]) if len(self._desirable) else None
        rows = tuple(dict.fromkeys(self._rows[members].tolist()))
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
        return int(np.diff(self._sample_starts)[self._members].sum())

    @property
    def supervised_tokens(self) -> int:
        """Tokens that the loss is computed on."""
        if not len(self._members):
            return 0
        by_sample = np.add.reduceat(self._trained, self._sample_starts[:-1], dtype=np.int64)
        return int(by_sample[self._members].sum())


@dataclass(frozen=True)
class SampleStore:
    """Samples one by one, whatever the sequences."""

    lengths: np.ndarray
    """int64 (n,), tokens of each."""
    _tokens: np.ndarray
    _trained: np.ndarray
    _starts: np.ndarray
    _rows: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, int]:
        """Ids, whether each is trained, and the row of the data, counted from 1 over all sources."""
        part = slice(int(self._starts[index]), int(self._starts[index + 1]))
        return self._tokens[part], self._trained[part].astype(bool), int(self._rows[index])


def sample_store(directory: Path) -> SampleStore:
    """The samples of the whole store in ``directory``."""
    starts = _open(directory, "starts")
    return SampleStore(
        np.diff(starts), _open(directory, "tokens"), _open(directory, "trained"), starts, _open(directory, "rows")
    )


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

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, BinaryIO] = {}
        self.lengths = array("q")
        self.supervised = array("q")
        self.desirable = array("b")
        self._rows = array("q")

    def __enter__(self) -> Self:
        opened = ("tokens", "trained", "media_bytes")
        self._files = {name: _file(self._directory, name).open("wb") for name in opened}
        self._media = MediaWriter(self._files["media_bytes"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for file in self._files.values():
            file.close()

    def add(
        self, ids: np.ndarray, trained: np.ndarray, *, desirable: bool | None = None, row: int | None = None
    ) -> None:
        """Append a sample, of the data's ``row``, or of one of its own. Of all samples it is said whether they are
        desirable, or of none."""
        self._files["tokens"].write(ids.astype(_TYPES["tokens"]).tobytes())
        self._files["trained"].write(trained.astype(_TYPES["trained"]).tobytes())
        self.lengths.append(len(ids))
        self._rows.append(len(self.lengths) if row is None else row)
        self._media.add(())
        self.supervised.append(int(trained.sum()))
        if desirable is not None:
            self.desirable.append(desirable)

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
        self._files["tokens"].write(ids.astype(_TYPES["tokens"], copy=False).tobytes())
        self._files["trained"].write(trained.astype(_TYPES["trained"], copy=False).tobytes())
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        counts = np.concatenate([[0], np.cumsum(trained, dtype=np.int64)])
        self.lengths.extend(lengths)
        self.supervised.extend(np.diff(counts[starts]).tolist())
        self.desirable.extend(desirable)
        self._rows.extend(rows)
        for held in media or [()] * len(lengths):
            self._media.add(held)

    def finish(self, train: list[list[int]], validation: list[list[int]], facts: dict[str, Any]) -> None:
        """Write which samples make up which sequence, and at last the manifest with ``facts``."""
        for file in self._files.values():
            file.flush()
        self._write("starts", np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]))
        self._write("desirable", np.frombuffer(self.desirable, dtype=np.int8))
        self._write("rows", np.frombuffer(self._rows, dtype=np.int64))
        for name, values in self._media.arrays().items():
            self._write(name, values)
        for part, sequences in (("train", train), ("validation", validation)):
            self._write(f"{part}_members", [sample for members in sequences for sample in members])
            counts = [len(members) for members in sequences]
            self._write(f"{part}_starts", np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
        sizes = {name: _file(self._directory, name).stat().st_size for name in _TYPES}
        write_json(self._directory / "manifest.json", {"layout": LAYOUT, "sizes": sizes, **facts})

    def _write(self, name: str, values: list[int] | np.ndarray) -> None:
        _file(self._directory, name).write_bytes(np.asarray(values, dtype=_TYPES[name]).tobytes())


@contextmanager
def new_store(directory: Path) -> Iterator[StoreWriter]:
    """A writer whose store becomes ``directory`` when the block ends well."""
    try:
        with whole_directory(directory) as aside, StoreWriter(aside) as writer:
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


def _open(directory: Path, name: str) -> np.ndarray:
    path = _file(directory, name)
    if path.stat().st_size == 0:  # nothing to map
        return np.empty(0, dtype=_TYPES[name])
    return np.memmap(path, dtype=_TYPES[name], mode="r")
