"""IBM's Granite."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import TOOL_FORMATS, each, fixed, person

_END = "<|end_of_text|>"

GRANITE3 = SlotTemplate(
    name="granite3",
    system="<|start_of_role|>system<|end_of_role|>{{content}}<|end_of_text|>\n",
    user="<|start_of_role|>user<|end_of_role|>{{content}}<|end_of_text|>\n",
    assistant_header="<|start_of_role|>assistant<|end_of_role|>",
    assistant="{{content}}<|end_of_text|>\n",
    stop_words=(_END,),
)
_TOOLS = dataclasses.replace(
    TOOL_FORMATS["qwen"],
    name="granite4",
    tools=fixed(
        "You are a helpful assistant with access to the following tools. You may call one or more tools to assist with "
        "the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>"
    )
    + each("tools", "tool", fixed("\n") + person("tool | tojson"))
    + fixed(
        "\n</tools>\n\nFor each tool call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call>. If a tool does not exist in the provided list of tools, notify the user that you do not have "
        "the ability to fulfill the request."
    ),
)

FAMILIES = (
    # Granite 3.0 and 3.1.
    GRANITE3,
    dataclasses.replace(
        GRANITE3,
        name="granite4",
        default_system=(
            "You are a helpful assistant. Please ensure responses are professional, accurate, and safe."
        ),
        default_system_with_tools=False,
        observation="<|start_of_role|>user<|end_of_role|>{{content}}<|end_of_text|>\n",
        result="\n<tool_response>\n{{content}}\n</tool_response>",
        tool_format=_TOOLS,
    ),
)
