"""Zhipu's ChatGLM and GLM."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import NAME, RESULT, ToolFormat, each, each_call, fixed, person, when

GLM4 = SlotTemplate(
    name="glm4",
    prefix="[gMASK]<sop>",
    system="<|system|>\n{{content}}",
    user="<|user|>\n{{content}}",
    assistant_header="<|assistant|>",
    assistant="\n{{content}}",
    function="{{content}}",  # a call's name stands in the header's line
    ended_by_next=True,
    observation="<|observation|>\n{{content}}",
    tool_format="glm4",
    tools=(
        "<|system|>\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
        "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n{{content}}"
    ),
    tools_place="before_system",
    stop_words=("<|user|>", "<|observation|>"),
    replace_eos=True,
)

_MOE_TOOLS = ToolFormat(
    name="glm4_moe",
    tools=fixed(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    )
    + each("tools", "tool", person("tool | tojson(ensure_ascii=False)") + fixed("\n"))
    + fixed(
        "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
        "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>\n<arg_value>{arg-value-1}</arg_value>\n"
        "<arg_key>{arg-key-2}</arg_key>\n<arg_value>{arg-value-2}</arg_value>\n...\n</tool_call>"
    ),
    calls=when("content", fixed("\n") + person("content"))
    + each_call(
        fixed("\n<tool_call>")
        + NAME
        + fixed("\n")
        + each(
            "call.function.arguments.items()",
            "(key, value)",
            fixed("<arg_key>")
            + person("key")
            + fixed("</arg_key>\n<arg_value>")
            + person("value if value is string else value | tojson(ensure_ascii=False)")
            + fixed("</arg_value>\n"),
        )
        + fixed("</tool_call>")
    ),
    result=fixed("\n<tool_response>\n") + RESULT + fixed("\n</tool_response>"),
)

_TOOLS_4_7 = ToolFormat(
    name="glm4_7",
    tools=fixed(
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    )
    + each("tools", "tool", person("tool | tojson(ensure_ascii=False)") + fixed("\n"))
    + fixed(
        "</tools>\n\nFor each function call, output the function name and arguments within the following XML format:\n"
        "<tool_call>{function-name}<arg_key>{arg-key-1}</arg_key><arg_value>{arg-value-1}</arg_value>"
        "<arg_key>{arg-key-2}</arg_key><arg_value>{arg-value-2}</arg_value>...</tool_call>"
    ),
    calls=person("content")
    + each_call(
        fixed("<tool_call>")
        + NAME
        + each(
            "call.function.arguments.items()",
            "(key, value)",
            fixed("<arg_key>")
            + person("key")
            + fixed("</arg_key><arg_value>")
            + person("value if value is string else value | tojson(ensure_ascii=False)")
            + fixed("</arg_value>"),
        )
        + fixed("</tool_call>")
    ),
    result=fixed("<tool_response>") + RESULT + fixed("</tool_response>"),
)
GLM4_MOE = dataclasses.replace(
    GLM4,
    name="glm4_moe",
    observation="<|observation|>{{content}}",
    result="{{content}}",
    tool_format=_MOE_TOOLS,
    tools="<|system|>\n{{content}}",
    trims=frozenset({"assistant"}),
    thought_words=("\n<think>", "</think>"),
    thought_trim="space",
    past_thought="\n<think></think>",
    unthinking="/nothink",
    no_thought_within=True,
)

FAMILIES = (
    # ChatGLM2: its modeling file's build_prompt numbers the rounds.
    SlotTemplate(
        name="chatglm2",
        prefix="[gMASK]sop",
        system="{{content}}\n\n",
        user="[Round {{idx}}]\n\n问：{{content}}",
        assistant_header="\n\n答：",
        assistant="{{content}}</s>\n\n",
        stop_words=("</s>",),
    ),
    SlotTemplate(
        name="chatglm3",
        prefix="[gMASK]sop",
        system="<|system|>\n {{content}}",
        user="<|user|>\n {{content}}",
        assistant_header="<|assistant|>",
        assistant="\n {{content}}",
        ended_by_next=True,
        stop_words=("<|user|>", "<|observation|>"),
        replace_eos=True,
    ),
    GLM4,
    # GLM-Edge.
    dataclasses.replace(
        GLM4,
        name="glm_edge",
        prefix="",
        function=None,
        tool_format=None,
    ),
    # GLM-4.5 and 4.6.
    GLM4_MOE,
    # GLM-4.7.
    dataclasses.replace(
        GLM4_MOE,
        name="glm4_7",
        system="<|system|>{{content}}",
        user="<|user|>{{content}}",
        assistant="{{content}}",
        tool_format=_TOOLS_4_7,
        thought_words=("<think>", "</think>"),
        thought_in_prompt=True,
        no_thought="</think>",
        past_thought="</think>",
        unthinking="",
    ),
)
