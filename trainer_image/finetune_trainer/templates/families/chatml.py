"""ChatML as it is, and models that only change its default system message."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate

CHATML = SlotTemplate(
    name="chatml",
    system="<|im_start|>system\n{{content}}<|im_end|>\n",
    user="<|im_start|>user\n{{content}}<|im_end|>\n",
    assistant_header="<|im_start|>assistant\n",
    assistant="{{content}}<|im_end|>\n",
    stop_words=("<|im_end|>",),
    replace_eos=True,
)
CHATML_TOOLS = dataclasses.replace(
    CHATML,
    observation="<|im_start|>user{{content}}<|im_end|>\n",
    result="\n<tool_response>\n{{content}}\n</tool_response>",
    tool_format="qwen",
)
"""With tools as Qwen writes them."""

FAMILIES = (
    CHATML,
    # Yi 1 and 1.5: ChatML with no default system message.
    dataclasses.replace(CHATML, name="yi"),
    # Nemotron-H.
    dataclasses.replace(CHATML, name="nemotron_h"),
    dataclasses.replace(
        CHATML,
        name="smollm",
        default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    # MiMo and MiMo-VL.
    dataclasses.replace(CHATML_TOOLS, name="mimo", default_system="You are MiMo, an AI assistant developed by Xiaomi."),
)
