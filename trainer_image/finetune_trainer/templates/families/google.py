"""Google's Gemma and PaliGemma."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate

GEMMA = SlotTemplate(
    name="gemma",
    prefix="<bos>",
    system="{{content}}\n\n",
    system_place="first_user",
    user="<start_of_turn>user\n{{content}}<end_of_turn>\n",
    assistant_header="<start_of_turn>model\n",
    assistant="{{content}}<end_of_turn>\n",
    trims=frozenset({"user", "assistant"}),
    stop_words=("<end_of_turn>",),
    replace_eos=True,
)

FAMILIES = (
    # Gemma and Gemma 2, which were trained without system messages: one is put as Gemma 3 puts it.
    GEMMA,
    dataclasses.replace(GEMMA, name="gemma2"),
    dataclasses.replace(GEMMA, name="gemma3", image="<start_of_image>"),
    dataclasses.replace(GEMMA, name="gemma3n", image="<image_soft_token>", audio="<audio_soft_token>"),
    # A prefix (the picture and a question), a line's end, and a suffix: https://arxiv.org/abs/2407.07726, section 3.2.
    SlotTemplate(
        name="paligemma",
        system="{{content}}\n",
        system_place="first_user",
        user="<bos>{{content}}\n",
        assistant="{{content}}<eos>",
        stop_words=("<eos>",),
        image="<image>",
    ),
)
