"""The built-in templates, written from the models' own published formats; a module for each kin.

docs/templates.md lists them with what each is written from.
"""

from __future__ import annotations

import difflib

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError
from finetune_trainer.templates.declared import DeclaredTemplate
from finetune_trainer.templates.families import (
    chatml,
    cohere,
    deepseek,
    gemma4,
    glm,
    google,
    ibm,
    llama,
    microsoft,
    minimax,
    mistral,
    moonshot,
    openai,
    others,
    plain,
    qwen,
)

_KINS = (
    chatml,
    qwen,
    deepseek,
    llama,
    mistral,
    google,
    gemma4,
    microsoft,
    glm,
    cohere,
    ibm,
    moonshot,
    minimax,
    openai,
    others,
    plain,
)

FAMILIES: dict[str, DeclaredTemplate] = {template.name: template for kin in _KINS for template in kin.FAMILIES}


def find_template(name: str) -> DeclaredTemplate:
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
