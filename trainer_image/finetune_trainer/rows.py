"""From files of rows to conversations: alpaca, sharegpt and openai shapes, each error with file, row and field."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedSource

from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Conversation, Message

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_conversations(source: ResolvedSource, file: Path) -> Iterator[Conversation]:
    """Stream the conversations of one file.

    Raises:
        TrainerError: DATASET_INVALID, naming file, row and field.
    """
    convert = {"alpaca": _alpaca, "sharegpt": _sharegpt, "openai": _openai}[source.format]
    for where, row in read_rows(source, file):
        yield Conversation(checked(convert(row, where), where), where)


def read_rows(source: ResolvedSource, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Stream the rows of one file, each with its place, its columns named as the format names them.

    Raises:
        TrainerError: DATASET_INVALID.
    """
    for where, row in _rows(file):
        if not isinstance(row, dict):
            raise invalid(where, f"a row must be an object of {source.format} shape, not {type(row).__name__}")
        renamed = dict(row)
        for ours, theirs in source.columns.items():
            if theirs not in row:
                known = ", ".join(map(str, row))
                raise invalid(where, f"has no column {theirs!r}, which columns.{ours} names; it has: {known}")
            renamed[ours] = row[theirs]
        yield where, renamed


def invalid(where: str, problem: str) -> TrainerError:
    """The refusal of the row at ``where``."""
    return TrainerError(ExitCode.DATASET_INVALID, f"{where}: {problem}")


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    """Rows with their place: a JSON array, or an object a line. Lines and array items count from 1."""
    with file.open("rb") as stream:
        start = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
        stream.seek(0)
        if start.startswith(b"["):
            yield from _array(file, stream.read())
            return
        for number, line in enumerate(stream, start=1):
            if line.strip():
                where = f"{file.name}:{number}"
                yield where, _parse(_text(line, where), where)


def _array(file: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    items = _parse(_text(data, file.name), file.name)
    for number, item in enumerate(items, start=1):
        yield f"{file.name}[{number}]", item


def _text(data: bytes, where: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid(where, f"is not UTF-8 at byte {error.start}") from error
    if "\0" in text:
        raise invalid(where, "holds a NUL byte")
    return text


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, where))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise invalid(where, f"is not JSON: {error.msg} at {place}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise invalid(where, f"is JSON beyond all bounds: {error}") from error


def _object(pairs: list[tuple[str, Any]], where: str) -> dict[str, Any]:
    parsed = dict(pairs)
    if len(parsed) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise invalid(where, f"has the key {twice!r} twice")
    return parsed


def text_in(row: dict[str, Any], field: str, where: str, *, required: bool) -> str:
    """The text in ``field``; empty where there is none and none is required."""
    value = row.get(field)
    if value is None and not required:
        return ""
    if value is None:
        raise invalid(where, f"has no {field!r}; its fields are: {', '.join(map(str, row)) or 'none'}")
    if not isinstance(value, str):
        raise invalid(where, f"{field!r} must be text, not {type(value).__name__}")
    if required and not value.strip():
        raise invalid(where, f"{field!r} is empty")
    return value


def _alpaca(row: dict[str, Any], where: str) -> list[Message]:
    question = question_in(row, where)
    return [*question, Message("assistant", text_in(row, "output", where, required=True))]


def question_in(row: dict[str, Any], where: str) -> list[Message]:
    """All of an alpaca row but its answer."""
    messages = []
    if system := text_in(row, "system", where, required=False):
        messages.append(Message("system", system))
    history = row.get("history") or []
    if not isinstance(history, list):
        raise invalid(where, f"'history' must be a list, not {type(history).__name__}")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise invalid(where, "'history' must be a list of [question, answer] pairs of text")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    question = text_in(row, "instruction", where, required=True)
    if extra := text_in(row, "input", where, required=False):
        question = f"{question}\n{extra}"
    return [*messages, Message("user", question)]


def _sharegpt(row: dict[str, Any], where: str) -> list[Message]:
    turns = turns_in(row, "conversations", "from", "value", where)
    if system := text_in(row, "system", where, required=False):
        turns = [Message("system", system), *turns]
    return turns


def _openai(row: dict[str, Any], where: str) -> list[Message]:
    return turns_in(row, "messages", "role", "content", where)


def turns_in(row: dict[str, Any], field: str, role_key: str, text_key: str, where: str) -> list[Message]:
    """The turns in the list ``field``."""
    turns = row.get(field)
    if not isinstance(turns, list):
        raise invalid(where, f"{field!r} must be a list of turns; its fields are: {', '.join(map(str, row))}")
    messages = []
    for number, turn in enumerate(turns):
        place = f"{field}[{number}]"
        if not isinstance(turn, dict):
            raise invalid(where, f"{place} must be an object with {role_key!r} and {text_key!r}")
        role = ROLES.get(str(turn.get(role_key)))
        if role is None:
            raise invalid(where, f"{place}.{role_key} is {turn.get(role_key)!r}; known: {', '.join(ROLES)}")
        text = turn.get(text_key)
        if not isinstance(text, str):
            raise invalid(where, f"{place}.{text_key} must be text, not {type(text).__name__}")
        messages.append(Message(role, text))
    return messages


def check_text(text: str, name: str, where: str) -> None:
    """Refuse what cannot be encoded."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise invalid(where, f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")


def checked(messages: list[Message], where: str) -> tuple[Message, ...]:
    """``messages``, where they are a conversation that ends with an answer."""
    for message in messages:
        check_text(message.content, f"{message.role}'s text", where)
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise invalid(where, "holds no turns")
    for number, turn in enumerate(turns):
        expected = "user" if number % 2 == 0 else "assistant"
        if turn.role != expected:
            raise invalid(where, f"turn {number + 1} is of {turn.role}, where {expected}'s must be: "
                          "user and assistant take turns, and a system message comes first")  # fmt: skip
        if not turn.content.strip():
            raise invalid(where, f"turn {number + 1}, of {turn.role}, is empty")
    if turns[-1].role != "assistant":
        raise invalid(where, "ends with a question that has no answer")
    return tuple(messages)
