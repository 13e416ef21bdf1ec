"""``prepare``: fetch model and data, refuse what would fail later, tokenize once.

Runs without a GPU. What it makes lies in the cache by content, so that the next job with the same data, template
and tokenizer finds it there; ``prepare.json`` in the output tells train where.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from finetune_api.failures import ExitCode
from finetune_api.reports import TerminationReport
from finetune_api.status import DatasetStatus, DroppedRows, MemoryStatus, ModelStatus
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.base_model import BaseModel, inspect_model
from finetune_trainer.dequantize import trainable_weights
from finetune_trainer.encode import TOO_LONG, DroppedError, Encoded
from finetune_trainer.errors import TrainerError, writing_to
from finetune_trainer.files import sha256_file
from finetune_trainer.log import log
from finetune_trainer.memory import auto_without_estimate, describe, expected_memory, longest_sequence, read_shape
from finetune_trainer.packing import pack
from finetune_trainer.prepared import (
    LAYOUT,
    StoreWriter,
    new_store,
    prepared_directory,
    read_store,
    write_handover,
)
from finetune_trainer.samples import PROMPT_TOO_LONG, SampleEncoder, Unit
from finetune_trainer.sources import FoundSource, find_model, find_sources
from finetune_trainer.supported import check_supported
from finetune_trainer.templates import find_declared
from finetune_trainer.tokenizer import fingerprint, load_tokenizer
from finetune_trainer.volumes import check_writable
from finetune_trainer.wording import Wording, find_wording

_SAY_EVERY = 20_000
_LONG_TEXT = 240


def prepare(config: TrainerConfig) -> TerminationReport:
    """Make all that train needs and report what was found.

    Raises:
        TrainerError: what a person must change, and where.
    """
    check_supported(config)
    cache, output = Path(config.paths.cache), Path(config.paths.output)
    check_writable(output, "output")
    check_writable(cache, "cache")
    find_declared(config.template, config.chat_template)  # a wrong name shows before gigabytes are fetched
    sources = find_sources(config)
    found = find_model(config.model, cache)
    trusted = {
        "trust_remote_code": config.model.trust_remote_code,
        "allow_pickle": config.model.allow_pickle,
    }
    base = inspect_model(found.directory, **trusted)
    weights = trainable_weights(config, found.directory, found.digest)
    if weights != found.directory:
        base = inspect_model(weights, **trusted)
    model = ModelStatus(parameters=base.parameters, digest=found.digest, architecture=base.architecture)
    log.info("model %s: %s, %s parameters", config.model.uri, base.architecture, _number(base.parameters))
    shape = read_shape(weights, config.method, base.parameters)
    if shape is None and config.hyperparameters.micro_batch_size == "auto":
        raise auto_without_estimate(config)
    tokenizer = load_tokenizer(found.directory, trust_remote_code=config.model.trust_remote_code)
    wording = find_wording(config, tokenizer)

    digest = _digest(config, sources, wording, tokenizer)
    directory = prepared_directory(config, digest)
    store = read_store(directory)
    reused = store is not None
    if store is None:
        with writing_to(directory, "cache"), new_store(directory) as writer:
            _Filling(config, sources, wording.encoder).run(writer, tokenizer)
        store = read_store(directory)
        if store is None:
            raise TrainerError(
                ExitCode.PREPARED_DATA_MISSING, f"{directory} vanished as it was made; is the cache being cleaned?"
            )
    _check_fit(base, store)
    dataset = DatasetStatus.model_validate({**store["dataset"], "digest": digest, "reused": reused})
    _tell(dataset)
    handover = {
        "digest": digest,
        "dataset": dataset.to_dict(),
        "model": model.to_dict(),
        "chatTemplate": wording.chat_template,
        "stopTokenIds": list(wording.stop_token_ids),
        "replaceEos": wording.replace_eos,
        "eosToken": wording.eos_token,
    }
    with writing_to(output, "output"):
        write_handover(config, handover, weights)
    memory = None
    if shape is not None:
        expected = expected_memory(config, shape, longest_sequence(config, directory))
        log.info("memory: %s", describe(expected))
        memory = MemoryStatus(estimate=expected)
    return TerminationReport(step="prepare", dataset=dataset, model=model, memory=memory)


class _Filling:
    """One pass over all rows into a new store."""

    def __init__(self, config: TrainerConfig, sources: Sequence[FoundSource], encoder: SampleEncoder) -> None:
        self._config = config
        self._sources = sources
        self._encoder = encoder
        self._rows = 0
        self._truncated = 0
        self._highest = 0
        self._ranks = array("Q")
        self._starts = array("q", [0])
        self._dropped: dict[str, tuple[int, str]] = {}

    def run(self, writer: StoreWriter, tokenizer: Any) -> None:
        """Fill the store, or refuse.

        Raises:
            TrainerError: DATASET_INVALID, NO_SUPERVISED_TOKENS, TEMPLATE_INVALID.
        """
        for source in self._sources:
            for sample in source.samples():
                self._rows += 1
                if self._rows % _SAY_EVERY == 0:
                    log.info("tokenized %s rows", f"{self._rows:,}")
                try:
                    units = self._encoder.encode(sample)
                except DroppedError as error:
                    count, first = self._dropped.get(str(error), (0, sample.where))
                    self._dropped[str(error)] = (count + 1, first)
                    continue
                except TrainerError as error:
                    raise TrainerError(error.exit_code, f"{error} (met at {sample.where})") from error
                if not writer.lengths:
                    _show(units[0].samples[0], tokenizer)
                self._add(writer, units)
        self._refuse_nothing(writer)
        train, validation = self._split(len(self._ranks))
        numbers = self._config.hyperparameters
        if self._config.packing:
            train_sequences = pack(train, writer.lengths, self._config.max_length, seed=numbers.seed)
        else:
            train_sequences = self._members(train)
        trained = [member for members in train_sequences for member in members]
        status = DatasetStatus(
            samples=len(train),
            validation_samples=len(validation),
            dropped=self._dropped_rows(),
            truncated=self._truncated,
            tokens=sum(writer.lengths[i] for i in trained),
            supervised_tokens=sum(writer.supervised[i] for i in trained),
            sequences=len(train_sequences),
        )
        facts = {"dataset": status.to_dict(), "highestToken": self._highest, "longest": max(writer.lengths)}
        writer.finish(train_sequences, self._members(validation), facts)
        if writer.desirable and len(set(writer.desirable)) == 1:
            log.warning("every answer is %s: kto learns more from both kinds",
                        "desirable" if writer.desirable[0] else "undesirable")  # fmt: skip

    def _add(self, writer: StoreWriter, units: list[Unit]) -> None:
        hashed = hashlib.blake2b(f"{self._config.hyperparameters.seed}:".encode(), digest_size=8)
        for unit in units:
            for encoded in unit.samples:
                writer.add(encoded.ids, encoded.trained, desirable=unit.desirable, row=self._rows)
                self._highest = max(self._highest, int(encoded.ids.max()))
                hashed.update(encoded.ids.tobytes())
            self._truncated += unit.truncated
            self._starts.append(len(writer.lengths))
        self._ranks.extend([int.from_bytes(hashed.digest())] * len(units))

    def _members(self, units: np.ndarray) -> list[list[int]]:
        """The samples of each unit."""
        return [list(range(self._starts[unit], self._starts[unit + 1])) for unit in units]

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

    def _dropped_rows(self) -> list[DroppedRows]:
        most_first = sorted(self._dropped.items(), key=lambda item: (-item[1][0], item[0]))
        return [DroppedRows(reason=reason, count=count, first=first[:256]) for reason, (count, first) in most_first]

    def _refuse_nothing(self, writer: StoreWriter) -> None:
        names = ", ".join(source.source.uri for source in self._sources)
        if self._rows == 0:
            raise TrainerError(ExitCode.DATASET_INVALID, f"spec.dataset.sources: there are no rows in {names}")
        if sum(writer.supervised) > 0:
            return
        reasons = "; ".join(f"{row.reason}: {row.count} (first {row.first})" for row in self._dropped_rows())
        advice = (
            f"raise spec.dataset.maxLength, now {self._config.max_length}"
            if {TOO_LONG, PROMPT_TOO_LONG} & set(self._dropped)
            else "check format, columns and template"
        )
        raise TrainerError(
            ExitCode.NO_SUPERVISED_TOKENS,
            f"spec.dataset: of {self._rows} rows in {names} none has an answer to train on: {reasons}. To mend it, "
            f"{advice}",
        )


def _check_fit(base: BaseModel, store: dict[str, Any]) -> None:
    """The model must know every token that the data has.

    Raises:
        TrainerError: MODEL_INVALID.
    """
    highest, longest = store["highestToken"], store["longest"]
    if base.vocabulary is not None and highest >= base.vocabulary:
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            f"spec.model.source: the tokenizer makes token {highest}, and the model knows {base.vocabulary} "
            "(vocab_size in config.json): they do not belong together",
        )
    if base.longest is not None and longest > base.longest:
        log.warning("the longest sample has %s tokens, and the model was made for %s", longest, base.longest)


def _digest(config: TrainerConfig, sources: Sequence[FoundSource], wording: Wording, tokenizer: Any) -> str:
    """Hash of all that the prepared data follows from, and of no path."""
    facts = {
        "layout": LAYOUT,
        "tokenizer": fingerprint(tokenizer),
        "wording": wording.facts,
        "maxLength": config.max_length,
        "packing": config.packing,
        "validation": config.validation.fraction,
        "seed": config.hyperparameters.seed,
        "sources": [
            {
                "format": found.source.format,
                "columns": found.source.columns,
                "files": [[file.name, sha256_file(file)] for file in found.files],
            }
            for found in sources
        ],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _show(encoded: Encoded, tokenizer: Any) -> None:
    """The first sample with its trained text apart: a wrong template or column shows at a glance."""
    said = tokenizer.decode(encoded.ids[encoded.trained])
    shown = said if len(said) <= _LONG_TEXT else f"{said[:_LONG_TEXT]}…"
    log.info("first sample: %s tokens, trained on %s: %r", len(encoded.ids), int(encoded.trained.sum()), shown)


def _tell(dataset: DatasetStatus) -> None:
    log.info(
        "data%s: %s samples in %s sequences, %s tokens, %s supervised; %s held out, %s truncated",
        " (prepared before)" if dataset.reused else "",
        f"{dataset.samples:,}",
        f"{dataset.sequences:,}",
        f"{dataset.tokens:,}",
        f"{dataset.supervised_tokens:,}",
        f"{dataset.validation_samples:,}",
        f"{dataset.truncated:,}",
    )
    for row in dataset.dropped:
        log.warning("left out %s rows: %s, first %s", row.count, row.reason, row.first)


def _number(value: int | None) -> str:
    return "an unknown number of" if value is None else f"{value:,}"
