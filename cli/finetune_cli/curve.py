"""The loss curve: read from a ``progress.jsonl`` and drawn in the terminal."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import plotext  # type: ignore[import-untyped]
from finetune_api.status import Progress
from pydantic import ValidationError
from rich.text import Text

from finetune_cli.errors import CliError

PROGRESS_FILE = "progress.jsonl"
WIDTH, HEIGHT = 78, 18


@dataclass
class Curve:
    """Losses by step. A step that was done twice, before and after a restart, counts as it was done last."""

    training: dict[int, float] = field(default_factory=dict)
    held_out: dict[int, float] = field(default_factory=dict)

    def add(self, progress: Progress) -> None:
        """Take one measurement."""
        if progress.initial_eval_loss is not None:
            self.held_out.setdefault(0, progress.initial_eval_loss)
        if progress.loss is not None and progress.step:
            self.training[progress.step] = progress.loss
        if progress.eval_loss is not None:
            self.held_out[progress.step] = progress.eval_loss

    def draw(self, width: int = WIDTH, height: int = HEIGHT) -> Text:
        """The picture, ``width`` x ``height`` characters at most. Needs two points at least; see :attr:`enough`."""
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plot_size(min(width, WIDTH), height - 1)
        if self.training:
            steps, losses = zip(*sorted(self.training.items()), strict=True)
            plotext.plot(steps, losses, marker="braille", color="cyan")
        if self.held_out:
            steps, losses = zip(*sorted(self.held_out.items()), strict=True)
            plotext.scatter(steps, losses, marker="●", color="orange")
        plotext.xlabel("step")
        drawn = Text.from_ansi(plotext.build())
        # plotext's own legend lies over the curve's beginning.
        legend = Text.assemble("     ", ("⠒⠒", "cyan"), " training loss   ", ("●", "orange1"), " held-out loss")
        return Text("\n").join([legend, *(line for line in drawn.split("\n") if line.plain.strip())])

    @property
    def enough(self) -> bool:
        """Whether there is a curve to draw."""
        return len(self.training) + len(self.held_out) > 1


def read_progress(line: str) -> Progress | None:
    """One line of a ``progress.jsonl``; None for one that is torn (the writer was killed) or says something else."""
    try:
        return Progress.model_validate_json(line)
    except ValidationError:
        return None


def read_curve(path: Path) -> Curve:
    """The curve in a ``progress.jsonl``, or in the one of a directory.

    Raises:
        CliError: there is no such file, or no losses in it.
    """
    file = path / PROGRESS_FILE if path.is_dir() else path
    curve = Curve()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{file}: cannot be read: {error}") from error
    for progress in filter(None, map(read_progress, lines)):
        curve.add(progress)
    if not curve.enough:
        raise CliError(f"{file}: fewer than two losses in it, so there is no curve yet")
    return curve
