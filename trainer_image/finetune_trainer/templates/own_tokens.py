"""Templates for any model: ``{{eos_token}}`` and ``{{bos_token}}`` in them are the tokenizer's own."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError
from finetune_trainer.templates.declared import DeclaredTemplate

EOS, BOS = "{{eos_token}}", "{{bos_token}}"
_Declared = TypeVar("_Declared", bound=DeclaredTemplate)


def needs_tokenizer(template: DeclaredTemplate) -> bool:
    """Whether a token of the model's own stands in ``template``."""
    return bool(_filled(template, "", ""))


def with_own_tokens(template: _Declared, tokenizer: Any) -> _Declared:
    """``template`` with the tokens of ``tokenizer``. Its text begins with no token where the model has none.

    Raises:
        TrainerError: TEMPLATE_INVALID where an answer would end with a token that the tokenizer has not.
    """
    fields = _filled(template, tokenizer.bos_token or "", tokenizer.eos_token or "")
    if not tokenizer.eos_token and _filled(template, BOS, ""):
        raise TrainerError(
            ExitCode.TEMPLATE_INVALID,
            f"spec.template.name: template {template.name} ends an answer with the tokenizer's end-of-text token "
            "(eos_token), and this one has none; name a template of the model's family",
        )
    return dataclasses.replace(template, **fields) if fields else template


def _filled(template: DeclaredTemplate, bos: str, eos: str) -> dict[str, Any]:
    """The fields that change."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(template):
        before = getattr(template, field.name)
        after = before
        if isinstance(before, str):
            after = before.replace(BOS, bos).replace(EOS, eos)
        elif isinstance(before, tuple):
            after = tuple(word.replace(BOS, bos).replace(EOS, eos) for word in before)
        if after != before:
            found[field.name] = after
    return found
