"""Chat templates: what is trained is what is served.

Declared templates need Jinja alone; what needs the model's tokenizer, and with it transformers, is imported late.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from finetune_api.chat_template import ChatTemplateSpec
from finetune_api.failures import ExitCode
from finetune_api.training import TemplateSpec

from finetune_trainer.errors import TrainerError
from finetune_trainer.templates.custom import custom_template
from finetune_trainer.templates.declared import DeclaredTemplate
from finetune_trainer.templates.families import FAMILIES, find_template
from finetune_trainer.templates.marks import Segment
from finetune_trainer.templates.own_tokens import with_own_tokens
from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.template import Template

__all__ = [
    "FAMILIES",
    "DeclaredTemplate",
    "Segment",
    "SlotTemplate",
    "Template",
    "find_declared",
    "find_template",
    "resolve_template",
]


def resolve_template(spec: TemplateSpec, tokenizer: Any, custom: ChatTemplateSpec | None = None) -> Template:
    """The template that ``spec`` names, for ``tokenizer``.

    Args:
        spec: the job's.
        tokenizer: the model's.
        custom: what ``spec.ref`` names.

    Raises:
        TrainerError: TEMPLATE_INVALID.
    """
    declared = find_declared(spec, custom)
    if declared is not None:
        return with_own_tokens(dataclasses.replace(declared, day=spec.date), tokenizer)
    from finetune_trainer.templates.auto import AutoTemplate  # noqa: PLC0415 - see above

    return AutoTemplate(tokenizer, day=spec.date)


def find_declared(spec: TemplateSpec, custom: ChatTemplateSpec | None = None) -> DeclaredTemplate | None:
    """The same, without the tokenizer's own tokens; None for ``auto``.

    Raises:
        TrainerError: TEMPLATE_INVALID.
    """
    if custom is not None:
        template: DeclaredTemplate = custom_template(spec.ref or "of one's own", custom)
    elif spec.name == "auto":
        return None
    else:
        template = find_template(spec.name)
    if spec.thinking in ("enabled", "preserved") and not template.thinks:
        raise TrainerError(
            ExitCode.TEMPLATE_INVALID,
            f"spec.template.thinking: template {template.name} has no chains of thought, so that they cannot be "
            f"{spec.thinking}; leave it auto, or name a template that has, such as qwen3",
        )
    return template
