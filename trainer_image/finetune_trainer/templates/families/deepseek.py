"""DeepSeek's models."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import NAME, RESULT, SAID, ToolFormat, each, each_call, fixed, person

_BEGIN, _END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_ARGUMENTS = person(
    "call.function.arguments if call.function.arguments is string else call.function.arguments | tojson"
)

DEEPSEEK3 = SlotTemplate(
    name="deepseek3",
    prefix=_BEGIN,
    system="{{content}}",
    user="<｜User｜>{{content}}",
    assistant_header="<｜Assistant｜>",
    result_header="",
    assistant="{{content}}" + _END,
    observation="<｜tool▁outputs▁begin｜>{{content}}<｜tool▁outputs▁end｜>",
    result="{{content}}",
    tool_format="deepseek",
    stop_words=(_END,),
)

_TOOLS_3_1 = ToolFormat(
    name="deepseek3_1",
    tools=fixed("## Tools\nYou have access to the following tools:\n")
    + each(
        "tools",
        "tool",
        fixed("\n### ")
        + person("tool.function.name")
        + fixed("\nDescription: ")
        + person("tool.function.description")
        + fixed("\n\nParameters: ")
        + person("tool.function.parameters | tojson")
        + fixed("\n"),
    )
    + fixed(
        "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments<｜tool▁call▁end｜>"
        "{{additional_tool_calls}}<｜tool▁calls▁end｜>\n\nWhere:\n\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
        "- For multiple tool calls, chain them directly without separators or spaces\n"
    ),
    calls=SAID
    + fixed("<｜tool▁calls▁begin｜>")
    + each_call(
        fixed("<｜tool▁call▁begin｜>") + NAME + fixed("<｜tool▁sep｜>") + _ARGUMENTS + fixed("<｜tool▁call▁end｜>")
    )
    + fixed("<｜tool▁calls▁end｜>"),
    result=fixed("<｜tool▁output▁begin｜>") + RESULT + fixed("<｜tool▁output▁end｜>"),
)

FAMILIES = (
    # DeepSeek LLM Chat and DeepSeek-V2-Chat.
    SlotTemplate(
        name="deepseek",
        prefix=_BEGIN,
        system="{{content}}\n\n",
        user="User: {{content}}\n\n",
        assistant_header="Assistant:",
        assistant=" {{content}}" + _END,
        stop_words=(_END,),
    ),
    DEEPSEEK3,
    # DeepSeek-R1 and its distilled models, of Qwen and of Llama.
    dataclasses.replace(
        DEEPSEEK3,
        name="deepseekr1",
        thought_words=("<think>\n", "\n</think>\n\n"),
        thought_in_prompt=True,
        thought_once=True,
    ),
    # DeepSeek-V3.1, which thinks only when told to.
    dataclasses.replace(
        DEEPSEEK3,
        name="deepseek3_1",
        observation="{{content}}",
        tool_format=_TOOLS_3_1,
        thought_words=("<think>", "</think>"),
        thought_trim="nothing",
        thought_in_prompt=True,
        thought_once=True,
        no_thought_within=True,
        past_thought="<think></think>",
        thinks_by_default=False,
    ),
    SlotTemplate(
        name="deepseekcoder",
        prefix=_BEGIN,
        system="{{content}}",
        user="### Instruction:\n{{content}}\n",
        assistant_header="### Response:\n",
        assistant="{{content}}\n<|EOT|>\n",
        default_system=(
            "You are an AI programming assistant, utilizing the Deepseek Coder model, developed by Deepseek Company, "
            "and you only answer questions related to computer science. For politically sensitive questions, security "
            "and privacy issues, and other non-computer science questions, you will refuse to answer\n"
        ),
        stop_words=("<|EOT|>",),
        replace_eos=True,
    ),
)
