"""From rows to conversations: alpaca, sharegpt and openai shapes, each error with file, row and field."""

from __future__ import annotations

from itertools import chain
from typing import Any

from finetune_api.trainer_config import ResolvedSource

from finetune_trainer.media_columns import COLUMNS, with_columns
from finetune_trainer.messages import Conversation, Message
from finetune_trainer.row_errors import EMPTY, MEDIA, MISSING, NOT_A_ROW, WRONG_TYPE, invalid
from finetune_trainer.row_files import RawRow
from finetune_trainer.tool_rows import tools_in
from finetune_trainer.turns import Turn, answer, checked, thought_in, turns_in

Row = dict[str, Any]


def conversation_of(source: ResolvedSource, raw: RawRow) -> Conversation:
    """The conversation in a row.

    Raises:
        RowError: naming file, row and field.
    """
    row, where = row_of(source, raw, media=True), raw.where
    turns = {"alpaca": _alpaca, "sharegpt": _sharegpt, "openai": _openai}[source.format](row, where)
    return Conversation(checked(with_columns(turns, row, where), where), where, tools_in(row, where))


def row_of(source: ResolvedSource, raw: RawRow, *, media: bool = False) -> Row:
    """The row, its columns named as the format names them; ``media``: whether it may have images, videos and sounds.

    Raises:
        RowError: it cannot be read, or is none.
    """
    row, where = raw.value(), raw.where
    if not isinstance(row, dict):
        raise invalid(where, f"a row must be an object of {source.format} shape, not {type(row).__name__}", NOT_A_ROW)
    renamed = dict(row)
    for ours, theirs in source.columns.items():
        if theirs not in row:
            known = ", ".join(map(str, row))
            raise invalid(where, f"has no column {theirs!r}, which columns.{ours} names; it has: {known}", MISSING)
        renamed[ours] = row[theirs]
    for field in chain.from_iterable(() if media else COLUMNS.values()):
        if renamed.get(field):
            raise invalid(where, f"{field!r}: rows of format {source.format} are text alone", MEDIA)
    return renamed


def text_in(row: Row, field: str, where: str, *, required: bool) -> str:
    """The text in ``field``; empty where there is none and none is required.

    Raises:
        RowError: naming the field.
    """
    value = row.get(field)
    if value is None and not required:
        return ""
    if value is None:
        raise invalid(where, f"has no {field!r}; its fields are: {', '.join(map(str, row)) or 'none'}", MISSING)
    if not isinstance(value, str):
        raise invalid(where, f"{field!r} must be text, not {type(value).__name__}", WRONG_TYPE)
    if required and not value.strip():
        raise invalid(where, f"{field!r} is empty", EMPTY)
    return value


def answer_in(row: Row, field: str, where: str) -> Turn:
    """The answer in ``field``, with the chain of thought that stands in it or beside it.

    Raises:
        RowError: naming the field.
    """
    text = text_in(row, field, where, required=True)
    return Turn(answer(text, thought_in(row, where), repr(field), where), repr(field))


def question_in(row: Row, where: str) -> list[Turn]:
    """All of an alpaca row but its answer.

    Raises:
        RowError: naming the field.
    """
    turns = system_in(row, where)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise invalid(where, f"'history' must be a list, not {type(history).__name__}", WRONG_TYPE)
    for number, pair in enumerate(history):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise invalid(where, f"'history' must be a list of [question, answer] pairs of text; item {number} is none",
                          WRONG_TYPE)  # fmt: skip
        places = [f"history[{number}][{side}]" for side in (0, 1)]
        turns += [
            Turn(Message("user", pair[0]), places[0]),
            Turn(answer(pair[1], None, places[1], where), places[1]),
        ]
    question = text_in(row, "instruction", where, required=True)
    if extra := text_in(row, "input", where, required=False):
        question = f"{question}\n{extra}"
    return [*turns, Turn(Message("user", question), "'instruction'")]


def system_in(row: Row, where: str) -> list[Turn]:
    """The system message in a field of its own."""
    system = text_in(row, "system", where, required=False)
    return [Turn(Message("system", system), "'system'")] if system else []


def _alpaca(row: Row, where: str) -> list[Turn]:
    return [*question_in(row, where), answer_in(row, "output", where)]


def _sharegpt(row: Row, where: str) -> list[Turn]:
    return [*system_in(row, where), *turns_in(row, "conversations", "from", "value", where)]


def _openai(row: Row, where: str) -> list[Turn]:
    return turns_in(row, "messages", "role", "content", where)
