"""The built-in templates, written from the models' own published formats."""

from __future__ import annotations

import dataclasses
import difflib

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError
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

FAMILIES: dict[str, SlotTemplate] = {
    template.name: template
    for template in (
        CHATML,
        # Qwen3 without chains of thought: it has no default system message.
        dataclasses.replace(CHATML, name="qwen3_nothink"),
        # Qwen, Qwen1.5, Qwen2 and Qwen2.5; the guide's section 4.
        dataclasses.replace(
            CHATML,
            name="qwen",
            default_system="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        ),
        dataclasses.replace(
            CHATML,
            name="smollm",
            default_system="You are a helpful AI assistant named SmolLM, trained by Hugging Face",
        ),
    )
}


def find_template(name: str) -> SlotTemplate:
    """The built-in template of that name.

    Raises:
        TrainerError: TEMPLATE_INVALID, with the names there are and the nearest one.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    near = difflib.get_close_matches(name, FAMILIES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise TrainerError(
        ExitCode.TEMPLATE_INVALID,
        f"spec.template.name: there is no template {name!r}; {hint}known: auto, {', '.join(sorted(FAMILIES))}",
    )
