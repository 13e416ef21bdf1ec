"""Google's Gemma 4: calls, their results and the answer to those stand in one turn of the model."""

from __future__ import annotations

from finetune_trainer.templates.marks import ANSWER, END_ANSWER, TURN
from finetune_trainer.templates.own import OwnTemplate
from finetune_trainer.templates.tool_formats import each, fixed, person, when

_QUOTE = fixed('<|"|>')


def _quoted(expression: str) -> str:
    return _QUOTE + person(expression) + _QUOTE


def _list(items: str) -> str:
    return fixed("[") + each(items, "entry", _quoted("entry"), between=",") + fixed("]")


def _macro(signature: str, body: str) -> str:
    return f"{{%- macro {signature} -%}}{body}{{%- endmacro -%}}"


_PART = "{%- if written.some -%},{%- endif -%}{%- set written.some = true -%}"
"""A comma but before the first part of a list in braces."""
_FRESH = "{%- set written = namespace(some=false) -%}"

_VALUE = _macro(
    "value(argument)",
    "{%- if argument is none -%}null"
    "{%- elif argument is string -%}" + _quoted("argument") + "{%- elif argument is boolean -%}"
    "{{- 'true' if argument else 'false' -}}"
    "{%- elif argument is mapping -%}"
    + fixed("{")
    + each("argument | dictsort", "(key, inner)", person("key") + fixed(":") + "{{- value(inner) -}}", between=",")
    + fixed("}")
    + "{%- elif argument is sequence -%}"
    + fixed("[")
    + each("argument", "inner", "{{- value(inner) -}}", between=",")
    + fixed("]")
    + "{%- else -%}"
    + person("argument")
    + "{%- endif -%}",
)
_ITEMS = (
    fixed("items:{")
    + each(
        "field['items'] | dictsort",
        "(word, inner)",
        when("word == 'properties'", fixed("properties:{") + "{{- fields(inner) -}}" + fixed("}"))
        + when("word == 'required'", fixed("required:") + _list("inner"))
        + when("word == 'type'", fixed("type:") + "{{- value(inner | upper) -}}")
        + when("word not in ('properties', 'required', 'type')", person("word") + fixed(":") + "{{- value(inner) -}}"),
        between=",",
    )
    + fixed("}")
)
_FIELD = (
    _FRESH
    + person("name")
    + fixed(":{")
    + when("field.description", _PART + fixed("description:") + _quoted("field.description"))
    + when("field.type == 'string' and field.enum", _PART + fixed("enum:") + "{{- value(field.enum) -}}")
    + when("field.type == 'array' and field['items']", _PART + _ITEMS)
    + when("field.nullable", _PART + fixed("nullable:true"))
    + when(
        "field.type == 'object'",
        _PART
        + fixed("properties:{")
        + when("field.properties", "{{- fields(field.properties) -}}")
        + fixed("}")
        + when("field.required", _PART + fixed("required:") + _list("field.required")),
    )
    + _PART
    + fixed("type:")
    + _quoted("field.type | upper")
    + fixed("}")
)
_FIELDS = _macro("fields(properties)", each("properties | dictsort", "(name, field)", _FIELD, between=","))
_DECLARATION = (
    fixed("<|tool>declaration:")
    + person("tool.name")
    + fixed("{description:")
    + _quoted("tool.description")
    + when(
        "tool.parameters",
        fixed(",parameters:{")
        + when(
            "tool.parameters.properties",
            fixed("properties:{") + "{{- fields(tool.parameters.properties) -}}" + fixed("},"),
        )
        + when("tool.parameters.required", fixed("required:") + _list("tool.parameters.required") + fixed(","))
        + when("tool.parameters.type", fixed("type:") + _quoted("tool.parameters.type | upper") + fixed("}")),
    )
    + fixed("}<tool|>")
)
_SYSTEM = when(
    "enable_thinking or tools or system",
    fixed("<|turn>system\n")
    + when("enable_thinking", fixed("<|think|>\n"))
    + person("system | trim")
    + each("tools | map(attribute='function')", "tool", _DECLARATION)
    + fixed("<turn|>\n"),
)
_CALL = (
    fixed("<|tool_call>call:")
    + person("call.function.name")
    + fixed("{")
    + each(
        "call.function.arguments | dictsort",
        "(key, argument)",
        person("key") + fixed(":") + "{{- value(argument) -}}",
        between=",",
    )
    + fixed("}<tool_call|>")
)
_BEFORE = "(turns[loop.index0 - 1].role if loop.index0 else '')"
# A prompt behind results opens the thought, where thinking is on.
_OPENED = f"enable_thinking and {_BEFORE} == 'tool'"
_SHOWN = "loop.index0 > users.last or preserve_thinking"
_ASSISTANT = (
    "{%- set thought = message.reasoning_content or '' -%}"
    + when(f"{_BEFORE} != 'tool'", fixed("<|turn>model\n"))
    + when(
        _OPENED,
        fixed("<|channel>thought\n") + ANSWER + person("thought") + fixed("\n<channel|>"),
        ANSWER
        + when(
            f"thought and ({_SHOWN})",
            fixed("<|channel>thought\n") + person("thought") + fixed("\n<channel|>"),
        ),
    )
    + person("(message.content or '') | trim")
    # What opens a result is what a call stops at.
    + when(
        "message.tool_calls",
        each("message.tool_calls", "call", _CALL) + fixed("<|tool_response>") + END_ANSWER,
        fixed("<turn|>") + END_ANSWER + fixed("\n"),
    )
)
_RESULT = (
    when(f"{_BEFORE} == 'tool'", fixed("<|tool_response>"))
    + fixed("response:")
    + person("message.name")
    + fixed("{value:")
    + _quoted("message.content")
    + fixed("}<tool_response|>")
)
_PARTS = _macro(
    "parts(content)",
    "{%- for part in content -%}"
    "{%- if part.type == 'text' -%}"
    + person("part.text | trim")
    + "".join(
        f"{{%- elif part.type in ('{kind}', '{other}') -%}}" + fixed(f"<|{kind}|>")
        for kind, other in (("image", "image_url"), ("audio", "input_audio"), ("video", "video_url"))
    )
    + "{%- else -%}{{- raise_exception('no placeholder for a part of type ' + part.type) -}}{%- endif -%}"
    "{%- endfor -%}",
)
_SOURCE = "\n".join(
    (
        _VALUE,
        _FIELDS,
        _PARTS,
        "{%- if messages and messages[0].role in ('system', 'developer') -%}",
        "{%- set system = messages[0].content -%}{%- set turns = messages[1:] -%}",
        "{%- else -%}{%- set system = default_system -%}{%- set turns = messages -%}{%- endif -%}",
        "{%- set users = namespace(last=-1) -%}",
        "{%- for message in turns -%}",
        "{%- if message.role == 'user' -%}{%- set users.last = loop.index0 -%}{%- endif -%}",
        "{%- endfor -%}",
        fixed("<bos>"),
        _SYSTEM,
        "{%- for message in turns -%}",
        "{%- if message.role == 'user' -%}",
        TURN
        + fixed("<|turn>user\n")
        + when("message.content is string", person("message.content | trim"), "{{- parts(message.content) -}}")
        + fixed("<turn|>\n"),
        "{%- elif message.role == 'assistant' -%}",
        _ASSISTANT,
        "{%- elif message.role == 'tool' -%}",
        _RESULT,
        "{%- else -%}{{- raise_exception('unknown role: ' + message.role) -}}{%- endif -%}",
        "{%- endfor -%}",
        when(
            "add_generation_prompt",
            when(
                "turns[-1].role == 'tool'",
                when("enable_thinking", fixed("<|channel>thought\n")),
                fixed("<|turn>model\n"),
            ),
        ),
    )
)

FAMILIES = (
    OwnTemplate(
        name="gemma4",
        source=_SOURCE,
        stop_words=("<turn|>", "<|tool_response>"),
        replace_eos=True,
        thinks=True,
        thinks_by_default=False,
        takes_tools=True,
    ),
)
