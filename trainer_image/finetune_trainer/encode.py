"""From conversations to tokens and to what is trained; too long ones lose whole turns.

A turn is a user's message with all up to the next: answers, calls and the tools' results.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from finetune_api.training import TemplateSpec

from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import MediaKind, Medium, Message
from finetune_trainer.templates import Segment, Template
from finetune_trainer.templates.media import with_media
from finetune_trainer.tokenizer import Span, SpecialTokenInTextError, TextEncoder

TOO_LONG = "first exchange longer than maxLength"
SPECIAL_TEXT = "text holds a special token"
NOTHING_TO_TRAIN = "no token to train on"
ENDLESS = "no answer that is trained to end"


class DroppedError(Exception):
    """A sample that cannot be trained on; the message is the reason that is counted."""


class UntrainedError(DroppedError):
    """A sample whose mask is wrong: nothing of it is trained, or nothing that ends an answer."""


@dataclass(frozen=True)
class Encoded:
    """A sample's tokens. ``trained`` never holds for the first: nothing comes before it that could predict it."""

    ids: np.ndarray
    trained: np.ndarray
    truncated: bool
    media: tuple[Medium, ...] = ()
    """What the tokens of images and sounds stand for."""


_Rendering = tuple[list[Segment], tuple[Medium, ...]]
"""Segments, and the media that are in them."""


class ConversationEncoder:
    """Turns conversations into tokens by one template and one tokenizer."""

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        spec: TemplateSpec,
        max_length: int,
        *,
        last_answer: bool = False,
        media: Mapping[MediaKind, str] | None = None,
    ) -> None:
        """``last_answer``: train on a conversation's last answer alone, without the calls of its turn. ``media``: the
        model's placeholder of each kind that it takes."""
        self._text = TextEncoder(tokenizer)
        self._template = template
        self._spec = spec
        self._max_length = max_length
        self._last_answer = last_answer
        self._media = media or {}
        self._foreseen: dict[int, tuple[Sequence[Message], list[_Rendering]]] = {}

    def foresee(self, conversations: Iterable[tuple[Sequence[Message], Sequence[Mapping[str, Any]]]]) -> None:
        """Render the conversations that :meth:`encode` will be asked for next, each messages and tools, and tokenize
        them together."""
        self._foreseen = {}
        for messages, tools in conversations:
            with contextlib.suppress(TrainerError):  # encode will say it, with the row
                self._foreseen[id(messages)] = (messages, self._renderings(messages, tools))
        rendered = chain.from_iterable(renderings for _, renderings in self._foreseen.values())
        self._text.foresee("".join([segment.text for segment in segments]) for segments, _ in rendered)

    def encode(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[Encoded]:
        """Tokens of ``messages``, of at most ``max_length``: whole turns are cut from the end.

        The first sample is the whole conversation. Earlier answers that it shows otherwise than they were given follow
        in samples of their own (:mod:`finetune_trainer.templates.served`), but for prompts that are trained too.

        Raises:
            DroppedError: not even the first exchange fits.
            UntrainedError: nothing in it is trained.
            TrainerError: TEMPLATE_INVALID.
        """
        whole, *parts = self._render(messages, tools)
        truncated = len(whole.ids) > self._max_length
        if truncated:
            whole, parts = self._cut(messages, tools, whole.turn_at(self._max_length))
        if self._spec.train_on_prompt and whole.trained.any():
            whole.trained[: np.flatnonzero(whole.trained)[-1]] = True
            whole.trained[whole.of_media] = False
        samples = []
        for rendered in (whole, *parts):
            if len(rendered.ids) > self._max_length:
                truncated = True  # it holds a thought that the whole leaves out
                continue
            rendered.trained[0] = False
            if rendered.trained.any():
                samples.append(rendered)
        if not samples:
            raise UntrainedError(NOTHING_TO_TRAIN)
        return [
            Encoded(sample.ids, sample.trained, truncated and sample is samples[0], sample.media) for sample in samples
        ]

    def _cut(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], turn: int
    ) -> tuple[_Rendered, list[_Rendered]]:
        """As many turns as fit; ``turn``: the one in which the limit falls, as far as the template can tell."""
        users = [place for place, message in enumerate(messages) if message.role == "user"]
        for kept in range(min(turn + 1, len(users) - 1), 0, -1):
            whole, *parts = self._render(messages[: users[kept]], tools)
            if len(whole.ids) <= self._max_length:
                return whole, parts
        raise DroppedError(TOO_LONG)

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[_Rendered]:
        same, renderings = self._foreseen.get(id(messages), (None, []))
        if same is not messages:
            renderings = self._renderings(messages, tools)
        return [self._tokens(segments, media) for segments, media in renderings]

    def _renderings(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[_Rendering]:
        found = self._template.renderings(
            messages,
            tools,
            first=self._first(messages),
            default_system=self._spec.system,
            thinking=self._spec.thinking,
        )
        media = [medium for message in messages for medium in message.media]
        if not media:
            return [(segments, ()) for segments in found]
        named = self._template.name
        return [
            with_media(segments, media, self._media, template=named, whole=number == 0)
            for number, segments in enumerate(found)
        ]

    def _first(self, messages: Sequence[Message]) -> int:
        """Number of the first answer that is trained."""
        roles = [message.role for message in messages]
        if self._last_answer or self._spec.train_on_prompt:  # with the last one, all before it is trained
            return roles.count("assistant") - 1
        if self._spec.mask_history and "user" in roles:
            last = len(roles) - 1 - roles[::-1].index("user")
            return roles[:last].count("assistant")
        return 0

    def _tokens(self, segments: Sequence[Segment], media: tuple[Medium, ...]) -> _Rendered:
        try:
            tokens = self._text.encode([Span(segment.text, segment.literal) for segment in segments])
        except SpecialTokenInTextError as error:
            raise DroppedError(SPECIAL_TEXT) from error
        trained = np.repeat(np.array([segment.trained for segment in segments], dtype=bool), tokens.counts)
        return _Rendered(tokens.ids, trained, segments, tokens.counts, media)


@dataclass(frozen=True)
class _Rendered:
    """A text's tokens, and the segments that they are of."""

    ids: np.ndarray
    trained: np.ndarray
    segments: Sequence[Segment]
    counts: np.ndarray
    """Of tokens, in each segment."""
    media: tuple[Medium, ...]

    def turn_at(self, token: int) -> int:
        """Number of the turn of that token."""
        return self.segments[int(np.searchsorted(np.cumsum(self.counts), token, side="right"))].turn

    @property
    def of_media(self) -> np.ndarray:
        """Whether each token stands for a medium."""
        return np.repeat(np.array([segment.medium for segment in self.segments], dtype=bool), self.counts)
