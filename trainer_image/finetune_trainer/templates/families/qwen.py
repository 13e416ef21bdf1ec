"""Qwen, from 1 to 3.6, and models that take over its format."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.families.chatml import CHATML, CHATML_TOOLS
from finetune_trainer.templates.tool_formats import NAME, RESULT, SAID, ToolFormat, each, each_call, fixed, person, when

_IMAGE, _VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"

QWEN3 = dataclasses.replace(CHATML_TOOLS, name="qwen3", thought_words=("<think>\n", "\n</think>\n\n"))


def _xml_tools(*, json_words: bool) -> ToolFormat:
    """Qwen3.5's and 3.6's: the list as JSON, a call as tags.

    Args:
        json_words: whether true, false and null of an argument are JSON's (3.6) rather than Python's (3.5).
    """
    plain = "value is string" if json_words else "not (value is mapping or (value is sequence and value is not string))"
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
            when("not loop.first", fixed("\n"), when("content", fixed("\n\n")))
            + fixed("<tool_call>\n<function=")
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
    # Qwen2-VL and Qwen2.5-VL.
    dataclasses.replace(
        CHATML, name="qwen2_vl", default_system="You are a helpful assistant.", image=_IMAGE, video=_VIDEO
    ),
    # Qwen2-Audio: https://arxiv.org/abs/2407.10759 and its processor's template, which numbers the sounds.
    dataclasses.replace(
        CHATML,
        name="qwen2_audio",
        default_system="You are a helpful assistant.",
        audio="<|audio_bos|><|AUDIO|><|audio_eos|>\n",
    ),
)
