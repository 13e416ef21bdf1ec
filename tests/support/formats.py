"""Formats of each kind that slots must hold, small enough to read, and a conversation for each thing they write."""

from __future__ import annotations

import dataclasses
from typing import Any

from finetune_trainer.messages import Message, ToolCall
from finetune_trainer.templates.declared import DeclaredTemplate
from finetune_trainer.templates.marks import ANSWER, END_ANSWER, END_TEXT, TEXT, TURN
from finetune_trainer.templates.own import OwnTemplate
from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.template import Thinking
from hypothesis import strategies as st

END = "<|im_end|>"
THINKS = SlotTemplate(
    name="thinks",
    system="<|im_start|>system\n{{content}}<|im_end|>\n",
    user="<|im_start|>user\n{{content}}<|im_end|>\n",
    assistant_header="<|im_start|>assistant\n",
    assistant="{{content}}<|im_end|>\n",
    observation="<|im_start|>user{{content}}<|im_end|>\n",
    result="\n<tool_response>\n{{content}}\n</tool_response>",
    tool_format="qwen",
    thought_words=("<think>\n", "\n</think>\n\n"),
    stop_words=(END,),
    replace_eos=True,
)
OPENS_THE_THOUGHT = SlotTemplate(
    name="opens-the-thought",
    prefix="<|endoftext|>",
    default_system="Think.",
    system="{{content}}",
    user="<|im_start|>{{content}}",
    assistant_header="assistant:",
    result_header="",
    assistant="{{content}}<|im_end|>",
    observation="[{{content}}]",
    result="{{content}}",
    tool_format="deepseek",
    thought_words=("<think>\n", "\n</think>\n\n"),
    thought_in_prompt=True,
    thought_trim="space",
    past_thought="</think>",
    no_thought="</think>",
    no_thought_within=True,
    thinks_by_default=False,
    stop_words=(END,),
)
FUSES_THE_SYSTEM = SlotTemplate(
    name="fuses-the-system",
    system="<<SYS>>\n{{content}}\n<</SYS>>\n\n",
    system_place="first_user",
    user="<|im_start|>[INST] {{content}} [/INST]",
    assistant=" {{content}} <|im_end|>",
    trims=frozenset({"user", "assistant", "system"}),
    stop_words=(END,),
)
TOOLS_BEFORE_THE_LAST = SlotTemplate(
    name="tools-before-the-last",
    prefix="<|endoftext|>",
    system="{{content}}\n\n",
    system_place="last_user",
    user="[INST] {{content}}[/INST]",
    assistant=" {{content}}<|im_end|>",
    function="{{content}}<|im_end|>",
    observation="{{content}}",
    tool_format="mistral",
    tools_place="before_last_user",
    stop_words=(END,),
)
NUMBERS_ROUNDS = SlotTemplate(
    name="numbers-rounds",
    system="{{content}}\n",
    user="[Round {{idx}}]\nAsk: {{content}}\n",
    assistant_header="Answer: ",
    assistant="{{content}}",
    end="<|im_end|>\n",
    observation="Seen: {{content}}\n",
    result_header="So: ",
    tool_format="default",
    tools_place="system_start",
    stop_words=(END,),
)
CALLS_IN_THE_HEADER = SlotTemplate(
    name="calls-in-the-header",
    prefix="<|endoftext|>",
    system="<|im_start|>system\n{{content}}",
    user="<|im_start|>user\n{{content}}",
    assistant_header="<|im_start|>assistant",
    assistant="\n{{content}}<|im_end|>",
    function="{{content}}<|im_end|>",
    observation="<|im_start|>observation\n{{content}}",
    tool_format="glm4",
    tools_place="after_system",
    tools="<|im_start|>system\n{{content}}",
    stop_words=(END,),
    image="<|image|>",
)
CALLS_ONCE = SlotTemplate(
    name="calls-once",
    system="<|im_start|>system\n\n{{content}}<|im_end|>",
    user="<|im_start|>user\n\n{{content}}<|im_end|>",
    assistant_header="<|im_start|>assistant\n\n",
    assistant="{{content}}<|im_end|>",
    observation="<|im_start|>ipython\n\n{{content}}<|im_end|>",
    tool_format="llama3",
    one_call=True,
    tools_place="first_user",
    stop_words=(END,),
)
OWN = OwnTemplate(
    name="own",
    source=(
        "{%- for message in messages -%}{%- if message.role == 'assistant' -%}{{- 'A:' -}}"
        f"{ANSWER}{TEXT}{{{{- message.content -}}}}{END_TEXT}{{{{- '<|im_end|>' -}}}}{END_ANSWER}"
        "{%- else -%}"
        f"{{%- if message.role == 'user' -%}}{TURN}{{%- endif -%}}"
        f"{{{{- message.role + ':' -}}}}{TEXT}{{{{- message.content -}}}}{END_TEXT}"
        "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- 'A:' -}}{%- endif -%}"
    ),
    stop_words=(END,),
)
FORMATS = {
    template.name: template
    for template in (
        THINKS, OPENS_THE_THOUGHT, FUSES_THE_SYSTEM, TOOLS_BEFORE_THE_LAST, NUMBERS_ROUNDS, CALLS_IN_THE_HEADER,
        CALLS_ONCE, OWN,
    )
}  # fmt: skip

TOOLS: list[dict[str, Any]] = [
    {
        "name": "get_weather",
        "description": 'Weather of a "city" — now <|im_end|>',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    {"name": "add", "description": "Sum", "parameters": {"type": "object", "properties": {}}},
]
WEATHER = ToolCall("get_weather", {"city": "Köln", "days": 2})
ONE_CALL = [
    Message("user", "Weather?"),
    Message("assistant", "I look.", calls=(WEATHER,)),
    Message("tool", '{"sky": "clear"}'),
    Message("assistant", "It is clear."),
]
SEVERAL_CALLS = [
    Message("system", "Be brief."),
    Message("user", "Hi"),
    Message("assistant", "Hello!", thought="A greeting."),
    Message("user", "Weather and sum?"),
    Message("assistant", "", thought="Two calls.", calls=(WEATHER, ToolCall("add", {"a": 1, "b": [2, {"c": None}]}))),
    Message("tool", "clear"),
    Message("tool", "3"),
    Message("assistant", "Once more.", calls=(WEATHER,)),
    Message("tool", "still clear"),
    Message("assistant", "Clear, and 3.", thought="Done."),
]
PLAIN = [Message("user", "Hi"), Message("assistant", "Hello!"), Message("user", "And?"), Message("assistant", "No.")]
THOUGHT = [
    Message("user", "a"),
    Message("assistant", "b", thought="one"),
    Message("user", "c"),
    Message("assistant", "d", thought="two"),
]


def thoughtless(messages: list[Message]) -> list[Message]:
    return [dataclasses.replace(message, thought=None) for message in messages]


def may_think(template: DeclaredTemplate, thinking: Thinking) -> bool:
    return thinking == "disabled" or (template.thinks and (template.thinks_by_default or thinking != "auto"))


PLAIN_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: text.strip() and not any(0xFDD0 <= ord(letter) <= 0xFDEF for letter in text)
)
TEXTS = st.one_of(
    st.sampled_from(["<|im_end|>", "</think>", "<think>", "{{content}}", "{#text#}", "﷐", "\n", " x ", '"\\']),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
CALLS = st.builds(ToolCall, st.sampled_from(["get_weather", "add"]), st.dictionaries(TEXTS, VALUES, max_size=2))

PLAIN_CALLS = st.builds(
    ToolCall, st.sampled_from(["get_weather", "add"]), st.dictionaries(PLAIN_TEXTS, PLAIN_TEXTS, max_size=2)
)


@st.composite
def any_conversation(draw: st.DrawFn, *, odd: bool = True) -> list[Message]:
    """``odd``: texts may also be empty, blank, or words of the formats."""
    texts, calls = (TEXTS, CALLS) if odd else (PLAIN_TEXTS, PLAIN_CALLS)
    messages = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(texts)))
        for _ in range(draw(st.integers(0, 2))):
            called = tuple(draw(st.lists(calls, min_size=1, max_size=2)))
            messages.append(Message("assistant", draw(texts), draw(st.none() | texts), called))
            messages += [Message("tool", draw(texts)) for _ in called]
        messages.append(Message("assistant", draw(texts), draw(st.none() | texts)))
    return messages
