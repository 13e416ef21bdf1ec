"""Chat templates: what is trained is what is served."""

from __future__ import annotations

from typing import Any

from finetune_api.training import TemplateSpec

from finetune_trainer.templates.auto import AutoTemplate
from finetune_trainer.templates.families import FAMILIES, find_template
from finetune_trainer.templates.marks import Segment
from finetune_trainer.templates.slots import SlotTemplate

Template = SlotTemplate | AutoTemplate

__all__ = ["FAMILIES", "AutoTemplate", "Segment", "SlotTemplate", "Template", "find_template", "resolve_template"]


def resolve_template(spec: TemplateSpec, tokenizer: Any) -> Template:
    """The template that ``spec`` names, for ``tokenizer``.

    Raises:
        TrainerError: TEMPLATE_INVALID.
    """
    return AutoTemplate(tokenizer) if spec.name == "auto" else find_template(spec.name)
