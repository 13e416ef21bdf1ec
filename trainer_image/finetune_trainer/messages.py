"""A conversation as every format is read and every template writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant wants called. ``arguments`` is a JSON object."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn. ``role`` is system, user, assistant, or tool for what a called function gave back."""

    role: str
    content: str
    thought: str | None = None
    """The assistant's chain of thought, without the words that set it off; None where there is none."""
    calls: tuple[ToolCall, ...] = ()
    """What the assistant wants called, after its text."""


@dataclass(frozen=True)
class Conversation:
    """A sample before templating: an optional system message, then user and assistant in turn, assistant last. Behind
    an answer that calls tools come their results, each a message of its own, and then the assistant again."""

    messages: tuple[Message, ...]
    where: str
    """File and row, for a person: ``rows.jsonl:17``."""
    tools: tuple[dict[str, Any], ...] = ()
    """Functions that may be called, each as ``{"name": …, "description": …, "parameters": JSON schema}``."""
