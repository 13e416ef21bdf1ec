"""IBM's Granite."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import RESULT, TOOL_FORMATS, ToolFormat, each, fixed, person, when

_END = "<|end_of_text|>"


def _tools3(tools: str) -> ToolFormat:
    return ToolFormat(
        name="granite3",
        tools=tools,
        calls=person("message.tool_calls | map(attribute='function') | list | tojson(indent=4)"),
        result=RESULT,
    )


_GRANITE3_3_SYSTEM = when(
    "not system",
    fixed("Knowledge Cutoff Date: April 2024. Today's Date: ")
    + person("strftime_now('%B %d, %Y')")
    + fixed(". You are Granite, developed by IBM.")
    + when(
        "tools",
        fixed(
            " You are a helpful assistant with access to the following tools. When a tool is required to answer the "
            "user's query, respond only with <|tool_call|> followed by a JSON list of tools used. If a tool does not "
            "exist in the provided list of tools, notify the user that you do not have the ability to fulfill the "
            "request."
        ),
        fixed(" You are a helpful AI assistant."),
    ),
)

GRANITE3 = SlotTemplate(
    name="granite3",
    system="<|start_of_role|>system<|end_of_role|>{{content}}<|end_of_text|>\n",
    user="<|start_of_role|>user<|end_of_role|>{{content}}<|end_of_text|>\n",
    assistant_header="<|start_of_role|>assistant<|end_of_role|>",
    assistant="{{content}}<|end_of_text|>\n",
    function="<|tool_call|>{{content}}<|end_of_text|>\n",
    observation="<|start_of_role|>tool_response<|end_of_role|>{{content}}<|end_of_text|>\n",
    tool_format=_tools3(fixed("\n") + each("tools", "tool", person("tool | tojson(indent=4)"), between="\n\n")),
    tools="<|start_of_role|>available_tools<|end_of_role|>{{content}}<|end_of_text|>\n",
    tools_place="before_system",
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
    # Granite 3.2 and 3.3, which are told the day. Their published template writes a call as the client gives it.
    dataclasses.replace(
        GRANITE3,
        name="granite3_3",
        system_start=_GRANITE3_3_SYSTEM,
        system_always=True,
        tool_format=_tools3(person("tools | tojson(indent=4)")),
        tools_place="after_system",
    ),
    dataclasses.replace(
        GRANITE3,
        name="granite4",
        default_system=("You are a helpful assistant. Please ensure responses are professional, accurate, and safe."),
        default_system_for_tools="",
        function=None,
        observation="<|start_of_role|>user<|end_of_role|>{{content}}<|end_of_text|>\n",
        result="\n<tool_response>\n{{content}}\n</tool_response>",
        tool_format=_TOOLS,
        tools="{{content}}",
        tools_place="system_end",
    ),
)
