"""Rows to tokens by the batch: what one process does at a time, and hands over to the one that writes."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from finetune_api.failures import ExitCode
from finetune_api.stages import PREFERENCE_STAGES
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.encode import ENDLESS, NOTHING_TO_TRAIN, DroppedError, UntrainedError
from finetune_trainer.errors import TrainerError
from finetune_trainer.media_processor import MediaProcessor
from finetune_trainer.media_reader import MediaReader
from finetune_trainer.messages import Medium
from finetune_trainer.row_errors import RowError
from finetune_trainer.row_files import RawRow
from finetune_trainer.samples import Sample, SampleEncoder, Unit, sample_of

BATCH_BYTES = 2**18
BATCH_ROWS = 1024
TURNS_CUT = "later turns beyond maxLength"
ANSWER_CUT = "end of the answer beyond maxLength"
_WRONG_MASK = {
    NOTHING_TO_TRAIN: "the template's mask hides all of it",
    ENDLESS: "the template's mask hides every token that ends one, so that the model would never stop",
}


@dataclass(frozen=True)
class RowBatch:
    """Rows of one source that follow one another."""

    source: int
    """Its number in the configuration."""
    rows: tuple[RawRow, ...]


class EncodedUnit(NamedTuple):
    """What belongs into one sequence."""

    row: int
    """Number in its batch of the row that it is of."""
    lengths: tuple[int, ...]
    """Tokens of each of its samples."""
    rank: int
    """Hash of the row's tokens, its media and the seed, by which rows are held out."""
    desirable: bool | None


class LeftOut(NamedTuple):
    """A row that is not trained on, or not whole."""

    reason: str
    where: str
    detail: str
    """What is wrong with it beyond the reason; may be empty."""


@dataclass
class EncodedBatch:
    """A batch's tokens, one sample behind another, and what of it was left out."""

    source: int
    rows: int
    ids: np.ndarray
    """int32 (n,)"""
    trained: np.ndarray
    """bool (n,)"""
    units: list[EncodedUnit] = field(default_factory=list)
    dropped: list[LeftOut] = field(default_factory=list)
    truncated: list[LeftOut] = field(default_factory=list)
    media: list[tuple[Medium, ...]] = field(default_factory=list)
    """Of each sample; what is beside the rows by its path."""


def batched(source: int, rows: Iterable[RawRow]) -> Iterator[RowBatch]:
    """``rows`` in batches of about :data:`BATCH_BYTES`."""
    gathered: list[RawRow] = []
    size = 0
    for row in rows:
        gathered.append(row)
        size += row.size
        if size >= BATCH_BYTES or len(gathered) >= BATCH_ROWS:
            yield RowBatch(source, tuple(gathered))
            gathered, size = [], 0
    if gathered:
        yield RowBatch(source, tuple(gathered))


class BatchEncoder:
    """Reads and encodes batches; the same batch gives the same result in every process."""

    def __init__(
        self, config: TrainerConfig, encoder: SampleEncoder, stops: Sequence[int], media: MediaProcessor | None = None
    ) -> None:
        """``stops``: tokens that end an answer or a text; ``media``: of a model that takes more than text."""
        self._config = config
        self._media = MediaReader(config, media)
        self._encoder = encoder
        self.stops = frozenset(stops)
        self._seed = f"{config.hyperparameters.seed}:".encode()
        self._cut = TURNS_CUT if config.stage == "sft" else ANSWER_CUT

    def encode(self, batch: RowBatch) -> EncodedBatch:
        """The tokens of ``batch``.

        Raises:
            TrainerError: DATASET_INVALID of the first row that cannot be read, or TEMPLATE_INVALID of the first whose
                mask trains nothing or no end, where the job does not skip such rows, naming the source as the user
                wrote it; TEMPLATE_INVALID where the template refuses a row.
        """
        ids: list[np.ndarray] = []
        trained: list[np.ndarray] = []
        made = EncodedBatch(batch.source, len(batch.rows), np.empty(0, np.int32), np.empty(0, bool))
        source = self._config.sources[batch.source]
        field = f"spec.dataset.sources[{batch.source}].uri ({source.uri})"
        samples: list[tuple[int, RawRow, Sample]] = []
        for number, raw in enumerate(batch.rows):
            try:
                sample = self._media.read(batch.source, sample_of(source, raw))
                samples.append((number, raw, sample))
            except RowError as error:
                if self._config.on_error == "fail":
                    raise TrainerError(error.exit_code, f"{field}: {error}") from error
                made.dropped.append(LeftOut(error.reason, raw.where, error.problem))
        self._encoder.foresee([sample for _, _, sample in samples])
        for number, raw, sample in samples:
            try:
                units = self._encoder.encode(sample)
                self._check_ends(units)
            except DroppedError as error:
                if isinstance(error, UntrainedError) and self._config.on_error == "fail":
                    raise TrainerError(
                        ExitCode.TEMPLATE_INVALID,
                        f"{field}: {raw.where}: {error}: {_WRONG_MASK[str(error)]}. Name a template of the model's "
                        "family, correct the tokenizer's eos_token, or leave such rows out (spec.dataset.onError: "
                        "skip)",
                    ) from error
                made.dropped.append(LeftOut(str(error), raw.where, ""))
                continue
            except TrainerError as error:
                raise TrainerError(error.exit_code, f"{error} (met at {raw.where})") from error
            rank = self._rank(units)
            for unit in units:
                ids += [encoded.ids for encoded in unit.samples]
                trained += [encoded.trained for encoded in unit.samples]
                made.media += [encoded.media for encoded in unit.samples]
                lengths = tuple(len(encoded.ids) for encoded in unit.samples)
                made.units.append(EncodedUnit(number, lengths, rank, unit.desirable))
                if unit.truncated:
                    made.truncated.append(LeftOut(self._cut, raw.where, ""))
        if ids:
            made.ids, made.trained = np.concatenate(ids).astype(np.int32), np.concatenate(trained)
        return made

    def _check_ends(self, units: Sequence[Unit]) -> None:
        """A model that does not see an answer end does not learn to end it. One that is cut has no end.

        Raises:
            UntrainedError: none of the row's trained tokens ends an answer.
        """
        if self._config.stage in PREFERENCE_STAGES and any(unit.truncated for unit in units):
            return
        for unit in units:
            for sample in unit.samples:
                trained = sample.ids[sample.trained]
                if trained[-1] in self.stops or np.isin(trained, [*self.stops]).any():
                    return
        raise UntrainedError(ENDLESS)

    def _rank(self, units: Sequence[Unit]) -> int:
        hashed = hashlib.blake2b(self._seed, digest_size=8)
        for unit in units:
            for encoded in unit.samples:
                hashed.update(encoded.ids.astype(np.int64, copy=False).tobytes())
                for medium in encoded.media:
                    hashed.update(medium.digest)
        return int.from_bytes(hashed.digest())


_worker: BatchEncoder | None = None


def start_worker(config: str, directory: str, stops: Sequence[int]) -> None:
    """Make this process ready for :func:`encode_in_worker`.

    Args:
        config: the job's configuration, as JSON.
        directory: of the model's tokenizer.
        stops: tokens that end an answer or a text.
    """
    # Late: the process that shares work out has them already, and a worker needs no more than these.
    from finetune_trainer.media_processor import find_processor  # noqa: PLC0415
    from finetune_trainer.tokenizer import load_tokenizer  # noqa: PLC0415
    from finetune_trainer.wording import find_wording  # noqa: PLC0415

    global _worker  # noqa: PLW0603 - a process's own
    parsed = TrainerConfig.model_validate_json(config)
    tokenizer = load_tokenizer(Path(directory), trust_remote_code=parsed.model.trust_remote_code)
    trusted = parsed.model.trust_remote_code
    media = find_processor(Path(directory), parsed.multimodal, trust_remote_code=trusted)
    tokens = None if media is None else media.tokens
    _worker = BatchEncoder(parsed, find_wording(parsed, tokenizer, tokens).encoder, stops, media)
    gc.freeze()  # see fill()


def encode_in_worker(batch: RowBatch) -> EncodedBatch:
    """:meth:`BatchEncoder.encode` by what :func:`start_worker` made."""
    if _worker is None:
        raise RuntimeError("the worker was not started")
    return _worker.encode(batch)
