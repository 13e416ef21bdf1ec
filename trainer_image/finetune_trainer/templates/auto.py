"""``template: auto``: the tokenizer's own Jinja, with the assistant's text found exactly.

The conversation is rendered up to each answer and past it; where one rendering is the beginning of the next, what
lies between is the answer with the end of its turn. A Jinja for which that does not hold is refused: guessing would
train on the wrong tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError
from finetune_trainer.rows import Message
from finetune_trainer.templates.slots import Segment, quote


class AutoTemplate:
    """Same interface as :class:`~finetune_trainer.templates.slots.SlotTemplate`."""

    name = "auto"

    def __init__(self, tokenizer: Any) -> None:
        """Take the Jinja of ``tokenizer``.

        Raises:
            TrainerError: TEMPLATE_INVALID where the tokenizer has none, as base models' have not.
        """
        if not tokenizer.chat_template:
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                "spec.template.name: auto takes the tokenizer's own chat template, and this model has none "
                "(a base model); name a template, such as chatml",
            )
        self._tokenizer = tokenizer
        self._own = tokenizer.chat_template
        # Longest first: `<|im_end|>` must not be taken for the end of a longer name.
        self._special = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        self.stop_words: tuple[str, ...] = ()
        self.replace_eos = False

    def jinja(self, default_system: str | None = None) -> str:
        """The tokenizer's own Jinja, with the job's system message put before conversations that have none."""
        own = str(self._own)
        if default_system is None:
            return own
        return (
            "{%- if messages[0]['role'] != 'system' %}"
            f"{{% set messages = [{{'role': 'system', 'content': {quote(default_system)}}}] + messages %}}"
            "{% endif %}" + own
        )

    def segments(self, messages: Sequence[Message], *, default_system: str | None = None) -> list[Segment]:
        """As :meth:`SlotTemplate.segments`.

        Raises:
            TrainerError: TEMPLATE_INVALID where the Jinja refuses the conversation or rewrites earlier turns.
        """
        turns = list(messages)
        if default_system is not None and turns[0].role != "system":
            turns.insert(0, Message("system", default_system))
        parts: list[Segment] = []
        done = ""
        turn = -1
        for index, message in enumerate(turns):
            if message.role == "user":
                turn += 1
            if message.role != "assistant":
                continue
            asked = self._render(turns[:index], generate=True)
            answered = self._render(turns[: index + 1], generate=False)
            if not (asked.startswith(done) and answered.startswith(asked)):
                raise TrainerError(
                    ExitCode.TEMPLATE_INVALID,
                    "spec.template.name: the tokenizer's chat template rewrites earlier turns, so the answers' "
                    "tokens cannot be told exactly; name a built-in template instead of auto",
                )
            said = [turns[index - 1], *([turns[0]] if turn == 0 and turns[0].role == "system" else [])]
            parts += _literals(asked[len(done) :], [m.content for m in said], trained=False, turn=turn)
            parts += self._answer(answered[len(asked) :], message.content, turn)
            done = answered
        return parts

    def _answer(self, text: str, content: str, turn: int) -> list[Segment]:
        """Trained up to the special token that ends the turn; a line end after it is never generated."""
        parts = _literals(text, [content], trained=True, turn=turn)
        last = parts[-1]
        ends = [(last.text.find(word), len(word)) for word in self._special if word in last.text]
        if last.literal or not ends:
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                "spec.template.name: the tokenizer's chat template ends an answer with no special token, so the "
                "tuned model would never stop; name a built-in template instead of auto",
            )
        at, length = min(ends)
        parts[-1] = Segment(last.text[: at + length], trained=True, literal=False, turn=turn)
        if rest := last.text[at + length :]:
            parts.append(Segment(rest, trained=False, literal=False, turn=turn))
        return parts

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    conversation, chat_template=self._own, tokenize=False, add_generation_prompt=generate
                )
            )
        except Exception as error:  # noqa: BLE001 - a template is a program; whatever it raises is its refusal
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                f"spec.template.name: the tokenizer's chat template refuses a conversation: {error}",
            ) from error


def _literals(text: str, contents: Sequence[str], *, trained: bool, turn: int) -> list[Segment]:
    """Split ``text`` so that what people wrote is marked literal, as far as it stands there unchanged."""
    for content in contents:
        for variant in (content, content.strip()):
            at = text.rfind(variant) if variant else -1
            if at >= 0:
                rest = [other for other in contents if other != content]
                return [
                    *_literals(text[:at], rest, trained=trained, turn=turn),
                    Segment(variant, trained, literal=True, turn=turn),
                    *_literals(text[at + len(variant) :], (), trained=trained, turn=turn),
                ]
    return [Segment(text, trained, literal=False, turn=turn)] if text else []
