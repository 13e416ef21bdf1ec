"""``finetune inspect``: a job's data as the trainer will see it, before anything is trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finetune_api.status import DatasetStatus
from rich.table import Table
from rich.text import Text

from finetune_cli import words
from finetune_cli.console import note, out
from finetune_cli.documents import read_documents
from finetune_cli.errors import CliError
from finetune_cli.local_job import cache_directory, find_job, plan
from finetune_cli.results import describe_dataset
from finetune_cli.run import require_trainer

TRAINER = (sys.executable, "-m", "finetune_trainer.inspection")
TRAINED, PROMPT = "bold green", "dim"
_BAR_WIDTH = 50
_TAIL_LINES = 20
_LONGEST_TEXT = 4000


def inspect(
    paths: list[str],
    *,
    job: str | None,
    samples: int,
    png: Path | None,
    as_json: bool,
    cache: Path | None = None,
    trainer: Sequence[str] = TRAINER,
) -> None:
    """Print what the data of the one job in ``paths`` come to.

    Args:
        paths: files, directories, or ``-``.
        job: name of the FineTuneJob, where there are several.
        samples: how many to show.
        png: file for a picture of the lengths.
        as_json: print the report itself.
        cache: directory of models and data; None: see :func:`cache_directory`.
        trainer: command line of the inspection.

    Raises:
        CliError: the data cannot be trained on, for a reason that is told; or the trainer's libraries are missing.
    """
    documents = read_documents(paths)
    _, found = find_job(documents, job)
    if tuple(trainer) == TRAINER:
        require_trainer()
    with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
        work = Path(scratch)
        made = plan(found, documents, output=work / "output", cache=(cache or cache_directory()).absolute(), work=work)
        made.lay_out()
        for line in made.notes:
            note(line)
        (work / "config.json").write_text(made.config.to_json())
        command = [*trainer, "--config", str(work / "config.json"), "--report", str(work / "report.json")]
        command += ["--samples", str(samples), *(["--png", str(png.absolute())] if png else [])]
        report = _run(command, work / "report.json")
    if as_json:
        out.print(json.dumps(report, indent=2, ensure_ascii=False), markup=False)
        return
    show(found.metadata.name, report)
    if png is not None:
        note(f"the histogram is in {png}")


def _run(command: Sequence[str], report: Path) -> dict[str, Any]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"}
    try:
        ended = subprocess.run(
            list(command), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise CliError(f"{command[0]} cannot be started: {error.strerror}") from error
    try:
        told: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        tail = "\n".join((ended.stdout + ended.stderr).splitlines()[-_TAIL_LINES:])
        raise CliError(f"the inspection ended with exit code {ended.returncode} and no report:\n{tail}") from error
    if "error" in told:
        raise CliError(str(told["error"]))
    return told


def show(name: str, report: dict[str, Any]) -> None:
    """Print ``report``: figures, histogram, what was left out, samples."""
    dataset = DatasetStatus.model_validate(report["dataset"])
    out.print(Text.assemble((f"{name}: ", "bold"), describe_dataset(dataset)))
    for source in dataset.sources:
        share = 100 * source.samples / max(1, dataset.samples)
        out.print(Text(f"  {source.uri}: {words.number(source.rows)} rows, {words.number(source.samples)} samples an "
                       f"epoch ({share:.1f} %)"))  # fmt: skip
    lengths = report["lengths"]
    out.print(Text(f"tokens a sample: {lengths['least']} to {lengths['most']}, mean {lengths['mean']}, median "
                   f"{lengths['median']}, 90 % up to {lengths['p90']}, 99 % up to {lengths['p99']}"))  # fmt: skip
    if packed := report["packed"]:
        out.print(Text(f"packed to {report['maxLength']}: {words.number(packed['sequences'])} sequences, "
                       f"{100 * packed['filled']:.1f} % filled"))  # fmt: skip
    out.print(histogram(lengths["edges"], lengths["counts"]))
    for title, rows in (("left out", dataset.dropped), ("cut", dataset.truncations)):
        for row in rows:
            examples = "; ".join(row.examples) or row.first or ""
            out.print(Text.assemble((f"{title} {words.number(row.count)}: ", "yellow"), f"{row.reason} ({examples})"))
    if report["samples"]:
        legend = Text.assemble("samples: ", ("trained", TRAINED), " and ", ("not trained", PROMPT))
        out.print(legend if out.color_system else Text("samples: what is trained stands in ⟦ ⟧"))
    for sample in report["samples"]:
        out.print(Text(f"— {sample['where']}: {sample['tokens']} tokens, {sample['trained']} trained", style="cyan"))
        out.print(coloured(sample["pieces"], plain=out.color_system is None))


def histogram(edges: Sequence[int], counts: Sequence[int]) -> Table:
    """A bar for each range of lengths."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", style="dim", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right")
    most = max([*counts, 1])
    for start, end, count in zip(edges, edges[1:], counts, strict=False):
        eighths = -(-8 * _BAR_WIDTH * count // most)  # a single sample shows, too
        bar = "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]
        table.add_row(f"{start}-{end - 1}", Text(bar, style="cyan"), words.number(count))
    return table


def coloured(pieces: Sequence[dict[str, Any]], *, plain: bool = False) -> Text:
    """A sample's text, what is trained apart from the rest; the middle of a very long piece is left out.

    Args:
        pieces: each with ``text`` and ``trained``.
        plain: set it apart by brackets, where there are no colours.
    """
    text = Text()
    for piece in pieces:
        said = piece["text"]
        if len(said) > _LONGEST_TEXT:
            half = _LONGEST_TEXT // 2
            said = f"{said[:half]} … {len(said) - _LONGEST_TEXT} characters … {said[-half:]}"
        if plain and piece["trained"]:
            said = f"⟦{said}⟧"
        text.append(said, style=TRAINED if piece["trained"] else PROMPT)
    return text
