"""Conversations of every kind that a template must write."""

from __future__ import annotations

from typing import Any

from finetune_trainer.messages import Message, ToolCall

Row = dict[str, Any]

WEATHER: Row = {
    "name": "get_weather",
    "description": "Tells the weather of a city: sun, rain or snow.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Name of the city, such as Zürich"},
            "days": {"type": "integer", "description": "How many days ahead"},
        },
        "required": ["city"],
    },
}
CLOCK: Row = {
    "name": "get_time",
    "description": "Tells the time of a zone.",
    "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": "Its name"}}},
}
RICH: Row = {
    "name": "book",
    "description": "Books a room.",
    "parameters": {
        "type": "object",
        "properties": {
            "size": {"type": "string", "enum": ["small", "large"], "default": "small"},
            "guests": {"type": "array", "items": {"type": "string"}, "description": "Their names"},
            "nights": {"type": "number", "default": 1},
            "meals": {"type": "array", "items": {"type": "boolean"}},
            "note": {"type": "string", "nullable": True},
            "paid": {"type": "boolean"},
            "address": {
                "type": "object",
                "description": "Of the guest",
                "properties": {"street": {"type": "string"}, "number": {"type": "integer"}},
                "required": ["street"],
            },
            "dates": {"type": "array", "items": {"type": "object", "properties": {"day": {"type": "string"}}}},
        },
        "required": ["size", "address"],
    },
}
"""Arguments of every kind."""
QUOTES: Row = CLOCK | {"description": 'Tells the time, such as "12:00".'}
"""Some templates put a description into JSON as it is."""


def said(role: str, content: str, thought: str | None = None) -> Message:
    """A message with no calls."""
    return Message(role, content, thought=thought)


ZURICH = ToolCall("get_weather", {"city": "Zürich", "days": 2})
LIMA = ToolCall("get_weather", {"city": "Lima"})
UTC = ToolCall("get_time", {"zone": "UTC"})
HELLO, REPLY = said("user", "Hello!"), said("assistant", "Hi. How can I help?")
ASKS, TELLS = said("user", "How is the weather in Zürich?"), said("assistant", "Sunny, 21 °C.")
SYSTEM = said("system", "You answer in one line.")
CALLS = Message("assistant", "", calls=(ZURICH,))
SUN, RAIN = said("tool", '{"sky": "sun", "celsius": 21}'), said("tool", '{"sky": "rain"}')
LATER = (said("user", "And which day is it?"), said("assistant", "Monday."))

TALKS: dict[str, tuple[Message, ...]] = {
    "one turn": (HELLO, REPLY),
    "system": (SYSTEM, HELLO, REPLY),
    "turns": (HELLO, REPLY, ASKS, TELLS, *LATER),
    "system and turns": (SYSTEM, HELLO, REPLY, *LATER),
    "lines": (said("user", "1\n\n2 < 3 & \"4\" 'five'"), said("assistant", "a\n\n  b {{ c }} <d>")),
}
SPACED: dict[str, tuple[Message, ...]] = {
    "space around": (
        said("system", " Be brief. \n"),
        said("user", "\n one  "),
        said("assistant", "  two \n"),
        said("user", " three"),
        said("assistant", "four\n"),
    ),
}
TOOLS: dict[str, tuple[Message, ...]] = {
    "tools unused": (HELLO, REPLY),
    "tools and system": (SYSTEM, HELLO, REPLY, *LATER),
    "call": (ASKS, CALLS, SUN, TELLS),
    "call last": (HELLO, REPLY, ASKS, CALLS),
    "call with text": (SYSTEM, ASKS, Message("assistant", "I look it up.", calls=(ZURICH,)), SUN, TELLS, *LATER),
    "quotes in tools": (HELLO, REPLY),
    "rich tools": (
        ASKS,
        Message(
            "assistant",
            "",
            calls=(
                ToolCall("book", {"size": "large", "paid": True, "note": None, "guests": ["Ada", "Ümit"], "nights": 2}),
            ),
        ),
        SUN,
        TELLS,
    ),
    "calls in turn": (ASKS, CALLS, SUN, Message("assistant", "", calls=(UTC,)), RAIN, TELLS),
}
PARALLEL: dict[str, tuple[Message, ...]] = {
    "calls at once": (
        ASKS,
        Message("assistant", "", calls=(ZURICH, LIMA, UTC)),
        SUN,
        RAIN,
        said("tool", "12:00"),
        TELLS,
    ),
}
THOUGHTS: dict[str, tuple[Message, ...]] = {
    "thought": (HELLO, said("assistant", "Hi.", "They greet me.\n\nI greet back.")),
    "thoughts": (
        SYSTEM,
        HELLO,
        said("assistant", "Hi.", "They greet me."),
        *LATER[:1],
        said("assistant", "Monday.", "It is the first."),
    ),
    "thought in history": (HELLO, said("assistant", "Hi.", "They greet me."), *LATER),
}
THOUGHT_CALLS: dict[str, tuple[Message, ...]] = {
    "thought and call": (
        HELLO,
        said("assistant", "Hi.", "They greet me."),
        ASKS,
        Message("assistant", "", thought="I look.", calls=(ZURICH,)),
        SUN,
        said("assistant", "Sunny.", "It says sun."),
    ),
}


GROUPS = {
    "talks": TALKS,
    "spaced": SPACED,
    "tools": TOOLS,
    "parallel": PARALLEL,
    "thoughts": THOUGHTS,
    "thought calls": THOUGHT_CALLS,
}
"""Conversations by what a template must know for them."""


def declared(group: str, case: str) -> tuple[Row, ...]:
    """The functions that may be called in a conversation."""
    if group not in ("tools", "parallel", "thought calls"):
        return ()
    return {"quotes in tools": (QUOTES,), "rich tools": (RICH,)}.get(case, (WEATHER, CLOCK))
