"""OpenAI's gpt-oss: the harmony format, https://github.com/openai/harmony/blob/main/docs/format.md."""

from __future__ import annotations

from finetune_trainer.templates.marks import ANSWER, END_ANSWER, TURN
from finetune_trainer.templates.own import OwnTemplate
from finetune_trainer.templates.tool_formats import each, fixed, person, quote, when


def _expression(text: str) -> str:
    return f"{{{{- {text} -}}}}"


def _kind() -> str:
    """A macro that writes the TypeScript type of a JSON schema."""
    nullable = when("spec.nullable", fixed(" | null"))
    inner = "{%- set inner = kind(spec['items']) -%}" + _expression(
        "'any[]' if inner == 'object | object' or inner | length > 50 else inner + '[]'"
    )
    plain = "{'string': 'string', 'number': 'number', 'integer': 'number', 'boolean': 'boolean'}"
    array = (
        when(
            "not spec['items']",
            fixed("any[]"),
            when(
                f"spec['items'].type in {plain}",
                _expression(f"{plain}[spec['items'].type] + '[]'"),
                inner,
            ),
        )
        + nullable
    )
    properties = each(
        "spec.properties.items()",
        "(key, value)",
        person("key")
        + when("key not in (spec.required or [])", fixed("?"))
        # The published template has this line break and indent.
        + fixed(": \n                ")
        + _expression("kind(value)")
        + when("not loop.last", fixed(", ")),
    )
    variants = each(
        "spec.oneOf",
        "variant",
        _expression("kind(variant)") + when("variant.description", fixed("// ") + person("variant.description")),
        between=" | ",
    )
    objects = "spec.oneOf | selectattr('type', 'equalto', 'object') | list"
    return (
        "{%- macro kind(spec) -%}"
        "{%- if spec.type == 'array' -%}" + array + "{%- elif spec.type is iterable and spec.type is not string -%}"
        "{{- spec.type | join(' | ') -}}"
        "{%- elif spec.oneOf -%}"
        + when(f"{objects} and spec.oneOf | length > 1", fixed("any"), variants)
        + "{%- elif spec.type == 'string' -%}"
        + when(
            "spec.enum",
            fixed('"') + person("spec.enum | join(" + quote('" | "') + ")") + fixed('"'),
            fixed("string") + nullable,
        )
        + f"{{%- elif spec.type in {plain} -%}}{_expression(plain + '[spec.type]')}"
        "{%- elif spec.type == 'object' -%}"
        + when("spec.properties", fixed("{\n") + properties + fixed("}"), fixed("object"))
        + "{%- else -%}any{%- endif -%}{%- endmacro -%}"
    )


_PARAMETER = (
    when("spec.description", fixed("// ") + person("spec.description") + fixed("\n"))
    + person("name")
    + when("name not in (tool.function.parameters.required or [])", fixed("?"))
    + fixed(": ")
    + _expression("kind(spec)")
    + when(
        "spec.default is defined",
        fixed(", // default: ") + person("spec.default if spec.enum else spec.default | tojson"),
    )
    + fixed(",\n")
)
_TOOLS = (
    fixed("# Tools\n\n## functions\n\nnamespace functions {\n\n")
    + each(
        "tools",
        "tool",
        fixed("// ")
        + person("tool.function.description")
        + fixed("\ntype ")
        + person("tool.function.name")
        + fixed(" = ")
        + when(
            "tool.function.parameters and tool.function.parameters.properties",
            fixed("(_: {\n")
            + each("tool.function.parameters.properties.items()", "(name, spec)", _PARAMETER)
            + fixed("}) => any;\n\n"),
            fixed("() => any;\n\n"),
        ),
    )
    + fixed("} // namespace functions")
)
_SYSTEM = (
    fixed("<|start|>system<|message|>")
    + person(
        "model_identity if model_identity is defined else "
        + quote("You are ChatGPT, a large language model trained by OpenAI.")
    )
    + fixed("\nKnowledge cutoff: 2024-06\nCurrent date: ")
    + person("strftime_now('%Y-%m-%d')")
    + fixed("\n\nReasoning: ")
    + person("reasoning_effort if reasoning_effort is defined else 'medium'")
    + fixed("\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.")
    + when("tools", fixed("\nCalls to these tools must go to the commentary channel: 'functions'."))
    + fixed("<|end|>")
)
_DEVELOPER = when(
    "system or tools",
    fixed("<|start|>developer<|message|>")
    + when("system", fixed("# Instructions\n\n") + person("system") + fixed("\n\n"))
    + when("tools", _TOOLS)
    + fixed("<|end|>"),
)
_HEADER = fixed("<|start|>assistant")
_THOUGHT = fixed("<|channel|>analysis<|message|>") + person("thought") + fixed("<|end|>") + _HEADER
_CALL = (
    "{%- if message.tool_calls | length > 1 -%}"
    "{{- raise_exception('gpt_oss calls one tool at a time; this answer calls several') -}}"
    "{%- endif -%}"
    "{%- set call = message.tool_calls[0].function -%}"
    "{%- set thought = message.reasoning_content or message.content -%}"
    "{%- set asked.name = call.name -%}"
    + when("thought and (preserve_thinking or loop.index0 > answered.last)", _THOUGHT)
    + fixed(" to=functions.")
    + person("call.name")
    + fixed("<|channel|>commentary json<|message|>")
    + person("call.arguments if call.arguments is string else call.arguments | tojson")
    + fixed("<|call|>")
)
_SAY = (
    "{%- set thought = message.reasoning_content -%}"
    + when("thought and (preserve_thinking or loop.last)", _THOUGHT)
    + fixed("<|channel|>final<|message|>")
    + person("message.content")
    # Only the last word of all is what generation stops at.
    + when("loop.last", fixed("<|return|>"), fixed("<|end|>"))
)
_SOURCE = "\n".join(
    (
        _kind(),
        "{%- if messages and messages[0].role in ('system', 'developer') -%}",
        "{%- set system = messages[0].content -%}{%- set turns = messages[1:] -%}",
        "{%- else -%}",
        "{%- set system = default_system -%}{%- set turns = messages -%}",
        "{%- endif -%}",
        # Thoughts that led to calls are left out once those are answered, but not of the answer itself: its prompt had
        # them.
        "{%- set answered = namespace(last=-1) -%}{%- set asked = namespace(name='') -%}",
        "{%- for message in turns -%}",
        "{%- if message.role == 'assistant' and not message.tool_calls and not loop.last -%}",
        "{%- set answered.last = loop.index0 -%}",
        "{%- endif -%}{%- endfor -%}",
        _SYSTEM,
        _DEVELOPER,
        "{%- for message in turns -%}",
        "{%- if message.role == 'user' -%}",
        TURN + fixed("<|start|>user<|message|>") + person("message.content") + fixed("<|end|>"),
        "{%- elif message.role == 'assistant' -%}",
        _HEADER + ANSWER + when("message.tool_calls", _CALL, _SAY) + END_ANSWER,
        "{%- elif message.role == 'tool' -%}",
        fixed("<|start|>functions.")
        + person("asked.name")
        + fixed(" to=assistant<|channel|>commentary<|message|>")
        + person("message.content | tojson")
        + fixed("<|end|>"),
        "{%- else -%}{{- raise_exception('unknown role: ' + message.role) -}}{%- endif -%}",
        "{%- endfor -%}",
        when("add_generation_prompt", _HEADER),
    )
)

FAMILIES = (
    OwnTemplate(
        name="gpt_oss",
        source=_SOURCE,
        stop_words=("<|return|>", "<|call|>", "<|end|>"),
        thinks=True,
        takes_tools=True,
        one_call=True,
    ),
)
