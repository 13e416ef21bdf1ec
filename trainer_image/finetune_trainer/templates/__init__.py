"""Chat templates: what is trained is what is served."""

from __future__ import annotations

from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.training import TemplateSpec

from finetune_trainer.errors import TrainerError
from finetune_trainer.templates.auto import AutoTemplate
from finetune_trainer.templates.declared import DeclaredTemplate
from finetune_trainer.templates.families import FAMILIES, find_template
from finetune_trainer.templates.marks import Segment
from finetune_trainer.templates.slots import SlotTemplate

Template = DeclaredTemplate | AutoTemplate

__all__ = ["FAMILIES", "AutoTemplate", "Segment", "SlotTemplate", "Template", "find_template", "resolve_template"]


def resolve_template(spec: TemplateSpec, tokenizer: Any) -> Template:
    """The template that ``spec`` names, for ``tokenizer``.

    Raises:
        TrainerError: TEMPLATE_INVALID.
    """
    if spec.name == "auto":
        return AutoTemplate(tokenizer)
    template = find_template(spec.name)
    if spec.thinking in ("enabled", "preserved") and not template.thinks:
        raise TrainerError(
            ExitCode.TEMPLATE_INVALID,
            f"spec.template.thinking: template {template.name} has no chains of thought, so that they cannot be "
            f"{spec.thinking}; leave it auto, or name a template that has, such as qwen3",
        )
    return template
