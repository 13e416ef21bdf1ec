"""Conversations as chat templates take them: the form of the OpenAI API, which servers hand to the Jinja."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from finetune_trainer.messages import Medium, Message, ToolCall

_ID_LETTERS = 9
"""Mistral's templates refuse ids of another length."""


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """``messages`` as dictionaries. Calls get ids that depend on their place and text alone; a tool's result has the
    id and name of the call that it answers, by order."""
    plain: list[dict[str, Any]] = []
    open_calls: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        made: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.media:
            made["content"] = [_part(piece) for piece in message.pieces]
        if message.thought is not None:
            made["reasoning_content"] = message.thought
        if message.calls:
            made["tool_calls"] = [_call(call, f"{place}:{number}") for number, call in enumerate(message.calls)]
        if message.role == "assistant":
            open_calls = list(made.get("tool_calls", []))
        if message.role == "tool" and open_calls:
            answered = open_calls.pop(0)
            made |= {"tool_call_id": answered["id"], "name": answered["function"]["name"]}
        plain.append(made)
    return plain


def plain_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """``tools`` as dictionaries, None where there are none."""
    return [{"type": "function", "function": dict(tool)} for tool in tools] or None


def _part(piece: str | Medium) -> dict[str, str]:
    return {"type": "text", "text": piece} if isinstance(piece, str) else {"type": piece.kind}


def _call(call: ToolCall, place: str) -> dict[str, Any]:
    made = hashlib.blake2s(f"{place}:{call.name}".encode()).hexdigest()[:_ID_LETTERS]
    return {"id": made, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
