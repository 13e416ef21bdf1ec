"""Finds a conversation's texts in what somebody else's Jinja makes of them.

The conversation is rendered a second time, each of its texts held between characters that no text has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from finetune_trainer.messages import Message, ToolCall
from finetune_trainer.templates.served import Place

# Unicode's noncharacters: what begins and ends a text, and digits of its number.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_DIGITS = [chr(0xFDD2 + digit) for digit in range(16)]
MARK = re.compile(f"{_OPEN}([{_DIGITS[0]}-{_DIGITS[15]}]+){_CLOSE}|{_CLOSE}")
ANY_MARK = re.compile("[\ufdd0-\ufdef]")


@dataclass(frozen=True)
class Found:
    """Where texts of a conversation stand in its rendering."""

    literal: list[Place]
    users: list[int]
    """Where each user's text that was found begins."""
    said: Place | None
    """The last answer's text; None where it is not found, or is empty."""
    last: int
    """End of the last text of the last answer, its thought and calls included; -1 where none is found."""
    thought: bool
    """Whether the last answer's thought is found, or there is none."""
    calls: bool
    """Whether all calls of the last answer are found."""


class Marking:
    """Holds each text of a conversation between marks, and finds them in its rendering.

    White space around a text stays outside, since templates strip it.
    """

    def __init__(self, special: Sequence[str]) -> None:
        self._special = special
        self._owners: list[tuple[int, str]] = []
        """Number of the message that each text is of (-1: the tools), and which of its texts it is."""

    def message(self, message: Message, number: int) -> Message:
        """``message`` with its texts held."""
        if message.thought is None and not (message.media or message.calls):
            return Message(message.role, self._held(message.content, number, "content"))
        pieces = [self._held(piece, number, "content") if isinstance(piece, str) else piece for piece in message.pieces]
        return replace(
            message.with_pieces(pieces),
            thought=None if message.thought is None else self._held(message.thought, number, "thought"),
            calls=tuple(
                ToolCall(self._held(call.name, number, "name"), self._value(call.arguments, number))
                for call in message.calls
            ),
        )

    def tool(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        """``tool`` with those texts held that have a special token: by others templates choose what they write."""
        return cast("dict[str, Any]", self._value(tool, -1))

    def _value(self, value: Any, number: int) -> Any:
        """A JSON value with its texts held; keys stay, templates look things up by them."""
        if isinstance(value, str):
            held = number >= 0 or any(word in value for word in self._special)
            return self._held(value, number, "call") if held else value
        if isinstance(value, Mapping):
            return {key: self._value(inner, number) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(inner, number) for inner in value]
        return value

    def _held(self, text: str, number: int, kind: str) -> str:
        core = text.strip()
        if not core:
            return text
        digits = "".join(_DIGITS[int(digit, 16)] for digit in f"{len(self._owners):x}")
        self._owners.append((number, kind))
        before, _, after = text.partition(core)
        return f"{before}{_OPEN}{digits}{_CLOSE}{core}{_CLOSE}{after}"

    def read(self, marked: str, messages: Sequence[Message]) -> Found:
        """Where the texts stand once the marks are gone. A text that the template cut has lost one of its marks, and
        is not found."""
        places: list[tuple[Place, int, str]] = []
        gone, opened = 0, None
        for match in MARK.finditer(marked):
            at = match.start() - gone
            gone += len(match.group())
            if match.group(1):
                owner = int("".join(f"{_DIGITS.index(digit):x}" for digit in match.group(1)), 16)
                opened = (at, owner)
            elif opened is not None:
                places.append(((opened[0], at), *self._owners[opened[1]]))
                opened = None
        last = len(messages) - 1
        own = [(place, kind) for place, number, kind in places if number == last]
        said = [place for place, kind in own if kind == "content"]
        users: dict[int, int] = {}
        for place, number, kind in places:
            if kind == "content" and number >= 0 and messages[number].role == "user":
                users.setdefault(number, place[0])
        thought = messages[-1].thought
        return Found(
            literal=sorted(place for place, _, _ in places),
            users=[users[number] for number in sorted(users)],
            said=said[-1] if said else None,
            last=max((place[1] for place, _ in own), default=-1),
            thought=not (thought and thought.strip()) or any(kind == "thought" for _, kind in own),
            calls=sum(kind == "name" for _, kind in own) >= len(messages[-1].calls),
        )
