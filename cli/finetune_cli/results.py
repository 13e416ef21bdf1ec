"""How a job ended, for a person: shared by ``watch``, ``run`` and ``get``."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.failures import REASONS, FailureReason
from finetune_api.status import DatasetStatus, Failure, Progress, Sample
from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_cli import words
from finetune_cli.console import out


def advice(reason: str) -> str:
    """What to change after a failure for ``reason``; empty for one that this version does not know."""
    try:
        return REASONS[FailureReason(reason)].advice
    except ValueError:
        return ""


def show_failure(failure: Failure, console: Console = out) -> None:
    """Reason, message, what to change, and the end of the log."""
    console.print(Text.assemble(("Failed: ", "bold red"), (failure.reason, "bold"), f"  {failure.message}"))
    what = advice(failure.reason)
    if what and what.rstrip(".") not in failure.message:
        console.print(Text(f"What to change: {what}"))
    if failure.log_tail:
        console.print(Text("End of the log:", style="dim"))
        console.print(Text(failure.log_tail.rstrip(), style="dim"))


def held_out(progress: Progress | None) -> str:
    """``2.9132 → 1.2210``, or nothing where no rows were held out."""
    if progress is None or progress.initial_eval_loss is None or progress.eval_loss is None:
        return ""
    return f"{words.loss(progress.initial_eval_loss)} → {words.loss(progress.eval_loss)}"


def show_samples(samples: Sequence[Sample], console: Console = out) -> None:
    """Each prompt with its answer before and after."""
    for sample in samples:
        table = Table.grid(padding=(0, 2), expand=False)
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold", max_width=max(40, min(console.width, 110) - 10))
        table.add_row("prompt", Text(sample.prompt, style="bold"))
        table.add_row("before", Text(sample.before if sample.before is not None else "(not asked)"))
        table.add_row("after", Text(sample.after if sample.after is not None else "(not asked)", style="green"))
        console.print(table)


def describe_dataset(found: DatasetStatus) -> str:
    """What the prepare step found in the data, in a line."""
    reused = ", prepared by an earlier job" if found.reused else ""
    return (
        f"{words.number(found.samples)} samples in {words.number(found.sequences)} sequences, "
        f"{words.number(found.validation_samples)} held out, {words.number(found.truncated)} truncated; "
        f"{words.number(found.tokens)} tokens, {words.number(found.supervised_tokens)} of them supervised{reused}"
    )
