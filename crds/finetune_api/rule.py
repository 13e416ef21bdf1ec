"""What a rule between fields is; :mod:`finetune_api.rules` has them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.predicates import Condition

Kind = Literal["conflict", "invalid", "unsupported"]
SPEC = ""
SOURCES = "dataset.sources[]"


@dataclass(frozen=True)
class Rule:
    """A refusal. ``field`` is the one to blame, relative to ``scope``."""

    field: str
    when: Condition
    message: str
    kind: Kind = "conflict"
    scope: str = SPEC
    cluster_only: bool = False
    """True where ``finetune run`` may do what a cluster cannot."""

    @property
    def path(self) -> str:
        """The field from the spec's root, as errors and the documentation name it."""
        return f"{self.scope}.{self.field}" if self.scope else self.field


def later(field: str, when: Condition, what: str) -> Rule:
    """The refusal of what could be computed and this release does not support, with what to do instead."""
    return Rule(field, when, f"not supported yet: {what}", "unsupported")
