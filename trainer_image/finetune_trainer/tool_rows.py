"""Tools and the calls of them, in the ways in which rows write them: OpenAI's, bare, and as JSON in a text."""

from __future__ import annotations

import json
from typing import Any

from finetune_trainer.messages import ToolCall
from finetune_trainer.row_errors import TOOLS, RowError, invalid


def tools_in(row: dict[str, Any], where: str) -> tuple[dict[str, Any], ...]:
    """The functions of the row's ``tools``: a list, or one as JSON text, of ``{"type": "function", "function": …}`` or
    of what is in it.

    Raises:
        RowError: naming the tool.
    """
    value = row.get("tools")
    if value is None or value == "":
        return ()
    tools = from_json(value, "tools", where)
    if not isinstance(tools, list):
        raise invalid(where, f"'tools' must be a list of functions, not {type(tools).__name__}", TOOLS)
    return tuple(_tool(tool, f"tools[{number}]", where) for number, tool in enumerate(tools))


def calls_in(turn: dict[str, Any], place: str, where: str) -> tuple[tuple[ToolCall, str | None], ...]:
    """The calls of an assistant's turn in OpenAI's shape, each with its id: ``tool_calls``, or the older
    ``function_call``.

    Raises:
        RowError: naming the call and its field.
    """
    calls = turn.get("tool_calls")
    single = turn.get("function_call")
    if calls is not None and single is not None:
        raise invalid(where, f"{place} has both 'tool_calls' and 'function_call'; leave one", TOOLS)
    if single is not None:
        return ((_call(single, f"{place}.function_call", where), None),)
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise invalid(where, f"{place}.tool_calls must be a list, not {type(calls).__name__}", TOOLS)
    found = []
    for number, call in enumerate(calls):
        name = f"{place}.tool_calls[{number}]"
        if not isinstance(call, dict):
            raise invalid(where, f"{name} must be an object, not {type(call).__name__}", TOOLS)
        identity = call.get("id")
        if identity is not None and not isinstance(identity, str):
            raise invalid(where, f"{name}.id must be text, not {type(identity).__name__}", TOOLS)
        wrapped = call.get("function") is not None
        body = _call(call["function"] if wrapped else call, f"{name}.function" if wrapped else name, where)
        found.append((body, identity))
    return tuple(found)


def calls_in_text(text: Any, place: str, where: str) -> tuple[ToolCall, ...]:
    """The calls in the text of a sharegpt ``function_call`` turn: JSON of one ``{"name": …, "arguments": …}`` or of a
    list of them.

    Raises:
        RowError: naming the turn.
    """
    value = from_json(text, place, where)
    calls = value if isinstance(value, list) else [value]
    if not calls:
        raise invalid(where, f"{place} calls nothing", TOOLS)
    several = isinstance(value, list)
    return tuple(_call(call, f"{place}[{number}]" if several else place, where) for number, call in enumerate(calls))


def from_json(value: Any, name: str, where: str) -> Any:
    """``value``, read where it is JSON text.

    Raises:
        RowError: it is text and no JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=lambda pairs: _distinct(pairs, name, where))
    except RowError:
        raise
    except (ValueError, RecursionError) as error:
        raise invalid(where, f"{name} is not JSON: {error}", TOOLS) from error


def _distinct(pairs: list[tuple[str, Any]], name: str, where: str) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise invalid(where, f"{name} has the key {twice!r} twice", TOOLS)
    return found


def _tool(tool: Any, name: str, where: str) -> dict[str, Any]:
    if isinstance(tool, dict) and tool.get("function") is not None:
        name, tool = f"{name}.function", tool["function"]
    if not isinstance(tool, dict):
        raise invalid(where, f"{name} must be an object with 'name', not {type(tool).__name__}", TOOLS)
    if not isinstance(tool.get("name"), str) or not tool["name"].strip():
        raise invalid(where, f"{name} has no 'name'; its fields are: {', '.join(map(str, tool)) or 'none'}", TOOLS)
    parameters = tool.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise invalid(where, f"{name}.parameters must be a JSON schema, not {type(parameters).__name__}", TOOLS)
    # A table has a column for what only some tools say.
    return {key: value for key, value in tool.items() if value is not None}


def _call(call: Any, name: str, where: str) -> ToolCall:
    if not isinstance(call, dict):
        raise invalid(where, f"{name} must be an object with 'name' and 'arguments', not {type(call).__name__}", TOOLS)
    called = call.get("name")
    if not isinstance(called, str) or not called.strip():
        raise invalid(where, f"{name} has no 'name'; its fields are: {', '.join(map(str, call)) or 'none'}", TOOLS)
    given = call.get("arguments")
    arguments = {} if given is None or given == "" else from_json(given, f"{name}.arguments", where)
    if not isinstance(arguments, dict):
        raise invalid(where, f"{name}.arguments must be an object, not {type(arguments).__name__}", TOOLS)
    return ToolCall(called, arguments)
