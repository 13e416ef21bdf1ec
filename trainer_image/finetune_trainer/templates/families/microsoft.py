"""Microsoft's Phi."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate

PHI3 = SlotTemplate(
    name="phi3",
    system="<|system|>\n{{content}}<|end|>\n",
    user="<|user|>\n{{content}}<|end|>\n",
    assistant_header="<|assistant|>\n",
    assistant="{{content}}<|end|>\n",
    suffix="<|endoftext|>",
    stop_words=("<|end|>",),
    replace_eos=True,
)
PHI4 = SlotTemplate(
    name="phi4",
    system="<|im_start|>system<|im_sep|>{{content}}<|im_end|>",
    user="<|im_start|>user<|im_sep|>{{content}}<|im_end|>",
    assistant_header="<|im_start|>assistant<|im_sep|>",
    assistant="{{content}}<|im_end|>",
    stop_words=("<|im_end|>",),
    replace_eos=True,
)

FAMILIES = (
    # Phi-3 and Phi-3.5, mini and MoE.
    PHI3,
    # Phi-3-small, which puts the begin of text first.
    dataclasses.replace(PHI3, name="phi3_small", prefix="<|endoftext|>"),
    # Phi-3-medium and Phi-3-vision, which end a conversation with its last turn.
    dataclasses.replace(PHI3, name="phi3_vision", suffix="", image="<|image_1|>\n"),
    PHI4,
    # Phi-4-mini: as Phi-3, but without line ends.
    dataclasses.replace(
        PHI3,
        name="phi4_mini",
        system="<|system|>{{content}}<|end|>",
        user="<|user|>{{content}}<|end|>",
        assistant_header="<|assistant|>",
        assistant="{{content}}<|end|>",
    ),
    # Phi-4-reasoning; its system message is part of how it was trained to think.
    dataclasses.replace(
        PHI4,
        name="phi4_reasoning",
        default_system=(
            "You are Phi, a language model trained by Microsoft to help users. Your role as an assistant involves "
            "thoroughly exploring questions through a systematic thinking process before providing the final precise "
            "and accurate solutions. This requires engaging in a comprehensive cycle of analysis, summarizing, "
            "exploration, reassessment, reflection, backtracing, and iteration to develop well-considered thinking "
            "process. Please structure your response into two main sections: Thought and Solution using the specified "
            "format: <think> {Thought section} </think> {Solution section}. In the Thought section, detail your "
            "reasoning process in steps. Each step should include detailed considerations such as analysing "
            "questions, summarizing relevant findings, brainstorming new ideas, verifying the accuracy of the current "
            "steps, refining any errors, and revisiting previous steps. In the Solution section, based on various "
            "attempts, explorations, and reflections from the Thought section, systematically present the final "
            "solution that you deem correct. The Solution section should be logical, accurate, and concise and detail "
            "necessary steps needed to reach the conclusion. Now, try to solve the following question through the "
            "above guidelines:"
        ),
    ),
)
