"""Moonshot's Kimi."""

from __future__ import annotations

from finetune_trainer.templates.slots import SlotTemplate

FAMILIES = (
    # Kimi-VL and Moonlight.
    SlotTemplate(
        name="kimi_vl",
        system="<|im_system|>system<|im_middle|>{{content}}<|im_end|>",
        user="<|im_user|>user<|im_middle|>{{content}}<|im_end|>",
        assistant_header="<|im_assistant|>assistant<|im_middle|>",
        assistant="{{content}}<|im_end|>",
        default_system="You are a helpful assistant",
        stop_words=("<|im_end|>",),
        replace_eos=True,
        image="<|media_start|>image<|media_content|><|media_pad|><|media_end|>",
    ),
)
