"""Models with a format to themselves."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.families.chatml import CHATML
from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import (
    ARGUMENTS,
    NAME,
    RESULT,
    SAID,
    ToolFormat,
    each,
    each_call,
    fixed,
    person,
    when,
)

_TELECHAT = SlotTemplate(
    name="telechat",
    system="<_system>{{content}}\n",
    user="<_user>{{content}}",
    assistant_header="<_bot>",
    assistant="{{content}}<_end>",
    stop_words=("<_end>",),
    replace_eos=True,
)
_EXAONE = SlotTemplate(
    name="exaone",
    system="[|system|]{{content}}[|endofturn|]\n",
    system_always=True,
    user="[|user|]{{content}}\n",
    assistant_header="[|assistant|]",
    assistant="{{content}}[|endofturn|]\n",
    stop_words=("[|endofturn|]",),
    replace_eos=True,
)
_EXAONE4_TOOLS = ToolFormat(
    name="exaone4",
    tools=fixed(
        "# Available Tools\nYou can use none, one, or multiple of the following tools by calling them as functions to "
        "help with the user’s query.\nHere are the tools available to you in JSON format within <tool> and </tool> "
        "tags:\n"
    )
    + each("tools", "tool", fixed("<tool>") + person("tool | tojson(ensure_ascii=False)") + fixed("</tool>\n"))
    + fixed(
        "\nFor each function call you want to make, return a JSON object with function name and arguments within "
        '<tool_call> and </tool_call> tags, like:\n<tool_call>{"name": function_1_name, "arguments": '
        "{argument_1_name: argument_1_value, argument_2_name: argument_2_value}}</tool_call>\n"
        '<tool_call>{"name": function_2_name, "arguments": {...}}</tool_call>\n...\nNote that if no argument name is '
        "specified for a tool, you can just print the argument value directly, without the argument name or JSON "
        "formatting."
    ),
    calls=when("content", SAID + fixed("\n"))
    + each_call(
        fixed('<tool_call>{"name": "') + NAME + fixed('", "arguments": ') + ARGUMENTS + fixed("}</tool_call>"),
        between="\n",
    ),
    result=fixed('{"result": ') + person("content | tojson(ensure_ascii=False)") + fixed("}"),
)
_INTERNLM2_TOOLS = ToolFormat(
    name="internlm2",
    tools=fixed("[") + each("tools", "tool", person("tool.function | tojson"), between=", ") + fixed("]"),
    calls=SAID
    + each_call(
        fixed('<|action_start|><|plugin|>\n{"name": "')
        + NAME
        + fixed('", "arguments": ')
        + ARGUMENTS
        + fixed("}<|action_end|>")
    ),
    result=RESULT,
)
_LFM2_TOOLS = ToolFormat(
    name="lfm2",
    tools=fixed("List of tools: <|tool_list_start|>[")
    + each("tools", "tool", person("tool | tojson"), between=", ")
    + fixed("]<|tool_list_end|>"),
    calls=fixed("<|tool_call_start|>[")
    + each_call(
        NAME
        + fixed("(")
        + each(
            "call.function.arguments.items()",
            "(key, value)",
            person("key") + fixed("=") + person("value | tojson"),
            between=", ",
        )
        + fixed(")"),
        between=", ",
    )
    + fixed("]<|tool_call_end|>")
    + SAID,
    result=fixed("<|tool_response_start|>") + RESULT + fixed("<|tool_response_end|>"),
)
_IDEFICS3 = SlotTemplate(
    name="idefics3",
    prefix="<|begin_of_text|>",
    system="System: {{content}}<end_of_utterance>\n",
    user="User: {{content}}<end_of_utterance>\n",
    assistant_header="Assistant:",
    assistant=" {{content}}<end_of_utterance>\n",
    stop_words=("<end_of_utterance>",),
    replace_eos=True,
    image="<image>",
)

FAMILIES = (
    SlotTemplate(
        name="orion",
        prefix="<s>",
        system="{{content}}\n",
        system_place="first_user",
        user="Human: {{content}}\n\n",
        assistant_header="Assistant: </s>",
        assistant="{{content}}</s>",
        stop_words=("</s>",),
    ),
    SlotTemplate(
        name="openchat",
        prefix="<s>",
        system="GPT4 Correct System: {{content}}<|end_of_turn|>",
        user="GPT4 Correct User: {{content}}<|end_of_turn|>",
        assistant_header="GPT4 Correct Assistant:",
        assistant=" {{content}}<|end_of_turn|>",
        stop_words=("<|end_of_turn|>",),
        replace_eos=True,
    ),
    SlotTemplate(
        name="zephyr",
        system="<|system|>\n{{content}}</s>\n",
        user="<|user|>\n{{content}}</s>\n",
        assistant_header="<|assistant|>\n",
        assistant="{{content}}</s>\n",
        stop_words=("</s>",),
    ),
    SlotTemplate(
        name="starchat",
        system="<|system|>\n{{content}}<|end|>\n",
        system_always=True,
        user="<|user|>\n{{content}}<|end|>\n",
        assistant_header="<|assistant|>",
        assistant="\n{{content}}<|end|>\n",
        stop_words=("<|end|>",),
        replace_eos=True,
    ),
    _EXAONE,
    dataclasses.replace(
        _EXAONE,
        name="exaone4",
        system="[|system|]\n{{content}}[|endofturn|]\n",
        system_always=False,
        user="[|user|]\n{{content}}[|endofturn|]\n",
        assistant_header="[|assistant|]\n",
        observation="[|tool|]\n{{content}}[|endofturn|]\n",
        result="<tool_result>{{content}}</tool_result>",
        results_join="\n",
        tool_format=_EXAONE4_TOOLS,
        thought_words=("<think>\n", "\n</think>\n\n"),
        thought_in_prompt=True,
        thinks_by_default=False,
        past_thought="<think>\n\n</think>\n\n",
        no_thought_within=True,
    ),
    # LFM2. Its published template writes a call as the client gives it; the list in brackets is of its model card.
    dataclasses.replace(
        CHATML,
        name="lfm2",
        prefix="<|startoftext|>",
        observation="<|im_start|>tool\n{{content}}<|im_end|>\n",
        tool_format=_LFM2_TOOLS,
        tools_join="\n",
    ),
    SlotTemplate(
        name="megrez",
        system="<|role_start|>system<|role_end|>{{content}}<|turn_end|>",
        user="<|role_start|>user<|role_end|>{{content}}<|turn_end|>",
        assistant_header="<|role_start|>assistant<|role_end|>",
        assistant="{{content}}<|turn_end|>",
        default_system="你是Megrez-3B-Instruct，将针对用户的问题给出详细的、积极的回答。",
        stop_words=("<|turn_end|>",),
        replace_eos=True,
    ),
    SlotTemplate(
        name="baichuan2",
        system="{{content}}",
        user="<reserved_106>{{content}}",
        assistant_header="<reserved_107>",
        assistant="{{content}}</s>",
        stop_words=("</s>",),
    ),
    SlotTemplate(
        name="baichuan",
        system="{{content}}",
        user="<reserved_102>{{content}}",
        assistant_header="<reserved_103>",
        assistant="{{content}}</s>",
        stop_words=("</s>",),
    ),
    # InternLM-Chat 7B and 20B.
    SlotTemplate(
        name="internlm",
        system="{{content}}",
        user="<s><|User|>:{{content}}<eoh>\n",
        assistant_header="<|Bot|>:",
        assistant="{{content}}<eoa>\n",
        default_system=(
            "A chat between a curious <|User|> and an <|Bot|>. The <|Bot|> gives helpful, detailed, and polite answers "
            "to the <|User|>'s questions.\n\n"
        ),
        stop_words=("<eoa>",),
        replace_eos=True,
    ),
    # InternLM2, 2.5 and 3.
    dataclasses.replace(
        CHATML,
        name="internlm2",
        prefix="<s>",
        observation="<|im_start|>environment name=<|plugin|>\n{{content}}<|im_end|>\n",
        tool_format=_INTERNLM2_TOOLS,
        tools="<|im_start|>system name=<|plugin|>\n{{content}}<|im_end|>\n",
        tools_place="after_system",
    ),
    SlotTemplate(
        name="minicpm",
        prefix="<s>",
        system="{{content}}",
        user="<用户>{{content}}",
        assistant_header="<AI>",
        assistant="{{content}}</s>",
        trims=frozenset({"system", "user", "assistant"}),
        stop_words=("</s>",),
    ),
    # MiniCPM-V 2.6 and MiniCPM-o 2.6, which are of Qwen2.
    dataclasses.replace(
        CHATML, name="minicpm_v", default_system="You are a helpful assistant.", image="(<image>./</image>)\n"
    ),
    SlotTemplate(
        name="index",
        system="<unk>{{content}}",
        user="reserved_0{{content}}",
        assistant_header="reserved_1",
        assistant="{{content}}</s>",
        stop_words=("</s>",),
    ),
    # TeleChat and TeleChat2: https://arxiv.org/abs/2401.03804 and the model's generation_utils.
    _TELECHAT,
    # Tele-FLM, of another house.
    dataclasses.replace(_TELECHAT, name="teleflm", system="<_system>{{content}}", trims=frozenset({"system", "user"})),
    SlotTemplate(
        name="yuan",
        system="{{content}}\n",
        system_place="first_user",
        user="{{content}}",
        assistant_header="<sep>",
        assistant="{{content}}<eod>\n",
        stop_words=("<eod>",),
        replace_eos=True,
    ),
    # Idefics3 and SmolVLM.
    _IDEFICS3,
    dataclasses.replace(_IDEFICS3, name="smolvlm", prefix="<|im_start|>"),
    SlotTemplate(
        name="seed_oss",
        system="<seed:bos>system\n{{content}}<seed:eos>",
        user="<seed:bos>user\n{{content}}<seed:eos>",
        assistant_header="<seed:bos>assistant\n",
        assistant="{{content}}<seed:eos>",
        trims=frozenset({"assistant"}),
        stop_words=("<seed:eos>",),
    ),
    # Falcon-H1 and Falcon 3.
    dataclasses.replace(CHATML, name="falcon_h1", prefix="<|begin_of_text|>"),
    # Ling and Bailing.
    SlotTemplate(
        name="ling",
        system="<role>SYSTEM</role>{{content}}",
        user="<role>HUMAN</role>{{content}}",
        assistant_header="<role>ASSISTANT</role>",
        assistant="{{content}}<|endoftext|>",
        stop_words=("<|endoftext|>",),
    ),
    SlotTemplate(
        name="metharme",
        prefix="<s>",
        system="<|system|>{{content}}",
        user="<|user|>{{content}}",
        assistant_header="<|model|>",
        assistant="{{content}}</s>",
        default_system=(
            "Enter RP mode. You shall reply to the user while staying in character. Your responses must be detailed, "
            "creative, immersive, and drive the scenario forward."
        ),
        trims=frozenset({"user", "assistant"}),
        stop_words=("</s>",),
    ),
)
