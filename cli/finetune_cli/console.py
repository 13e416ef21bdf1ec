"""The terminal: results on standard output, everything about them on standard error."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

out = Console(highlight=False, soft_wrap=True)
"""Results. Rich reads COLUMNS, NO_COLOR and whether this is a terminal."""
err = Console(highlight=False, soft_wrap=True, stderr=True)
"""Notes and errors."""


def note(message: str) -> None:
    """Say something beside the result."""
    err.print(Text(message, style="dim"))


def fail(message: str) -> None:
    """Say what went wrong."""
    err.print(Text.assemble(("error: ", "bold red"), message))
