"""Meta's Llama, from 2 to 4."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import (
    ARGUMENTS,
    NAME,
    SAID,
    TOOL_FORMATS,
    ToolFormat,
    each_call,
    fixed,
    when,
)

_KNOWLEDGE = fixed("Cutting Knowledge Date: December 2023\nToday Date: ")
_PYTHON = when("tools", fixed("Environment: ipython\n"))
# A server may give the date.
_DATE = "{{- date_string if date_string is defined else %s -}}"

LLAMA2 = SlotTemplate(
    name="llama2",
    system="<<SYS>>\n{{content}}\n<</SYS>>\n\n",
    system_place="first_user",
    user="<s>[INST] {{content}} [/INST]",
    assistant=" {{content}} </s>",
    trims=frozenset({"user", "assistant"}),
    stop_words=("</s>",),
)

LLAMA3 = SlotTemplate(
    name="llama3",
    prefix="<|begin_of_text|>",
    system="<|start_header_id|>system<|end_header_id|>\n\n{{content}}<|eot_id|>",
    user="<|start_header_id|>user<|end_header_id|>\n\n{{content}}<|eot_id|>",
    assistant_header="<|start_header_id|>assistant<|end_header_id|>\n\n",
    assistant="{{content}}<|eot_id|>",
    observation="<|start_header_id|>ipython<|end_header_id|>\n\n{{content}}<|eot_id|>",
    tool_format="llama3",
    one_call=True,
    tools_place="first_user",
    trims=frozenset({"system", "user", "assistant"}),
    stop_words=("<|eot_id|>",),
    replace_eos=True,
)

LLAMA3_1 = dataclasses.replace(
    LLAMA3,
    name="llama3_1",
    system_start=_PYTHON + _KNOWLEDGE + _DATE % "'26 Jul 2024'" + fixed("\n\n"),
    system_always=True,
)
LLAMA3_2 = dataclasses.replace(
    LLAMA3_1,
    name="llama3_2",
    system_start=_PYTHON + _KNOWLEDGE + _DATE % "strftime_now('%d %b %Y')" + fixed("\n\n"),
)

_LLAMA4_TOOLS = ToolFormat(
    name="llama4",
    tools=TOOL_FORMATS["llama3"].tools,
    calls=fixed("<|python_start|>")
    + SAID
    + fixed("<|python_end|>")
    + each_call(fixed('{"name": "') + NAME + fixed('", "parameters": ') + ARGUMENTS + fixed("}")),
    result=TOOL_FORMATS["llama3"].result,
)

FAMILIES = (
    # Llama 2 chat: Meta's generation.py, chat_completion.
    LLAMA2,
    # Chinese-Alpaca-2 and Chinese-LLaMA-2.
    dataclasses.replace(
        LLAMA2, name="llama2_zh", default_system="You are a helpful assistant. 你是一个乐于助人的助手。"
    ),
    # Llama 3; the list of tools is Llama 3.1's.
    LLAMA3,
    # Llama 3.1 and 3.3.
    LLAMA3_1,
    # Llama 3.2, which is told the day.
    LLAMA3_2,
    # Llama 3.2 Vision.
    dataclasses.replace(LLAMA3_2, name="mllama", trims=frozenset({"system"}), image="<|image|>"),
    dataclasses.replace(
        LLAMA3,
        name="llama4",
        system="<|header_start|>system<|header_end|>\n\n{{content}}<|eot|>",
        system_start=_PYTHON,
        user="<|header_start|>user<|header_end|>\n\n{{content}}<|eot|>",
        assistant_header="<|header_start|>assistant<|header_end|>\n\n",
        assistant="{{content}}<|eot|>",
        observation="<|header_start|>ipython<|header_end|>\n\n{{content}}<|eot|>",
        tool_format=_LLAMA4_TOOLS,
        one_call=False,
        trims=frozenset({"system"}),
        stop_words=("<|eot|>",),
        image="<|image|>",
    ),
)
