"""Templates whose rules go beyond slots: Jinja of our own, with marks."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.messages import MEDIA_KINDS, MediaKind
from finetune_trainer.templates.declared import DeclaredTemplate


@dataclass(frozen=True, kw_only=True)
class OwnTemplate(DeclaredTemplate):
    """A family's own Jinja, with the marks of :mod:`~finetune_trainer.templates.marks`. Every assistant's message has
    one ``{#answer#}…{#/answer#}``, every user's one ``{#turn#}``."""

    source: str
    """As :meth:`DeclaredTemplate.body`."""
    thinks: bool = False
    """As :attr:`DeclaredTemplate.thinks`."""
    takes_tools: bool = False
    """As :attr:`DeclaredTemplate.takes_tools`."""
    rewrites: bool = True
    """As :attr:`DeclaredTemplate.rewrites`; looked for unless it is known."""

    @property
    def media_kinds(self) -> tuple[MediaKind, ...]:
        """As :attr:`DeclaredTemplate.media_kinds`."""
        return tuple(kind for kind in MEDIA_KINDS if f"part.type in ('{kind}'" in self.source)

    def body(self) -> str:
        """As :meth:`DeclaredTemplate.body`."""
        return self.source
