"""Turns of a conversation as rows write them, and the order that they must be in."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from finetune_trainer.media_rows import part_medium
from finetune_trainer.messages import Medium, Message
from finetune_trainer.row_errors import (
    EMPTY,
    MEDIA,
    MISSING,
    NOT_TEXT,
    ORDER,
    ROLE,
    THOUGHT,
    TOOLS,
    WRONG_TYPE,
    invalid,
)
from finetune_trainer.tool_rows import calls_in, calls_in_text, from_json

CALLS = "function_call"
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    CALLS: "assistant",
}
THOUGHT_FIELDS = ("thought", "reasoning_content", "reasoning", "thinking")
"""Names under which a chain of thought stands beside the answer."""
_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Turn:
    """A message and where in its row it is, such as ``messages[2]``; equal where the messages are."""

    message: Message
    place: str = field(compare=False)
    identity: str | None = field(default=None, compare=False)
    """Of a tool's answer: the call that it is to."""
    awaited: tuple[str | None, ...] = field(default=(), compare=False)
    """Of calls: the identities that their answers name."""

    @property
    def role(self) -> str:
        """The message's."""
        return self.message.role


def answer(text: str, thought: str | None, place: str, where: str) -> Message:
    """An assistant's message. A chain of thought that stands in ``<think>`` before the text is taken out of it; one
    of white space alone is none.

    Raises:
        RowError: there are two, or one that does not end.
    """
    if text.lstrip().startswith(_OPEN):
        inside, closed, rest = text.lstrip().removeprefix(_OPEN).partition(_CLOSE)
        if not closed:
            raise invalid(where, f"{place} begins with {_OPEN} and has no {_CLOSE}", THOUGHT)
        if thought is not None and inside.strip():
            raise invalid(where, f"{place} has a chain of thought of its own and one in {_OPEN}; leave one", THOUGHT)
        text, thought = rest.lstrip("\n"), inside if thought is None else thought
    thought = None if thought is None else thought.strip()
    return Message("assistant", text, thought=thought or None)


def thought_in(fields: dict[str, Any], where: str, prefix: str = "") -> str | None:
    """The chain of thought in one of :data:`THOUGHT_FIELDS`.

    Raises:
        RowError: there are several, or it is no text.
    """
    found = [name for name in THOUGHT_FIELDS if fields.get(name) not in (None, "")]
    if len(found) > 1:
        raise invalid(where, f"has a chain of thought in both {prefix}{found[0]} and {prefix}{found[1]}", THOUGHT)
    for name in found:
        if not isinstance(fields[name], str):
            raise invalid(where, f"{prefix}{name} must be text, not {type(fields[name]).__name__}", WRONG_TYPE)
        return str(fields[name])
    return None


def turns_in(row: dict[str, Any], name: str, role_key: str, text_key: str, where: str) -> list[Turn]:
    """The turns in the list ``name`` of a row; in a table of text it may be JSON.

    Raises:
        RowError: naming the turn and its field.
    """
    value = row.get(name)
    if isinstance(value, str):
        value = from_json(value, name, where)
    if not isinstance(value, list):
        if value is None:
            known = ", ".join(map(str, row)) or "none"
            raise invalid(where, f"{name!r} must be a list of turns; its fields are: {known}", MISSING)
        raise invalid(where, f"{name!r} must be a list of turns, not {type(value).__name__}", WRONG_TYPE)
    turns = []
    for number, turn in enumerate(value):
        place = f"{name}[{number}]"
        if not isinstance(turn, dict):
            raise invalid(where, f"{place} must be an object with {role_key!r} and {text_key!r}", WRONG_TYPE)
        turns.append(_turn(turn, place, role_key, text_key, where))
    return _in_order_of_calls(turns, where)


def _turn(turn: dict[str, Any], place: str, role_key: str, text_key: str, where: str) -> Turn:
    said = turn.get(role_key)
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise invalid(where, f"{place}.{role_key} is {said!r}; known: {', '.join(ROLES)}", ROLE)
    if said == CALLS:
        text = turn.get(text_key)
        if not isinstance(text, (str, dict, list)):
            raise invalid(where, f"{place}.{text_key} must be JSON, not {type(text).__name__}", WRONG_TYPE)
        before, thought = _before_calls(text, f"{place}.{text_key}", where)
        calls = calls_in_text(before, f"{place}.{text_key}", where)
        return Turn(Message("assistant", "", thought=thought, calls=calls), place)
    called = calls_in(turn, place, where) if role == "assistant" else ()
    pieces, inner = _pieces_of(turn.get(text_key), f"{place}.{text_key}", where, optional=bool(called))
    if role != "user" and (medium := next((piece for piece in pieces if isinstance(piece, Medium)), None)):
        raise invalid(where, f"{medium.place} is of type {medium.kind!r}, which only a user's turn can have", MEDIA)
    text = "".join([piece for piece in pieces if isinstance(piece, str)])
    if role == "assistant":
        thought = thought_in(turn, where, f"{place}.")
        message = answer(text, inner if thought is None else thought, place, where)
        calls = tuple(call for call, _ in called)
        message = Message("assistant", message.content, thought=message.thought, calls=calls)
        return Turn(message, place, awaited=tuple(identity for _, identity in called))
    if inner is not None:
        raise invalid(where, f"{place} is of {role} and holds a chain of thought", THOUGHT)
    identity = turn.get("tool_call_id") if role == "tool" else None
    if identity is not None and not isinstance(identity, str):
        raise invalid(where, f"{place}.tool_call_id must be text, not {type(identity).__name__}", WRONG_TYPE)
    return Turn(Message(role, "").with_pieces(pieces), place, identity=identity)


def _before_calls(text: Any, name: str, where: str) -> tuple[Any, str | None]:
    """What is left of a call's text without a thought before it, and that."""
    if not isinstance(text, str):
        return text, None
    message = answer(text, None, name, where)
    return message.content, message.thought


def _pieces_of(value: Any, name: str, where: str, *, optional: bool) -> tuple[list[str | Medium], str | None]:
    """Text and media of a turn, which may be in parts, and the thought among the parts."""
    if isinstance(value, str):
        return [value], None
    if value is None and optional:
        return [], None
    if not isinstance(value, list):
        raise invalid(where, f"{name} must be text, not {type(value).__name__}", WRONG_TYPE)
    pieces: list[str | Medium] = []
    thought = []
    for number, part in enumerate(value):
        place = f"{name}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("text", "reasoning", "thinking"):
            held = next((part[key] for key in (kind, "text", "value") if part.get(key) is not None), None)
            if not isinstance(held, str):
                raise invalid(where, f"{place}.text must be text, not {type(held).__name__}", WRONG_TYPE)
            (pieces if kind == "text" else thought).append(held)
        elif isinstance(part, dict) and (medium := part_medium(part, place, where)) is not None:
            pieces.append(medium)
        else:
            raise invalid(where, f"{place} is of type {kind!r}; known: text, image, video and audio", MEDIA)
    return pieces, "\n".join(thought) if thought else None


def _in_order_of_calls(turns: list[Turn], where: str) -> list[Turn]:
    """Answers of tools in the order of the calls that they name: templates tell them apart by that alone."""
    ordered: list[Turn] = []
    at = 0
    while at < len(turns):
        ordered.append(turns[at])
        at += 1
        wanted = [identity for identity in ordered[-1].awaited if identity is not None]
        end = at
        while end < len(turns) and turns[end].role == "tool":
            end += 1
        answers = turns[at:end]
        if not wanted or not any(one.identity is not None for one in answers):
            continue
        given = [one.identity for one in answers]
        for one in answers:
            if one.identity not in wanted:
                known = ", ".join(map(repr, wanted))
                raise invalid(where, f"{one.place}.tool_call_id is {one.identity!r}; the calls before it are {known}",
                              TOOLS)  # fmt: skip
            if given.count(one.identity) > 1:
                raise invalid(where, f"{one.place}.tool_call_id is {one.identity!r}, which another answer names too",
                              TOOLS)  # fmt: skip
        if unanswered := [identity for identity in wanted if identity not in given]:
            raise invalid(where, f"{ordered[-1].place} makes the call {unanswered[0]!r}, which has no answer", TOOLS)
        ordered += sorted(answers, key=lambda one: wanted.index(str(one.identity)))
        at = end
    return ordered


def check_text(text: str, name: str, where: str) -> None:
    """Refuse what cannot be encoded, or is no text."""
    if "\0" in text:
        raise invalid(where, f"{name} holds a NUL character", NOT_TEXT)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"{name} holds half of a surrogate pair (\\ud800 to \\udfff), which is no text"
        raise invalid(where, half, NOT_TEXT) from error


def checked(turns: list[Turn], where: str) -> tuple[Message, ...]:
    """The messages of ``turns``, where they are a conversation that ends with an answer.

    Raises:
        RowError: naming the turn.
    """
    for turn in turns:
        check_text(turn.message.content, f"{turn.place}, {turn.role}'s text,", where)
        check_text(turn.message.thought or "", f"{turn.place}, a chain of thought,", where)
        if turn.message.calls:
            check_text(json.dumps([call.arguments for call in turn.message.calls], ensure_ascii=False),
                       f"{turn.place}, a call,", where)  # fmt: skip
    rest = turns[1:] if turns and turns[0].role == "system" else turns
    if not rest:
        raise invalid(where, "holds no turns", EMPTY)
    before: Turn | None = None
    for number, turn in enumerate(rest, start=1):
        expected = _expected(before)
        if turn.role not in expected:
            raise invalid(where, f"{turn.place}: turn {number} is of {turn.role}, where {' or '.join(expected)}'s must "
                          "be: user and assistant take turns, tools answer an assistant's calls, a system message is "
                          "first", ORDER)  # fmt: skip
        said = turn.message.content.strip() or turn.message.calls or turn.message.media
        if not said and turn.role != "tool":
            raise invalid(where, f"{turn.place}: turn {number}, of {turn.role}, is empty", EMPTY)
        before = turn
    if rest[-1].role != "assistant":
        what = "a question that has no answer" if rest[-1].role == "user" else "a tool's result and no answer"
        raise invalid(where, f"{rest[-1].place}: ends with {what}", ORDER)
    return tuple(turn.message for turn in turns)


def _expected(before: Turn | None) -> tuple[str, ...]:
    if before is None:
        return ("user",)
    if before.role == "user":
        return ("assistant",)
    if before.role == "tool":
        return ("tool", "assistant")
    return ("tool",) if before.message.calls else ("user",)
