"""Moonshot's Kimi."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import ARGUMENTS, NAME, RESULT, SAID, ToolFormat, each_call, fixed, person

_IMAGE = "<|media_start|>image<|media_content|><|media_pad|><|media_end|>\n"

# Calls are numbered through the whole conversation, and results come in their order.
_TOOLS = ToolFormat(
    name="kimi",
    tools=person("tools | tojson"),
    calls="{%- set called = turns[:loop.index0] | selectattr('tool_calls') | map(attribute='tool_calls') "
    "| map('length') | sum -%}"
    + SAID
    + fixed("<|tool_calls_section_begin|>")
    + each_call(
        fixed("<|tool_call_begin|>functions.")
        + NAME
        + fixed(":")
        + person("called + loop.index0")
        + fixed("<|tool_call_argument_begin|>")
        + ARGUMENTS
        + fixed("<|tool_call_end|>")
    )
    + fixed("<|tool_calls_section_end|>"),
    result=fixed("## Return of functions.")
    + person("message.name")
    + fixed(":")
    + person("turns[:loop.index0] | selectattr('role', 'equalto', 'tool') | list | length")
    + fixed("\n")
    + RESULT,
)

KIMI = SlotTemplate(
    name="kimi_vl",
    system="<|im_system|>system<|im_middle|>{{content}}<|im_end|>",
    user="<|im_user|>user<|im_middle|>{{content}}<|im_end|>",
    assistant_header="<|im_assistant|>assistant<|im_middle|>",
    assistant="{{content}}<|im_end|>",
    default_system="You are a helpful assistant",
    stop_words=("<|im_end|>",),
    replace_eos=True,
    image=_IMAGE,
)

FAMILIES = (
    # Kimi-VL and Moonlight.
    KIMI,
    # Kimi-K2-Instruct. Results stand in turns that bear the name of the function.
    dataclasses.replace(
        KIMI,
        name="kimi_k2",
        default_system="You are Kimi, an AI assistant created by Moonshot AI.",
        observation="<|im_system|>tool<|im_middle|>{{content}}<|im_end|>",
        tool_format=_TOOLS,
        tools="<|im_system|>tool_declare<|im_middle|>{{content}}<|im_end|>",
        tools_place="before_system",
    ),
)
