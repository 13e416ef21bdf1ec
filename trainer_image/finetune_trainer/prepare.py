"""``prepare``: fetch model and data, refuse what would fail later, tokenize once.

Runs without a GPU. What it makes lies in the cache by content, so that the next job with the same data, template
and tokenizer finds it there; ``prepare.json`` in the output tells train where.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.reports import TerminationReport
from finetune_api.status import DatasetStatus, MemoryStatus, ModelStatus
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.base_model import BaseModel, ending_tokens, inspect_model
from finetune_trainer.dequantize import as_packed, trainable_weights
from finetune_trainer.errors import TrainerError, writing_to
from finetune_trainer.files import sha256_file
from finetune_trainer.filling import fill
from finetune_trainer.log import log
from finetune_trainer.media_processor import MediaProcessor, find_processor
from finetune_trainer.media_reader import media_facts
from finetune_trainer.memory import (
    auto_without_estimate,
    describe,
    describe_fits,
    expected_memory,
    longest_sequence,
    read_shape,
)
from finetune_trainer.prepared import (
    LAYOUT,
    new_store,
    prepared_directory,
    read_store,
    write_handover,
)
from finetune_trainer.sources import FoundSource, find_model, find_sources
from finetune_trainer.streams import StreamedFile
from finetune_trainer.supported import check_supported
from finetune_trainer.templates import find_declared
from finetune_trainer.tokenizer import fingerprint, load_tokenizer, vocabulary_size
from finetune_trainer.volumes import check_writable
from finetune_trainer.wording import Wording, find_wording


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
    config = as_packed(config, weights)
    model = ModelStatus(parameters=base.parameters, digest=found.digest, architecture=base.architecture)
    log.info("model %s: %s, %s parameters", config.model.uri, base.architecture, _number(base.parameters))
    shape = read_shape(weights, config.method, base.parameters)
    if shape is None and config.hyperparameters.micro_batch_size == "auto":
        raise auto_without_estimate(config)
    tokenizer = load_tokenizer(found.directory, trust_remote_code=config.model.trust_remote_code)
    trusts = config.model.trust_remote_code
    media = find_processor(found.directory, config.multimodal, trust_remote_code=trusts)
    wording = find_wording(config, tokenizer, None if media is None else media.tokens)

    # Where a conversation ends with calls, the token behind them may be one that the base alone knows as an end.
    ends = tuple(dict.fromkeys([*wording.stop_token_ids, *ending_tokens(found.directory)]))
    facts = _facts(config, sources, wording, tokenizer, (ends, media))
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    directory = prepared_directory(config, digest)
    store = read_store(directory)
    reused = store is not None
    if store is None:
        with writing_to(directory, "cache"), new_store(directory, vocabulary=vocabulary_size(tokenizer)) as writer:
            writer.origin = facts
            fill(
                writer,
                config,
                sources,
                wording.encoder,
                tokenizer,
                tokenizer_directory=found.directory,
                stops=ends,
                media=media,
            )
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
        longest = longest_sequence(config, directory)
        expected = expected_memory(config, shape, longest)
        log.info("memory: %s", describe(expected))
        log.info("GPUs that hold the job: %s", describe_fits(config, shape, longest))
        memory = MemoryStatus(estimate=expected)
    return TerminationReport(step="prepare", dataset=dataset, model=model, memory=memory)


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


def _facts(
    config: TrainerConfig,
    sources: Sequence[FoundSource],
    wording: Wording,
    tokenizer: Any,
    model: tuple[Sequence[int], MediaProcessor | None],
) -> dict[str, Any]:
    """All that the prepared data follows from, and no path: its hash names them, and the manifest holds it.

    ``model`` gives the tokens that end an answer, and what makes ids of media.
    """
    ends, media = model
    return {
        "layout": LAYOUT,
        "tokenizer": fingerprint(tokenizer),
        "wording": wording.facts,
        "ends": sorted(ends),
        "maxLength": config.max_length,
        "packing": config.packing,
        "validation": config.validation.fraction,
        "seed": config.hyperparameters.seed,
        "onError": config.on_error,
        "media": None if media is None else [media.fingerprint, media_facts(sources, media)],
        "sources": [
            {
                "format": found.source.format,
                "weight": found.source.weight,
                "columns": found.source.columns,
                "maxSamples": found.source.max_samples,
                "files": [[file.name, _content(file)] for file in found.files],
            }
            for found in sources
        ],
    }


def _content(file: Path | StreamedFile) -> str | list[Any]:
    return sha256_file(file) if isinstance(file, Path) else file.identity


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
        log.warning("left out %s rows: %s, first %s", row.count, row.reason, "; ".join(row.examples) or row.first)
    for row in dataset.truncations:
        log.warning("cut %s samples: %s, first %s", row.count, row.reason, ", ".join(row.examples))
    for source in dataset.sources:
        log.info("of %s: %s rows, %s samples in an epoch", source.uri, f"{source.rows:,}", f"{source.samples:,}")


def _number(value: int | None) -> str:
    return "an unknown number of" if value is None else f"{value:,}"
