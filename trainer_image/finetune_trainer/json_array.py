"""A JSON array read item by item: a set of gigabytes in one array needs the memory of one item."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError
from finetune_trainer.row_errors import DUPLICATE, TOO_LONG_ROW, RowError, invalid

_CHUNK = 2**20
_SPACE = " \t\n\r"


class _DuplicateKeyError(Exception):
    """The message is the key."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateKeyError(next(name for name in names if names.count(name) > 1))
    return parsed


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct)
_ANY = json.JSONDecoder()


def array_items(name: str, stream: BinaryIO, limit: int) -> Iterator[tuple[int, Any]]:
    """Number, from 1, and value of each item; where only the item is wrong, a :class:`RowError` in its place.

    Args:
        name: of the file, for a person.
        stream: at its beginning.
        limit: characters that an item may have.

    Raises:
        TrainerError: DATASET_INVALID; what follows cannot be told apart any more.
    """
    yield from _Array(name, stream, limit).items()


class _Array:
    def __init__(self, name: str, stream: BinaryIO, limit: int) -> None:
        self._name = name
        self._stream = stream
        self._limit = limit
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._bad_byte: int | None = None
        self._read = 0
        self._ended = False
        self._text = ""
        self._at = 0
        self._line, self._column = 1, 1
        self._number = 0

    def items(self) -> Iterator[tuple[int, Any]]:
        self._expect("[")
        if self._next() == "]":
            self._move(self._at + 1)
            self._end()
            return
        while True:
            self._number += 1
            yield self._number, self._item()
            if self._next() != ",":
                break
            self._move(self._at + 1)
        self._expect("]")
        self._end()

    def _item(self) -> Any:
        self._next()
        wanted = _CHUNK
        while True:
            try:
                value, end = self._decoded()
            except json.JSONDecodeError as error:
                # An item that is cut off fails like one that is malformed: only more of the file tells.
                if len(self._text) - self._at > self._limit:
                    raise self._fault(f"is longer than {self._limit // 2**20} MiB, or malformed: {error.msg}") from None
                if not self._more(wanted):
                    self._move(error.pos)
                    raise self._fault(f"is not JSON: {error.msg}") from error
                wanted *= 2  # else a long item is tried once for each chunk
                continue
            except (ValueError, RecursionError) as error:
                raise self._fault(f"is JSON beyond all bounds: {error}") from error
            cut_off = isinstance(value, (int, float)) and self._text[end : end + 1] not in (*_SPACE, ",", "]")
            if cut_off and self._more(wanted):
                continue  # a number may go on
            size = end - self._at
            self._move(end)
            if size > self._limit:
                return invalid(self._where, f"is longer than {self._limit // 2**20} MiB", TOO_LONG_ROW)
            return value

    def _decoded(self) -> tuple[Any, int]:
        try:
            return _DECODER.raw_decode(self._text, self._at)
        except _DuplicateKeyError as error:
            _, end = _ANY.raw_decode(self._text, self._at)
            return self._twice(error), end

    def _twice(self, error: _DuplicateKeyError) -> RowError:
        return invalid(self._where, f"has the key {str(error)!r} twice", DUPLICATE)

    def _next(self) -> str:
        """The next character that is no space, which is not taken; empty at the end."""
        while True:
            end = self._at
            while end < len(self._text) and self._text[end] in _SPACE:
                end += 1
            self._move(end)
            if end < len(self._text) or not self._more(_CHUNK):
                return self._text[end : end + 1]

    def _expect(self, mark: str) -> None:
        found = self._next()
        if found != mark:
            what = f"{found!r}" if found else "the end of the file"
            raise self._fault(f"is not JSON: {what}, where {mark!r} must be")
        self._move(self._at + 1)

    def _end(self) -> None:
        if found := self._next():
            raise self._fault(f"is not JSON: {found!r} behind the array's end")

    def _move(self, to: int) -> None:
        passed = self._text[self._at : to]
        lines = passed.count("\n")
        self._line += lines
        self._column = len(passed) - passed.rfind("\n") if lines else self._column + len(passed)
        self._at = to

    def _more(self, size: int) -> bool:
        """Read on; false at the end."""
        if self._bad_byte is not None:
            raise self._fault(f"is not UTF-8 at byte {self._bad_byte} of the file")
        if self._ended:
            return False
        data = self._stream.read(size)
        self._ended = not data
        pending = len(self._decoder.getstate()[0])
        try:
            text = self._decoder.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            # What comes before it is still read: the fault is of the item that it is in.
            self._bad_byte = self._read - pending + error.start
            text = (error.object[: error.start]).decode("utf-8-sig")
        self._read += len(data)
        self._text, self._at = self._text[self._at :] + text, 0
        return True

    @property
    def _where(self) -> str:
        return f"{self._name}[{self._number}]" if self._number else self._name

    def _fault(self, problem: str) -> TrainerError:
        return TrainerError(
            ExitCode.DATASET_INVALID, f"{self._where}: {problem} at line {self._line}, column {self._column}"
        )
