"""The one error that ends a command: a sentence for the person at the terminal."""

from __future__ import annotations


class CliError(Exception):
    """What is wrong, where, and what to do. :func:`finetune_cli.main.app` prints it and exits with ``exit_code``."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
