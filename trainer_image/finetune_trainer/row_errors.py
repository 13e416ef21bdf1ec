"""What can be wrong with a row: each fault is of a kind, by which it is counted where bad rows are left out."""

from __future__ import annotations

from typing import Any

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError

NOT_JSON = "malformed JSON"
NOT_TEXT = "not UTF-8, or not text"
TOO_LONG_ROW = "row too long"
DUPLICATE = "duplicate keys"
NOT_A_ROW = "not an object"
CELLS = "cells that do not fit the header"
MISSING = "missing field"
WRONG_TYPE = "field of a wrong type"
EMPTY = "empty field or turn"
ROLE = "unknown role"
ORDER = "turns out of order"
TOOLS = "malformed tools or calls"
THOUGHT = "malformed chain of thought"
MEDIA = "images, videos or audio"
MEDIA_COUNT = "placeholders and media that differ in number"
MEDIA_FILE = "unreadable images, videos or audio"


class RowError(TrainerError):
    """A row that cannot be read: DATASET_INVALID, unless bad rows are left out and counted."""

    def __init__(self, where: str, problem: str, reason: str) -> None:
        super().__init__(ExitCode.DATASET_INVALID, f"{where}: {problem}")
        self.where = where
        self.problem = problem
        self.reason = reason
        """What is counted; the same for all rows with this fault."""

    def __reduce__(self) -> tuple[type[RowError], tuple[Any, ...]]:
        """For workers, which hand errors over as bytes."""
        return type(self), (self.where, self.problem, self.reason)


def invalid(where: str, problem: str, reason: str) -> RowError:
    """The refusal of the row at ``where``."""
    return RowError(where, problem, reason)
