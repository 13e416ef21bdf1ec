"""Live progress: one bar with step, loss, speed and time left on a terminal, plain lines elsewhere.

The same view serves ``finetune watch`` and ``finetune run``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType

from finetune_api.status import Progress
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from finetune_cli import words
from finetune_cli.console import out

_NARROW = 100


class ProgressView:
    """Shows a phase, its progress, and what happens meanwhile. A context manager."""

    def __init__(self, name: str, console: Console = out) -> None:
        self.console = console
        self.live = console.is_terminal
        self._name, self._phase, self._shown = name, "", ""
        columns = [
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=20 if console.width < _NARROW else 32),
            TextColumn("{task.fields[line]}", markup=False),
            TimeElapsedColumn(),
        ]
        self._bar = Bar(*columns, console=console, transient=True, refresh_per_second=4)
        self._task = self._bar.add_task(name, total=None, line="")
        self._context = contextlib.ExitStack()

    def __enter__(self) -> ProgressView:
        if self.live:
            self._context.enter_context(self._bar)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.close()

    def phase(self, phase: str) -> None:
        """What is going on now."""
        if phase == self._phase:
            return
        self._phase, self._shown = phase, ""
        if self.live:
            self._bar.reset(self._task, description=f"{self._name} {phase}", total=None, line="")
        else:
            self.say(phase)

    def doing(self, text: str) -> None:
        """What goes on while there is no progress to show; on a terminal alone, where it is overwritten."""
        if self.live and not self._shown:
            room = max(20, self.console.width - 60)
            self._bar.update(self._task, line=text[:room])

    def progress(self, progress: Progress) -> None:
        """How far it is."""
        line = describe(progress)
        if self.live:
            total = progress.total_steps or None
            self._bar.update(self._task, completed=progress.step, total=total, line=line)
        elif line != self._shown:
            self.say(f"{self._phase} {line}")
        self._shown = line

    def say(self, message: str, style: str = "") -> None:
        """A line that stays."""
        stamp = Text(f"{datetime.now().astimezone():%H:%M:%S} ", style="dim")
        self.console.print(Text.assemble(stamp, (message, style)))


def describe(progress: Progress) -> str:
    """``step 12/60 20% · loss 2.3100 · 160 tok/s · ETA 1m20s``, as far as it is known."""
    return " · ".join(_parts(progress))


def _parts(progress: Progress) -> Iterator[str]:
    total = progress.total_steps
    percent = f" {100 * progress.step // total}%" if total else ""
    yield f"step {progress.step}/{total or '?'}{percent}"
    if progress.loss is not None:
        yield f"loss {words.loss(progress.loss)}"
    if progress.eval_loss is not None:
        yield f"held-out {words.loss(progress.eval_loss)}"
    if progress.tokens_per_second is not None:
        yield f"{progress.tokens_per_second:,.0f} tok/s"
    if progress.eta_seconds is not None and progress.step < (total or 0):
        yield f"ETA {words.duration(progress.eta_seconds)}"
