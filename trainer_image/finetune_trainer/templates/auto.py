"""``template: auto``: the tokenizer's own Jinja, with the assistant's text found exactly.

The whole conversation is rendered once, as the model will see it. An answer begins where the rendering of all before
it, with the generation prompt, ends, and it ends with the first special token behind its text. Where that does not
hold, the spans that the Jinja itself marks (``{% generation %}``) are taken; where there are none, the template is
refused: guessing would train on the wrong tokens.

A special token's text in a message stays text as in the built-in templates: the messages' places are found by a
second rendering with marks in their stead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from finetune_api.failures import ExitCode
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Message
from finetune_trainer.templates.declared import Thinking
from finetune_trainer.templates.marks import Segment
from finetune_trainer.templates.tool_formats import quote
from finetune_trainer.tokenizer import special_tokens

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_Place = tuple[int, int]


class AutoTemplate:
    """Same interface as :class:`~finetune_trainer.templates.slots.SlotTemplate`."""

    name = "auto"
    replace_eos = False

    def __init__(self, tokenizer: Any) -> None:
        """Take the Jinja of ``tokenizer``.

        Raises:
            TrainerError: TEMPLATE_INVALID where the tokenizer has none, as base models' have not.
        """
        if not tokenizer.chat_template:
            raise _invalid(
                "auto takes the tokenizer's own chat template, and this model has none (a base model); name a "
                "template, such as chatml"
            )
        self._tokenizer = tokenizer
        self._own = str(tokenizer.get_chat_template())
        self._special = special_tokens(tokenizer)
        probe = self.segments([Message("user", "question"), Message("assistant", "reply")])
        self.stop_words: tuple[str, ...] = (self._end_of_turn(probe),)

    def jinja(self, default_system: str | None = None) -> str:
        """The tokenizer's own Jinja, with the job's system message put before conversations that have none."""
        if default_system is None:
            return self._own
        return (
            "{%- if messages[0]['role'] != 'system' %}"
            f"{{% set messages = [{{'role': 'system', 'content': {quote(default_system)}}}] + messages %}}"
            "{% endif %}" + self._own
        )

    def segments(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        default_system: str | None = None,
        thinking: Thinking = "auto",
    ) -> list[Segment]:
        """As :meth:`SlotTemplate.segments`.

        Raises:
            TrainerError: TEMPLATE_INVALID where the Jinja refuses the conversation or the answers cannot be found.
        """
        messages = list(messages)
        if default_system is not None and messages[0].role != "system":
            messages.insert(0, Message("system", default_system))
        text = self._render(messages, generate=False)
        contents = self._contents(messages, text)
        trained = self._trained(messages, text, contents)
        starts = [0]  # where each turn begins: behind the answer before it
        starts += [end for _, end in trained[:-1]]
        literal = [place for place in contents if place is not None]
        cuts = sorted({0, len(text), *starts, *(edge for place in (*trained, *literal) for edge in place)})
        return [
            Segment(
                text[start:end],
                literal=_within(start, literal),
                turn=sum(start >= first for first in starts) - 1,
                answer=next((n for n, (first, last) in enumerate(trained) if first <= start < last), None),
            )
            for start, end in pairwise(cuts)
        ]

    def _trained(self, messages: Sequence[Message], text: str, contents: list[_Place | None]) -> list[_Place]:
        found: list[_Place] = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            asked = self._render(messages[:index], generate=True)
            place = contents[index]
            if not text.startswith(asked) or place is None or place[0] < len(asked):
                return self._marked_by_jinja(messages)
            found.append((len(asked), self._end(text, place[1])))
        return found

    def _end(self, text: str, start: int) -> int:
        """End of the special token that closes the answer whose text ends at ``start``."""
        ends = [(at, at + len(word)) for word in self._special if (at := text.find(word, start)) >= 0]
        if not ends:
            raise _invalid(
                "the tokenizer's chat template ends an answer with no special token, so the tuned model would never "
                "stop; name a built-in template instead of auto"
            )
        # Several tokens may begin at one place; the longest is meant.
        return max(ends, key=lambda place: (-place[0], place[1]))[1]

    def _marked_by_jinja(self, messages: Sequence[Message]) -> list[_Place]:
        answers = sum(message.role == "assistant" for message in messages)
        if not _GENERATION.search(self._own):
            raise _invalid(
                "the tokenizer's chat template rewrites what messages say or how earlier turns look, so that the "
                "answers' tokens cannot be told exactly; name a built-in template instead of auto"
            )
        # With the mask it gives the places of the answers beside the text.
        texts, places = cast(
            "tuple[list[str], list[list[_Place]]]",
            render_jinja_template(
                [_plain(messages)],
                chat_template=self._own,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            ),
        )
        if len(places[0]) != answers:
            raise _invalid(
                f"the tokenizer's chat template marks {len(places[0])} answers of a conversation that has {answers}; "
                "name a built-in template instead of auto"
            )
        text = texts[0]
        found = []
        for start, end in places[0]:
            # Authors often leave the token that ends the turn outside; without it the model would not learn to stop.
            closed = any(text[start:end].rstrip().endswith(word) for word in self._special)
            found.append((start, end if closed else self._end(text, end)))
        return found

    def _contents(self, messages: Sequence[Message], text: str) -> list[_Place | None]:
        """Where each message's text stands in ``text``; None for one that is not found exactly once."""
        marks = [f"Mark{index}of{len(messages)}text" for index in range(len(messages))]
        marked = self._render(
            [Message(message.role, mark) for message, mark in zip(messages, marks, strict=True)], generate=False
        )
        places = _walk(re.split("(" + "|".join(map(re.escape, marks)) + ")", marked), marks, messages, text)
        return places or [_only(message.content, text) for message in messages]

    def _end_of_turn(self, segments: Sequence[Segment]) -> str:
        said = "".join(segment.text for segment in segments if segment.trained)
        return next(word for word in self._special if said.endswith(word))

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    _plain(messages), chat_template=self._own, tokenize=False, add_generation_prompt=generate
                )
            )
        except Exception as error:  # a template is a program; whatever it raises is its refusal
            raise _invalid(f"the tokenizer's chat template refuses a conversation: {error}") from error


def _invalid(problem: str) -> TrainerError:
    return TrainerError(ExitCode.TEMPLATE_INVALID, f"spec.template.name: {problem}")


def _plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def _within(position: int, places: Sequence[_Place]) -> bool:
    return any(start <= position < end for start, end in places)


def _variants(content: str) -> list[str]:
    """What templates make of a message: as it is, or without space around it."""
    made = (content, content.strip(), content.strip("\n"), content.lstrip("\n"), content.rstrip(), content.lstrip())
    return list(dict.fromkeys(made))


def _walk(pieces: list[str], marks: list[str], messages: Sequence[Message], text: str) -> list[_Place | None] | None:
    """Follow ``text`` along the marked rendering's ``pieces``; None where the two part."""
    places: list[_Place | None] = [None] * len(messages)
    if not text.startswith(pieces[0]):
        return None
    position = len(pieces[0])
    for mark, fixed in zip(pieces[1::2], pieces[2::2], strict=True):
        index = marks.index(mark)
        said = next(
            (said for said in _variants(messages[index].content) if text.startswith(said + fixed, position)), None
        )
        if said is None or places[index] is not None:
            return None
        places[index] = (position, position + len(said))
        position += len(said) + len(fixed)
    return places if position == len(text) else None


def _only(content: str, text: str) -> _Place | None:
    for said in _variants(content):
        if text.count(said) == 1:
            return (at := text.index(said), at + len(said))
    return None
