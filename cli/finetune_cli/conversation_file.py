"""Messages and tools in a file, in the form of the OpenAI API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from finetune_trainer.media_rows import FROM_COLUMN, PART_KINDS
from finetune_trainer.messages import Medium, Message, ToolCall

from finetune_cli.errors import CliError

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_THOUGHTS = ("reasoning_content", "reasoning", "thought")


def read_conversation(file: str) -> tuple[list[Message], list[dict[str, Any]]]:
    """The messages in ``file`` (``-``: standard input), and its tools where it is an object that has some.

    Raises:
        CliError: naming the message and what is wrong with it.
    """
    value = _read(file)
    tools: list[dict[str, Any]] = []
    if isinstance(value, dict):
        tools = _tools(value.get("tools") or [], f"{file}: tools")
        value = value.get("messages")
    if not isinstance(value, list) or not value:
        raise CliError(f"{file} must hold a list of messages, or an object with messages and tools")
    return [_message(message, f"{file}: messages[{number}]") for number, message in enumerate(value)], tools


def read_tools(file: str) -> list[dict[str, Any]]:
    """The functions in ``file``.

    Raises:
        CliError: naming the tool and what is wrong with it.
    """
    return _tools(_read(file), file)


def _read(file: str) -> Any:
    try:
        return json.loads(sys.stdin.read() if file == "-" else Path(file).read_text())
    except OSError as error:
        raise CliError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CliError(f"{file} is not JSON: {error}") from error


def _tools(value: Any, place: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise CliError(f"{place} must be a list of functions")
    tools = []
    for number, tool in enumerate(value):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise CliError(f"{place}[{number}] must be a function with a name")
        tools.append(function)
    return tools


def _message(value: Any, place: str) -> Message:
    role = value.get("role") if isinstance(value, dict) else None
    if role not in _ROLES:
        raise CliError(f"{place}.role is {role!r}; known: {', '.join(_ROLES)}")
    calls = tuple(
        _call(call, f"{place}.tool_calls[{number}]") for number, call in enumerate(value.get("tool_calls") or [])
    )
    content = value.get("content")
    if content is None and calls:
        content = ""
    pieces = _pieces(content if isinstance(content, list) else [content], f"{place}.content")
    thought = next((value[name] for name in _THOUGHTS if isinstance(value.get(name), str)), None)
    if role != "assistant" and (calls or thought):
        raise CliError(f"{place} is of {role}, and calls and thoughts are the assistant's")
    return Message(_ROLES[role], "", thought=thought, calls=calls).with_pieces(pieces)


def _pieces(parts: list[Any], place: str) -> list[str | Medium]:
    """Text and media; of these it is shown where they stand, and not what they are."""
    pieces: list[str | Medium] = []
    for part in parts:
        kind = PART_KINDS.get(str(part.get("type"))) if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else part
        if kind is not None:
            pieces.append(Medium(kind, FROM_COLUMN))
        elif isinstance(text, str):
            pieces.append(text)
        else:
            raise CliError(f"{place} must be text, or parts of type text, image, video and audio")
    return pieces


def _call(value: Any, place: str) -> ToolCall:
    function = value.get("function", value) if isinstance(value, dict) else {}
    name, arguments = function.get("name"), function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise CliError(f"{place}: arguments are not JSON: {error}") from error
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise CliError(f"{place} must have a name, and arguments that are an object")
    return ToolCall(name, arguments)
