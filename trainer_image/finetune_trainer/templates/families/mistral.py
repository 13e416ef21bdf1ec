"""Mistral AI's models, by the versions of their tokenizers."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import ARGUMENTS, NAME, RESULT, ToolFormat, each_call, fixed, person

_ID, _RESULT_ID = person("call.id"), person("message.tool_call_id")


_TOOLS_TEKKEN = ToolFormat(
    name="mistral_tekken",
    tools=fixed("[AVAILABLE_TOOLS]") + person("tools | tojson") + fixed("[/AVAILABLE_TOOLS]"),
    calls=fixed("[TOOL_CALLS][")
    + each_call(
        fixed('{"name": "') + NAME + fixed('", "arguments": ') + ARGUMENTS + fixed(', "id": "') + _ID + fixed('"}'),
        between=", ",
    )
    + fixed("]"),
    result=fixed('[TOOL_RESULTS]{"content": ')
    + RESULT
    + fixed(', "call_id": "')
    + _RESULT_ID
    + fixed('"}[/TOOL_RESULTS]'),
)
"""As ``mistral``, without the space that sentencepiece's control tokens are followed by."""

_TOOLS_V11 = ToolFormat(
    name="mistral_v11",
    tools=fixed("[AVAILABLE_TOOLS]") + person("tools | tojson") + fixed("[/AVAILABLE_TOOLS]"),
    calls=each_call(fixed("[TOOL_CALLS]") + NAME + fixed("[CALL_ID]") + _ID + fixed("[ARGS]") + ARGUMENTS),
    result=fixed("[TOOL_RESULTS]") + _RESULT_ID + fixed("[TOOL_CONTENT]") + RESULT + fixed("[/TOOL_RESULTS]"),
)

V3 = SlotTemplate(
    name="mistral",
    prefix="<s>",
    system="{{content}}\n\n",
    system_place="last_user",
    user="[INST] {{content}}[/INST]",
    assistant=" {{content}}</s>",
    function="{{content}}</s>",
    observation="{{content}}",
    tool_format="mistral",
    tools_place="before_last_user",
    trims=frozenset({"assistant"}),
    stop_words=("</s>",),
)
TEKKEN = dataclasses.replace(
    V3,
    name="mistral_tekken",
    user="[INST]{{content}}[/INST]",
    assistant="{{content}}</s>",
    tool_format=_TOOLS_TEKKEN,
    trims=frozenset(),
)
SMALL = dataclasses.replace(
    TEKKEN,
    name="mistral_small",
    system="[SYSTEM_PROMPT]{{content}}[/SYSTEM_PROMPT]",
    system_place="turn",
    tool_format=_TOOLS_V11,
    image="[IMG]",
)

FAMILIES = (
    # Mistral 7B and Mixtral 8x7B, Instruct v0.1 and v0.2.
    dataclasses.replace(
        V3,
        name="mistral_v1",
        system_place="first_user",
        user=" [INST] {{content}} [/INST]",
        tool_format=None,
        tools_place="system_end",
        trims=frozenset(),
    ),
    # Mistral 7B Instruct v0.3, Mixtral 8x22B, Mistral Large 2407, Codestral.
    V3,
    # Mistral Nemo and others with the tekken tokenizer.
    TEKKEN,
    # Mistral Large 2411.
    dataclasses.replace(
        V3,
        name="mistral_v7",
        system="[SYSTEM_PROMPT] {{content}}[/SYSTEM_PROMPT]",
        system_place="turn",
        tool_format=None,
        tools_place="system_end",
        trims=frozenset(),
    ),
    # Mistral Small 3, 3.1 and 3.2, Devstral, Magistral.
    SMALL,
    # LLaVA-NeXT (1.6) with Mistral 7B.
    dataclasses.replace(
        V3,
        name="llava_next_mistral",
        system="<<SYS>>\n{{content}}\n<</SYS>>\n\n",
        system_place="turn",
        user="[INST] {{content}} [/INST]",
        assistant=" {{content}}</s> ",
        tool_format=None,
        tools_place="system_end",
        trims=frozenset(),
        image="<image>\n",
    ),
    # Pixtral 12B.
    dataclasses.replace(TEKKEN, name="pixtral", tool_format=None, tools_place="system_end", image="[IMG]"),
)
