"""Qwen, from 1 to 3.6, and models that take over its format."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.families.chatml import CHATML, CHATML_TOOLS
from finetune_trainer.templates.tool_formats import NAME, RESULT, SAID, ToolFormat, each, each_call, fixed, person, when

_IMAGE, _VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"

QWEN3 = dataclasses.replace(CHATML_TOOLS, name="qwen3", thought_words=("<think>\n", "\n</think>\n\n"))


def _tagged_call(*, json_words: bool) -> str:
    """A call as tags.

    Args:
        json_words: whether true, false and null of an argument are JSON's (3.6) rather than Python's (3.5).
    """
    plain = "value is string" if json_words else "not (value is mapping or (value is sequence and value is not string))"
    return (
        fixed("<tool_call>\n<function=")
        + NAME
        + fixed(">\n")
        + each(
            "call.function.arguments.items()",
            "(key, value)",
            fixed("<parameter=")
            + person("key")
            + fixed(">\n")
            + person(f"value | string if {plain} else value | tojson")
            + fixed("\n</parameter>\n"),
        )
        + fixed("</function>\n</tool_call>")
    )


def _xml_tools(*, json_words: bool) -> ToolFormat:
    """Qwen3.5's and 3.6's: the list as JSON, a call as tags; ``json_words`` as of :func:`_tagged_call`."""
    return ToolFormat(
        name="qwen3_5",
        tools=fixed("# Tools\n\nYou have access to the following functions:\n\n<tools>")
        + each("tools", "tool", fixed("\n") + person("tool | tojson"))
        + fixed(
            "\n</tools>\n\nIf you choose to call a function ONLY reply in the following format with NO suffix:\n\n"
            "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
            "<parameter=example_parameter_2>\nThis is the value for the second parameter\nthat can span\nmultiple lines"
            "\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
            "- Function calls MUST follow the specified format: an inner <function=...></function> block must be "
            "nested within <tool_call></tool_call> XML tags\n- Required parameters MUST be specified\n"
            "- You may provide optional reasoning for your function call in natural language BEFORE the function "
            "call, but NOT after\n- If there is no function call available, answer the question like normal with your "
            "current knowledge and do not tell the user about function calls\n</IMPORTANT>"
        ),
        calls=SAID
        + each_call(
            when("not loop.first", fixed("\n"), when("content", fixed("\n\n"))) + _tagged_call(json_words=json_words)
        ),
        result=RESULT,
    )


QWEN3_5 = dataclasses.replace(
    QWEN3,
    name="qwen3_5",
    tool_format=_xml_tools(json_words=False),
    tools_place="system_start",
    trims=frozenset({"system", "user", "assistant", "tool"}),
    thought_trim="space",
    thought_in_prompt=True,
    no_thought_within=True,
    image=_IMAGE,
    video=_VIDEO,
)


def _rest(of: str, handled: str) -> str:
    """What a schema says beside ``handled``, each as a tag of its own."""
    value = f"{of}[key]"
    return each(
        of,
        f"key if key not in {handled}",
        fixed("\n<")
        + person("key")
        + fixed(">")
        + person(
            f"{value} | tojson if {value} is mapping or {value} is sequence and {value} is not string else {value}"
        )
        + fixed("</")
        + person("key")
        + fixed(">"),
    ).replace(f"for key if key not in {handled} in {of}", f"for key in {of} if key not in {handled}")


_CODER_TOOLS = ToolFormat(
    name="qwen3_coder",
    tools=fixed("# Tools\n\nYou have access to the following tools:\n\n<tools>")
    + each(
        "tools",
        "tool",
        "{%- set tool = tool.function -%}"
        + fixed("\n<function>\n<name>")
        + person("tool.name")
        + fixed("</name>")
        + when(
            "tool.description is defined",
            fixed("\n<description>") + person("tool.description | trim") + fixed("</description>"),
        )
        + fixed("\n<parameters>")
        + each(
            "(tool.parameters.properties or {}).items()",
            "(name, field)",
            fixed("\n<parameter>\n<name>")
            + person("name")
            + fixed("</name>")
            + when("field.type is defined", fixed("\n<type>") + person("field.type") + fixed("</type>"))
            + when(
                "field.description is defined",
                fixed("\n<description>") + person("field.description | trim") + fixed("</description>"),
            )
            + _rest("field", "('name', 'type', 'description')")
            + fixed("\n</parameter>"),
        )
        + _rest("tool.parameters", "('type', 'properties')")
        + fixed("\n</parameters>")
        + _rest("tool", "('type', 'name', 'description', 'parameters')")
        + fixed("\n</function>"),
    )
    + fixed(
        "\n</tools>\n\nIf you choose to call a tool ONLY reply in the following format with NO suffix:\n\n<tool_call>\n"
        "<function=example_function_name>\n<parameter=example_parameter_1>\nvalue_1\n</parameter>\n"
        "<parameter=example_parameter_2>\nvalue_2\n</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\nReminder:\n"
        "- Function calls MUST follow the specified format: the tool calling block MUST begin with an opening "
        "<tool_call> tag and end with a closing </tool_call> tag.\n- Required parameters MUST be specified\n"
        "- You may provide optional reasoning for your function call in natural language BEFORE the function call, but "
        "NOT after\n- If there is no function call available, answer the question like normal with your current "
        "knowledge and do not tell the user about function calls\n</IMPORTANT>"
    ),
    calls=when("content | trim", person("content | trim") + fixed("\n\n"))
    + each_call(_tagged_call(json_words=False), between="\n"),
    result=RESULT,
)

FAMILIES = (
    # Qwen2.5; Qwen 1, 1.5 and 2 had no tools. The guide's section 4.
    dataclasses.replace(
        CHATML_TOOLS, name="qwen", default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    ),
    # Hybrid Qwen3, which thinks unless told otherwise.
    QWEN3,
    # Qwen3-…-Instruct-2507 and Qwen3-VL-…-Instruct, and Qwen3 trained without chains of thought.
    dataclasses.replace(CHATML_TOOLS, name="qwen3_nothink"),
    dataclasses.replace(CHATML_TOOLS, name="qwen3_vl", image=_IMAGE, video=_VIDEO),
    QWEN3_5,
    # The small ones of Qwen3.5, which think only when told to.
    dataclasses.replace(QWEN3_5, name="qwen3_5_nothink", thinks_by_default=False),
    dataclasses.replace(QWEN3_5, name="qwen3_6", tool_format=_xml_tools(json_words=True)),
    # QwQ, which always thinks.
    dataclasses.replace(QWEN3, name="qwq", thought_in_prompt=True, tools="\n\n{{content}}", tools_join=""),
    dataclasses.replace(
        CHATML_TOOLS,
        name="qwen3_coder",
        default_system_for_tools=(
            "You are Qwen, a helpful AI assistant that can interact with a computer to solve tasks."
        ),
        observation="<|im_start|>user\n{{content}}<|im_end|>\n",
        result="<tool_response>\n{{content}}\n</tool_response>\n",
        tool_format=_CODER_TOOLS,
    ),
    # Qwen2-VL and Qwen2.5-VL.
    dataclasses.replace(
        CHATML, name="qwen2_vl", default_system="You are a helpful assistant.", image=_IMAGE, video=_VIDEO
    ),
    # MiniCPM-V 4.5, of Qwen3, which thinks only when told to.
    dataclasses.replace(
        QWEN3,
        name="minicpm_v4_5",
        thinks_by_default=False,
        thought_in_prompt=True,
        image="(<image>./</image>)",
        video="(<video>./</video>)",
    ),
    # Qwen2-Audio: https://arxiv.org/abs/2407.10759 and its processor's template, which numbers the sounds.
    dataclasses.replace(
        CHATML,
        name="qwen2_audio",
        default_system="You are a helpful assistant.",
        audio="Audio {{idx}}: <|audio_bos|><|AUDIO|><|audio_eos|>\n",
    ),
)
