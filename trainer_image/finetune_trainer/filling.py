"""One pass over all rows into a new store: tokens to the disk as they come, and what is known of them to the status."""

from __future__ import annotations

import gc
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.failures import ExitCode
from finetune_api.status import DatasetStatus, DroppedRows, SourceStatus
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.encode import TOO_LONG
from finetune_trainer.encoding_pool import encoded_batches, processes_for
from finetune_trainer.errors import TrainerError
from finetune_trainer.log import log
from finetune_trainer.media_processor import MediaProcessor
from finetune_trainer.mixing import MANY_TIMES, mix
from finetune_trainer.packing import Sequences, pack
from finetune_trainer.prepared import StoreWriter
from finetune_trainer.row_batches import BatchEncoder, EncodedBatch, LeftOut, RowBatch, batched
from finetune_trainer.samples import PROMPT_TOO_LONG, SampleEncoder
from finetune_trainer.sources import FoundSource

_SAY_EVERY = 20_000
_LONG_TEXT = 240
_LONG_URI = 256
_EXAMPLES = 3


def fill(
    writer: StoreWriter,
    config: TrainerConfig,
    sources: Sequence[FoundSource],
    encoder: SampleEncoder,
    tokenizer: Any,
    *,
    tokenizer_directory: Path,
    stops: Sequence[int],
    media: MediaProcessor | None = None,
    processes: int | None = None,
) -> DatasetStatus:
    """Tokenize ``sources`` into ``writer``'s store and say what came of them.

    Args:
        writer: of a new store.
        config: the job's.
        sources: its data.
        encoder: of the job's wording.
        tokenizer: of the model.
        tokenizer_directory: where further processes find it.
        stops: tokens that end an answer or a text; each row must train one of them.
        media: of a model that takes more than text.
        processes: how many; as many as are worth while unless given.

    Raises:
        TrainerError: DATASET_INVALID, NO_SUPERVISED_TOKENS, TEMPLATE_INVALID.
    """
    count = processes or processes_for(sum(source.size for source in sources))
    here = BatchEncoder(config, encoder, stops, media)
    filling = _Filling(writer, config, sources, tokenizer)
    read = chain.from_iterable(batched(index, source.rows()) for index, source in enumerate(sources))
    # The libraries' million objects stay: looking through them for garbage costs a fifth of the time.
    gc.freeze()
    try:
        for batch in encoded_batches(config, tokenizer_directory, here, _log_progress(read), count):
            filling.take(batch)
    finally:
        gc.unfreeze()
    return filling.finish()


def _log_progress(batches: Iterator[RowBatch]) -> Iterator[RowBatch]:
    rows = 0
    for batch in batches:
        if rows // _SAY_EVERY < (rows + len(batch.rows)) // _SAY_EVERY:
            log.info("tokenizing row %s", f"{rows + len(batch.rows):,}")
        rows += len(batch.rows)
        yield batch


class _LeftOutRows:
    """Counts by reason, with the first of each."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, list[LeftOut]] = {}

    def add(self, rows: list[LeftOut]) -> None:
        for row in rows:
            self._counts[row.reason] = self._counts.get(row.reason, 0) + 1
            first = self._first.setdefault(row.reason, [])
            if len(first) < _EXAMPLES:
                first.append(row)

    @property
    def total(self) -> int:
        return sum(self._counts.values())

    def __contains__(self, reason: str) -> bool:
        return reason in self._counts

    def status(self) -> list[DroppedRows]:
        """Most first."""
        order = sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))
        return [
            DroppedRows(
                reason=reason,
                count=count,
                first=self._first[reason][0].where[:256],
                examples=[(f"{row.where}: {row.detail}" if row.detail else row.where)[:256]
                          for row in self._first[reason]],
            )
            for reason, count in order
        ]  # fmt: skip


class _Filling:
    def __init__(
        self,
        writer: StoreWriter,
        config: TrainerConfig,
        sources: Sequence[FoundSource],
        tokenizer: Any,
    ) -> None:
        self._writer = writer
        self._config = config
        self._sources = sources
        self._tokenizer = tokenizer
        self._rows = [0] * len(sources)
        self._highest = 0
        # One entry a unit: what belongs into one sequence where nothing is packed.
        self._ranks = array("Q")
        self._starts = array("q", [0])
        self._of_source = array("h")
        self._dropped = _LeftOutRows()
        self._truncated = _LeftOutRows()

    def take(self, batch: EncodedBatch) -> None:
        """Write a batch."""
        before = sum(self._rows)
        self._rows[batch.source] += batch.rows
        self._dropped.add(batch.dropped)
        self._truncated.add(batch.truncated)
        if not batch.units:
            return
        if not self._writer.lengths:
            length = batch.units[0].lengths[0]
            _show(batch.ids[:length], batch.trained[:length], self._tokenizer)
        lengths = [length for unit in batch.units for length in unit.lengths]
        rows = [before + unit.row + 1 for unit in batch.units for _ in unit.lengths]
        desirable = [unit.desirable for unit in batch.units for _ in unit.lengths if unit.desirable is not None]
        self._writer.extend(batch.ids, batch.trained, lengths, desirable=desirable, rows=rows, media=batch.media)
        self._highest = max(self._highest, int(batch.ids.max()))
        for unit in batch.units:
            self._starts.append(self._starts[-1] + len(unit.lengths))
            self._ranks.append(unit.rank)
            self._of_source.append(batch.source)

    def finish(self) -> DatasetStatus:
        """Share the samples out to sequences and complete the store."""
        self._refuse_nothing()
        numbers, writer = self._config.hyperparameters, self._writer
        train, validation = self._split(len(self._ranks))
        of_source = np.frombuffer(self._of_source, dtype=np.int16)
        weights = [source.source.weight for source in self._sources]
        self._warn_of_repeats(train, mixed := mix(train, of_source, weights, seed=numbers.seed))
        if self._config.packing:
            sequences = pack(mixed, writer.lengths, self._config.max_length, seed=numbers.seed)
        else:
            sequences = self._members(mixed)
        status = DatasetStatus(
            samples=len(mixed),
            validation_samples=len(validation),
            dropped=self._dropped.status(),
            truncated=self._truncated.total,
            truncations=self._truncated.status(),
            tokens=_total(writer.lengths, sequences),
            supervised_tokens=_total(writer.supervised, sequences),
            sequences=len(sequences),
            sources=self._by_source(of_source[mixed]),
        )
        facts = {"dataset": status.to_dict(), "highestToken": self._highest, "longest": max(writer.lengths)}
        writer.finish(sequences, self._members(validation), facts)
        if writer.desirable and len(set(writer.desirable)) == 1:
            log.warning("every answer is %s: kto learns more from both kinds",
                        "desirable" if writer.desirable[0] else "undesirable")  # fmt: skip
        return status

    def _by_source(self, used: np.ndarray) -> list[SourceStatus]:
        if len(self._sources) == 1:
            return []
        counts = np.bincount(used, minlength=len(self._sources)).tolist()
        return [
            SourceStatus(uri=source.source.uri[:_LONG_URI], rows=rows, samples=count)
            for source, rows, count in zip(self._sources, self._rows, counts, strict=True)
        ]

    def _warn_of_repeats(self, train: np.ndarray, mixed: np.ndarray) -> None:
        of_source = np.frombuffer(self._of_source, dtype=np.int16)
        for index, source in enumerate(self._sources):
            there, used = (int((of_source[units] == index).sum()) for units in (train, mixed))
            if used > MANY_TIMES * there:
                log.warning(
                    "each sample of %s is trained on %.1f times in an epoch to fill its share; lower its weight",
                    source.source.uri, used / there,
                )  # fmt: skip

    def _members(self, units: np.ndarray) -> Sequences:
        """The samples of each unit."""
        starts = np.asarray(self._starts, dtype=np.int64)
        counts = np.diff(starts)[units]
        # Within a unit they follow each other: each sample's number is its unit's first, and its place in the unit.
        firsts = np.repeat(starts[units] - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
        return Sequences.of(firsts + np.arange(counts.sum()), counts)

    def _split(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the units to train on and to hold out: by a hash of the row's content and the seed, so that a row
        stays where it is when others come or go, and one text at most is on both sides."""
        fraction = self._config.validation.fraction
        held_out = min(count - 1, max(1, round(fraction * count))) if fraction > 0 else 0
        if fraction > 0 and held_out == 0:
            log.warning("one sample alone: none is held out, and there will be no held-out loss")
        order = np.argsort(np.frombuffer(self._ranks, dtype=np.uint64), kind="stable")
        chosen = np.sort(order[:held_out])
        return np.setdiff1d(np.arange(count, dtype=np.int64), chosen), chosen

    def _refuse_nothing(self) -> None:
        for index, source in enumerate(self._sources):
            if self._rows[index] == 0:
                raise TrainerError(
                    ExitCode.DATASET_INVALID,
                    f"spec.dataset.sources[{index}].uri: there are no rows in {source.source.uri}",
                )
        if sum(self._writer.supervised) > 0:
            return
        names = ", ".join(source.source.uri for source in self._sources)
        reasons = "; ".join(f"{row.reason}: {row.count} (first {row.first})" for row in self._dropped.status())
        advice = (
            f"raise spec.dataset.maxLength, now {self._config.max_length}"
            if TOO_LONG in self._dropped or PROMPT_TOO_LONG in self._dropped
            else "check format, columns and template"
        )
        raise TrainerError(
            ExitCode.NO_SUPERVISED_TOKENS,
            f"spec.dataset: of {sum(self._rows)} rows in {names} none has an answer to train on: {reasons}. To mend "
            f"it, {advice}",
        )


def _total(values: Sequence[int], sequences: Sequences) -> int:
    """Sum over all samples of ``sequences``, each as often as it is there."""
    return int(np.asarray(values, dtype=np.int64)[sequences.members].sum())


def _show(ids: np.ndarray, trained: np.ndarray, tokenizer: Any) -> None:
    """The first sample with its trained text apart: a wrong template or column shows at a glance."""
    said = tokenizer.decode(ids[trained])
    shown = said if len(said) <= _LONG_TEXT else f"{said[:_LONG_TEXT]}…"
    log.info("first sample: %s tokens, trained on %s: %r", len(ids), int(trained.sum()), shown)
