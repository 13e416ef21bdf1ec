"""Templates by slots: one declaration gives the text, what is trained, and the Jinja that is exported.

The slots are those of the guide: ``format_user`` holds the user's text and the header of the answer. Here the header
stands apart (``assistant_header``), since the exported Jinja must be able to leave it out
(``add_generation_prompt=False``).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.messages import Message

CONTENT = "{{content}}"


@dataclass(frozen=True)
class Segment:
    """A piece of a rendered conversation.

    ``literal``: text that a person wrote, in which special tokens mean nothing. ``turn``: number of the user turn it
    belongs to, from 0; the system message belongs to the first.
    """

    text: str
    trained: bool
    literal: bool
    turn: int


@dataclass(frozen=True)
class SlotTemplate:
    """A conversation format. Every slot but the prefix holds ``{{content}}`` once."""

    name: str
    system: str
    user: str
    assistant_header: str
    assistant: str
    prefix: str = ""
    default_system: str = ""
    stop_words: tuple[str, ...] = ()
    replace_eos: bool = False
    """Export the first stop word as the tokenizer's end-of-sequence token, as serving stops at that."""

    @property
    def format_user(self) -> str:
        """The guide's ``format_user``: the user's turn with the header of the answer."""
        return self.user + self.assistant_header

    def segments(self, messages: Sequence[Message], *, default_system: str | None = None) -> list[Segment]:
        """Render ``messages`` (optional system, then user and assistant in turn).

        Args:
            messages: the conversation.
            default_system: used where the conversation has no system message; None means the template's own.
        """
        system = self.default_system if default_system is None else default_system
        turns = list(messages)
        if turns and turns[0].role == "system":
            system = turns.pop(0).content
        parts: list[Segment] = []
        if self.prefix:
            parts.append(Segment(self.prefix, trained=False, literal=False, turn=0))
        if system:
            parts += _fill(self.system, system, trained=False, turn=0)
        turn = -1
        for message in turns:
            if message.role == "user":
                turn += 1
                parts += _fill(self.user, message.content, trained=False, turn=turn)
                parts.append(Segment(self.assistant_header, trained=False, literal=False, turn=turn))
            else:
                parts += self._answer(message.content, turn)
        return [part for part in parts if part.text]

    def _answer(self, content: str, turn: int) -> list[Segment]:
        """The assistant's slot: trained up to the stop word; a line end after it is never generated."""
        before, said, after = _fill(self.assistant, content, trained=True, turn=turn)
        ends = [after.text.find(word) + len(word) for word in self.stop_words if word in after.text]
        cut = min(ends, default=len(after.text))
        return [
            before,
            said,
            Segment(after.text[:cut], trained=True, literal=False, turn=turn),
            Segment(after.text[cut:], trained=False, literal=False, turn=turn),
        ]

    def jinja(self, default_system: str | None = None) -> str:
        """The same format as a Jinja chat template, for the exported tokenizer."""
        system = self.default_system if default_system is None else default_system
        return (
            f"{{{{- {quote(self.prefix)} }}}}"
            "{%- if messages[0]['role'] == 'system' -%}"
            "{%- set system_message = messages[0]['content'] -%}"
            "{%- else -%}"
            f"{{%- set system_message = {quote(system)} -%}}"
            "{%- endif -%}"
            f"{{%- if system_message -%}}{_jinja_slot(self.system, 'system_message')}{{%- endif -%}}"
            "{%- for message in messages -%}"
            f"{{%- if message['role'] == 'user' -%}}{_jinja_slot(self.user, _MESSAGE)}"
            f"{{%- if not loop.last or add_generation_prompt -%}}{{{{- {quote(self.assistant_header)} }}}}"
            "{%- endif -%}"
            f"{{%- elif message['role'] == 'assistant' -%}}{_jinja_slot(self.assistant, _MESSAGE)}"
            "{%- elif message['role'] != 'system' or not loop.first -%}"
            "{{- raise_exception('unknown role: ' + message['role']) }}"
            "{%- endif -%}{%- endfor -%}"
        )


_MESSAGE = "message['content']"


def quote(text: str) -> str:
    """``text`` as a Jinja string literal. Not in ASCII: Jinja does not join JSON's surrogate pairs."""
    return json.dumps(text, ensure_ascii=False)


def _fill(slot: str, content: str, *, trained: bool, turn: int) -> list[Segment]:
    before, _, after = slot.partition(CONTENT)
    return [
        Segment(before, trained, literal=False, turn=turn),
        Segment(content, trained, literal=True, turn=turn),
        Segment(after, trained, literal=False, turn=turn),
    ]


def _jinja_slot(slot: str, expression: str) -> str:
    before, _, after = slot.partition(CONTENT)
    return f"{{{{- {quote(before)} + {expression} + {quote(after)} }}}}"
