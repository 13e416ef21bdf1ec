"""How tools are listed, called and answered: one declaration a format, in Jinja with marks.

A fragment is Jinja that writes; all its tags strip the white space around them. It may use ``tools`` (a list of
``{"type": "function", "function": …}``), and for calls ``content`` (the assistant's text, which the fragment writes
too) and ``message.tool_calls``, for a result ``content`` and ``message`` (with ``name`` and ``tool_call_id``).

The words of a list are part of what a model was trained on, so they are those that the models' makers publish.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from finetune_trainer.templates.marks import END_TEXT, TEXT


@dataclass(frozen=True)
class ToolFormat:
    """Fragments of Jinja with marks."""

    name: str
    tools: str
    """Writes the list."""
    calls: str
    """Writes the assistant's text and its calls."""
    result: str
    """Writes one result."""


def quote(text: str) -> str:
    """``text`` as a Jinja string literal. Not in ASCII: Jinja does not join JSON's surrogate pairs."""
    return json.dumps(text, ensure_ascii=False)


def fixed(text: str) -> str:
    """Jinja that writes ``text``, in which special tokens are tokens."""
    return f"{{{{- {quote(text)} -}}}}" if text else ""


def person(expression: str) -> str:
    """Jinja that writes the value of ``expression``, in which special tokens are text."""
    return f"{TEXT}{{{{- {expression} -}}}}{END_TEXT}"


def each(items: str, name: str, body: str, *, between: str = "") -> str:
    """Jinja that writes ``body`` for each ``name`` of ``items``."""
    join = f"{{%- if not loop.last -%}}{fixed(between)}{{%- endif -%}}" if between else ""
    return f"{{%- for {name} in {items} -%}}{body}{join}{{%- endfor -%}}"


def when(condition: str, then: str, otherwise: str = "") -> str:
    """Jinja that writes ``then`` where ``condition`` holds."""
    if not then and not otherwise:
        return ""
    middle = f"{{%- else -%}}{otherwise}" if otherwise else ""
    return f"{{%- if {condition} -%}}{then}{middle}{{%- endif -%}}"


# Servers give the arguments as an object, some clients as its JSON.
ARGUMENTS = person("call.function.arguments if call.function.arguments is string else call.function.arguments | tojson")
NAME = person("call.function.name")
SAID = person("content")
RESULT = person("content if content is string else content | tojson")


def each_call(body: str, *, between: str = "") -> str:
    """Jinja that writes ``body`` for each ``call`` of the message."""
    return each("message.tool_calls", "call", body, between=between)


QWEN = ToolFormat(
    name="qwen",
    tools=fixed(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
    )
    + each("tools", "tool", fixed("\n") + person("tool | tojson"))
    + fixed(
        "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, '
        '"arguments": <args-json-object>}\n</tool_call>'
    ),
    calls=SAID
    + each_call(
        when("content or not loop.first", fixed("\n"))
        + fixed('<tool_call>\n{"name": "')
        + NAME
        + fixed('", "arguments": ')
        + ARGUMENTS
        + fixed("}\n</tool_call>")
    ),
    result=RESULT,
)
"""Qwen2.5 and Qwen3, after Hermes."""

LLAMA3 = ToolFormat(
    name="llama3",
    tools=fixed(
        "Given the following functions, please respond with a JSON for a function call with its proper arguments that "
        'best answers the given prompt.\n\nRespond in the format {"name": function name, "parameters": dictionary of '
        "argument name and its value}.Do not use variables.\n\n"
    )
    + each("tools", "tool", person("tool | tojson(indent=4)") + fixed("\n\n")),
    calls=when(
        "message.tool_calls | length > 1",
        "{{- raise_exception('Llama 3 calls one tool at a time; this answer calls several') -}}",
    )
    + each_call(fixed('{"name": "') + NAME + fixed('", "parameters": ') + ARGUMENTS + fixed("}")),
    result=person("content | tojson"),
)
"""Llama 3.1 to 3.3. The text beside a call is not written; a result is written as JSON, a string in quotes."""

MISTRAL = ToolFormat(
    name="mistral",
    tools=fixed("[AVAILABLE_TOOLS] ") + person("tools | tojson") + fixed("[/AVAILABLE_TOOLS]"),
    calls=fixed("[TOOL_CALLS] [")
    + each_call(
        fixed('{"name": "')
        + NAME
        + fixed('", "arguments": ')
        + ARGUMENTS
        + fixed(', "id": "')
        + person("call.id")
        + fixed('"}'),
        between=", ",
    )
    + fixed("]"),
    result=fixed('[TOOL_RESULTS] {"content": ')
    + RESULT
    + fixed(', "call_id": "')
    + person("message.tool_call_id")
    + fixed('"}[/TOOL_RESULTS]'),
)
"""Mistral 7B v0.3 and its kin of the third tokenizer. The text beside a call is not written."""

GLM4 = ToolFormat(
    name="glm4",
    tools=fixed("# 可用工具")
    + each(
        "tools",
        "tool",
        fixed("\n\n## ")
        + person("tool.function.name")
        + fixed("\n\n")
        + person("tool.function | tojson(indent=4)")
        + fixed("\n在调用上述函数时，请使用 Json 格式表示调用的参数。"),
    ),
    calls=when("content", fixed("\n") + SAID + fixed("<|assistant|>"))
    + each_call(NAME + fixed("\n") + ARGUMENTS, between="<|assistant|>"),
    result=RESULT,
)
"""GLM-4: a call stands behind a header of its own, its name in the header's line."""

DEEPSEEK = ToolFormat(
    name="deepseek",
    tools=fixed("You have access to the following functions:\n")
    + each("tools", "tool", fixed("\n") + person("tool.function | tojson")),
    calls=SAID
    + fixed("<｜tool▁calls▁begin｜>")
    + each_call(
        fixed("<｜tool▁call▁begin｜>function<｜tool▁sep｜>")
        + NAME
        + fixed("\n```json\n")
        + ARGUMENTS
        + fixed("\n```<｜tool▁call▁end｜>"),
        between="\n",
    )
    + fixed("<｜tool▁calls▁end｜>"),
    result=fixed("<｜tool▁output▁begin｜>") + RESULT + fixed("<｜tool▁output▁end｜>"),
)
"""DeepSeek V3 and R1; their published Jinja lists no tools, so the list is ours."""

DEFAULT = ToolFormat(
    name="default",
    tools=fixed("You may use these tools:")
    + each("tools", "tool", fixed("\n") + person("tool.function | tojson"))
    + fixed("\nTo use one, write a line for each call:\nAction: <name>\nAction Input: <arguments as a JSON object>"),
    calls=SAID
    + each_call(
        when("content or not loop.first", fixed("\n"))
        + fixed("Action: ")
        + NAME
        + fixed("\nAction Input: ")
        + ARGUMENTS
    ),
    result=RESULT,
)
"""For models whose makers gave no format: plain words, no special token."""

TOOL_FORMATS: dict[str, ToolFormat] = {tools.name: tools for tools in (DEFAULT, QWEN, LLAMA3, MISTRAL, GLM4, DEEPSEEK)}
