"""Formats of plain words, from the time before special tokens."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate

_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)

VICUNA = SlotTemplate(
    name="vicuna",
    prefix="<s>",
    system="{{content}} ",
    user="USER: {{content}} ",
    assistant_header="ASSISTANT:",
    assistant=" {{content}}</s>",
    default_system=_VICUNA_SYSTEM,
    stop_words=("</s>",),
)
_LLAVA = dataclasses.replace(VICUNA, name="llava", default_system="", image="<image>\n")

FAMILIES = (
    # For models that were tuned to no format, such as BLOOMZ.
    SlotTemplate(
        name="default",
        system="System: {{content}}\n",
        user="Human: {{content}}\n",
        assistant_header="Assistant:",
        assistant=" {{content}}{{eos_token}}\n",
        tool_format="default",
        stop_words=("{{eos_token}}",),
    ),
    # Nothing but the text, for models that are tuned to one task.
    SlotTemplate(
        name="none",
        system="{{content}}",
        user="{{content}}",
        assistant="{{content}}{{eos_token}}",
        stop_words=("{{eos_token}}",),
    ),
    # Stanford Alpaca: its train.py, PROMPT_DICT.
    SlotTemplate(
        name="alpaca",
        prefix="{{bos_token}}",
        system="{{content}}\n\n",
        user="### Instruction:\n{{content}}\n\n",
        assistant_header="### Response:\n",
        assistant="{{content}}{{eos_token}}\n\n",
        default_system=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        stop_words=("{{eos_token}}",),
    ),
    VICUNA,
    # LLaVA 1.5, which is Vicuna with a picture; the published template has no default system message.
    _LLAVA,
    # LLaVA-NeXT and LLaVA-NeXT-Video with Vicuna.
    dataclasses.replace(_LLAVA, name="llava_next"),
    dataclasses.replace(_LLAVA, name="llava_next_video", video="<video>\n"),
    SlotTemplate(
        name="falcon",
        system="System: {{content}}\n",
        user="User: {{content}}\n",
        assistant_header="Falcon:",
        assistant=" {{content}}<|endoftext|>\n",
        stop_words=("<|endoftext|>",),
    ),
    SlotTemplate(
        name="solar",
        system="### System:\n{{content}}\n\n",
        user="### User:\n{{content}}\n\n",
        assistant_header="### Assistant:\n",
        assistant="{{content}}</s>\n\n",
        stop_words=("</s>",),
    ),
    SlotTemplate(
        name="xverse",
        system="{{content}}\n\n",
        user="Human: {{content}}\n\n",
        assistant_header="Assistant: ",
        assistant="{{content}}<|endoftext|>",
        stop_words=("<|endoftext|>",),
    ),
)
