"""Chat templates: what is trained is what is served.

Declared templates need Jinja alone; what needs the model's tokenizer, and with it transformers, is imported late.
"""

from __future__ import annotations

from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.training import TemplateSpec

from finetune_trainer.errors import TrainerError
from finetune_trainer.templates.families import FAMILIES, find_template
from finetune_trainer.templates.marks import Segment
from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.template import Template

__all__ = ["FAMILIES", "Segment", "SlotTemplate", "Template", "find_template", "resolve_template"]


def resolve_template(spec: TemplateSpec, tokenizer: Any) -> Template:
    """The template that ``spec`` names, for ``tokenizer``, which only ``auto`` looks at.

    Raises:
        TrainerError: TEMPLATE_INVALID.
    """
    if spec.name == "auto":
        from finetune_trainer.templates.auto import AutoTemplate  # noqa: PLC0415 - see above

        return AutoTemplate(tokenizer)
    template = find_template(spec.name)
    if spec.thinking in ("enabled", "preserved") and not template.thinks:
        raise TrainerError(
            ExitCode.TEMPLATE_INVALID,
            f"spec.template.thinking: template {template.name} has no chains of thought, so that they cannot be "
            f"{spec.thinking}; leave it auto, or name a template that has, such as qwen3",
        )
    return template
