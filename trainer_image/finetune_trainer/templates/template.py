"""What every template can do, whether it is declared or the tokenizer's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from finetune_trainer.messages import Message
from finetune_trainer.templates.marks import Segment

Thinking = Literal["auto", "enabled", "disabled", "preserved"]
"""The job's ``template.thinking``."""


class Template(Protocol):
    """A conversation format.

    Of all its methods: ``tools`` are the functions that may be called. ``default_system`` is used where the
    conversation has no system message; None means the template's own. They raise TrainerError: TEMPLATE_INVALID where
    the format cannot hold the conversation.
    """

    @property
    def name(self) -> str:
        """As ``template.name`` has it."""
        ...

    @property
    def stop_words(self) -> tuple[str, ...]:
        """What ends an answer; the first one ends every turn."""
        ...

    @property
    def replace_eos(self) -> bool:
        """Export the first stop word as the tokenizer's end-of-sequence token, as serving stops at that."""
        ...

    def segments(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        default_system: str | None = None,
        thinking: Thinking = "auto",
    ) -> list[Segment]:
        """A conversation: optional system, then user and assistant in turn, tools' results behind the calls."""
        ...

    def renderings(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        first: int = 0,
        default_system: str | None = None,
        thinking: Thinking = "auto",
    ) -> list[list[Segment]]:
        """The texts that train each answer, from the ``first`` on, once and as it is served; the whole conversation
        comes first. See :mod:`finetune_trainer.templates.served`.

        Args:
            messages: as :meth:`segments`, an answer last.
            tools: see the class.
            first: number of the first answer that is trained, from 0.
            default_system: see the class.
            thinking: the job's.
        """
        ...

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        default_system: str | None = None,
        thinking: Thinking = "auto",
    ) -> str:
        """The text that the model is asked with, to answer ``messages``."""
        ...

    def jinja(self, default_system: str | None = None, thinking: Thinking = "auto") -> str:
        """The same format as a Jinja chat template, for the exported tokenizer."""
        ...
