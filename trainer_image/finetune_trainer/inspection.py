"""``finetune inspect``: what prepare would make of a job's data, told at length and kept nowhere.

Run as a program it writes a JSON report, or what is wrong, into a file. Of the model only the tokenizer is needed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer import log as logs
from finetune_trainer import surroundings
from finetune_trainer.cli import read_config
from finetune_trainer.errors import TrainerError
from finetune_trainer.log import log
from finetune_trainer.supported import check_supported

_BARS = 16
_RUN = 4
"""Equal tokens in a row that are counted rather than shown."""


def inspect(config: TrainerConfig, *, count: int, picture: Path | None = None) -> dict[str, Any]:
    """Statistics, a histogram of lengths, and ``count`` samples with what of them is trained.

    Args:
        config: the job's; nothing is written to its output.
        count: samples to show, spread evenly over the data, the first one among them.
        picture: PNG to draw the histogram into.

    Returns:
        ``dataset`` (as ``status.dataset``), ``lengths`` (tokens a sample: quantiles, ``edges`` and ``counts``),
        ``packed`` (what packing to ``maxLength`` gives), ``samples`` (``row``, ``where``, ``tokens``, ``trained`` and
        ``pieces``, each with its ``text`` and whether it is ``trained``).

    Raises:
        TrainerError: as :func:`finetune_trainer.prepare.prepare`, of the data and the template.
    """
    # Late: the Hugging Face libraries read their environment when they are imported.
    from finetune_trainer.base_model import ending_tokens  # noqa: PLC0415
    from finetune_trainer.filling import fill  # noqa: PLC0415
    from finetune_trainer.media_processor import find_processor  # noqa: PLC0415
    from finetune_trainer.picture import draw_lengths  # noqa: PLC0415
    from finetune_trainer.prepared import StoreWriter, sample_store  # noqa: PLC0415
    from finetune_trainer.sources import find_sources, find_tokenizer  # noqa: PLC0415
    from finetune_trainer.tokenizer import load_tokenizer, vocabulary_size  # noqa: PLC0415
    from finetune_trainer.wording import find_wording  # noqa: PLC0415

    check_supported(config)
    cache = Path(config.paths.cache)
    sources = find_sources(config)
    directory = find_tokenizer(config.model, cache)
    tokenizer = load_tokenizer(directory, trust_remote_code=config.model.trust_remote_code)
    trusts = config.model.trust_remote_code
    media = find_processor(directory, config.multimodal, trust_remote_code=trusts)
    wording = find_wording(config, tokenizer, None if media is None else media.tokens)
    with tempfile.TemporaryDirectory(prefix="finetune-inspect-") as scratch:
        with StoreWriter(Path(scratch), vocabulary=vocabulary_size(tokenizer)) as writer:
            dataset = fill(
                writer,
                config,
                sources,
                wording.encoder,
                tokenizer,
                tokenizer_directory=directory,
                stops=[*wording.stop_token_ids, *ending_tokens(directory)],
                media=media,
            )
        store = sample_store(Path(scratch))
        lengths = _lengths(store.lengths, config.max_length)
        if picture is not None:
            draw_lengths(lengths["edges"], lengths["counts"], config.max_length, picture)
        chosen = [round(index * (len(store) - 1) / max(1, count - 1)) for index in range(min(count, len(store)))]
        samples = [_sample(*store[number], tokenizer) for number in chosen]
        places = _places(sources, [sample["row"] for sample in samples])
        return {
            "maxLength": config.max_length,
            "dataset": dataset.to_dict(),
            "lengths": lengths,
            "packed": _packed(store.lengths, config),
            "samples": [sample | {"where": places[sample["row"]]} for sample in samples],
        }


def _lengths(lengths: Any, limit: int) -> dict[str, Any]:
    import numpy as np  # noqa: PLC0415

    values = np.asarray(lengths)
    edges = np.unique(np.linspace(0, max(limit, int(values.max())) + 1, _BARS + 1).round().astype(int))
    counts, _ = np.histogram(values, bins=edges)
    quantiles = np.quantile(values, [0, 0.5, 0.9, 0.99, 1], method="inverted_cdf").astype(int).tolist()
    return {
        **dict(zip(("least", "median", "p90", "p99", "most"), quantiles, strict=True)),
        "mean": round(float(values.mean()), 1),
        "edges": edges.tolist(),
        "counts": counts.tolist(),
    }


def _packed(lengths: Any, config: TrainerConfig) -> dict[str, Any] | None:
    """None for stages whose samples are compared whole."""
    import numpy as np  # noqa: PLC0415
    from finetune_api.stages import PREFERENCE_STAGES  # noqa: PLC0415

    from finetune_trainer.packing import filled, pack  # noqa: PLC0415

    if config.stage in PREFERENCE_STAGES:
        return None
    sequences = pack(np.arange(len(lengths)), lengths, config.max_length, seed=config.hyperparameters.seed)
    return {"sequences": len(sequences), "filled": round(filled(sequences, lengths, config.max_length), 4)}


def _sample(ids: Any, trained: Any, row: int, tokenizer: Any) -> dict[str, Any]:
    from finetune_trainer.tokenizer import special_tokens  # noqa: PLC0415

    words = special_tokens(tokenizer)
    pieces: list[dict[str, Any]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or trained[end] != trained[start]:
            text = shortened(tokenizer.decode(ids[start:end]), words)
            pieces.append({"text": text, "trained": bool(trained[start])})
            start = end
    return {"row": row, "tokens": len(ids), "trained": int(trained.sum()), "pieces": pieces}


def shortened(text: str, words: Sequence[str]) -> str:
    """``text`` with runs of one of ``words`` counted: an image has hundreds of the same token."""
    if not words:
        return text
    run = re.compile(rf"({'|'.join(map(re.escape, words))})\1{{{_RUN - 1},}}")
    return run.sub(lambda found: f"{found[1]}(x{len(found[0]) // len(found[1])})", text)


def _places(sources: Sequence[Any], rows: Sequence[int]) -> dict[int, str]:
    """File and row of the rows with these numbers, which count from 1 over all sources."""
    wanted, found = set(rows), {}
    every = (raw for source in sources for raw in source.rows())
    for number, raw in enumerate(islice(every, max(rows, default=0)), start=1):
        if number in wanted:
            found[number] = raw.where
    return found


def main(arguments: list[str] | None = None) -> None:
    """Entry point; never returns."""
    parser = argparse.ArgumentParser(prog="finetune-inspect", description="Look at the data of one FineTuneJob.")
    parser.add_argument("--config", type=Path, required=True, help="the trainer's configuration (JSON)")
    parser.add_argument("--report", type=Path, required=True, help="file for the report (JSON)")
    parser.add_argument("--samples", type=int, default=3, help="how many samples to show")
    parser.add_argument("--png", type=Path, help="picture of the lengths")
    chosen = parser.parse_args(arguments)
    logs.set_up()
    code = ExitCode.OK
    try:
        config = read_config(chosen.config)
        surroundings.set_up(Path(config.paths.cache))
        report = inspect(config, count=chosen.samples, picture=chosen.png)
    except TrainerError as error:
        log.error("%s", error)
        code, report = error.exit_code, {"error": str(error)}
    chosen.report.write_text(json.dumps(report, ensure_ascii=False), encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
