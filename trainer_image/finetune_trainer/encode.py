"""From conversations to tokens and to what is trained; too long ones lose whole turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from finetune_api.training import TemplateSpec

from finetune_trainer.messages import Message
from finetune_trainer.templates import Template
from finetune_trainer.tokenizer import Span, SpecialTokenInTextError, TextEncoder

TOO_LONG = "first exchange longer than maxLength"
SPECIAL_TEXT = "text holds a special token"
NOTHING_TO_TRAIN = "no token to train on"


class DroppedError(Exception):
    """A sample that cannot be trained on; the message is the reason that is counted."""


@dataclass(frozen=True)
class Encoded:
    """A sample's tokens. ``trained`` never holds for the first: nothing comes before it that could predict it."""

    ids: np.ndarray
    trained: np.ndarray
    truncated: bool


class ConversationEncoder:
    """Turns conversations into tokens by one template and one tokenizer."""

    def __init__(self, tokenizer: Any, template: Template, spec: TemplateSpec, max_length: int) -> None:
        self._text = TextEncoder(tokenizer)
        self._template = template
        self._spec = spec
        self._max_length = max_length

    def encode(self, messages: Sequence[Message]) -> Encoded:
        """Tokens of ``messages``, of at most ``max_length``: whole turns are cut from the end.

        Raises:
            DroppedError: not even the first exchange fits, or nothing in it is trained.
            TrainerError: TEMPLATE_INVALID.
        """
        ids, trained, turns = self._render(messages)
        truncated = len(ids) > self._max_length
        if truncated:
            ids, trained, turns = self._cut(messages, turns)
        if self._spec.mask_history:
            trained &= turns == turns.max()
        elif self._spec.train_on_prompt and trained.any():
            trained[: np.flatnonzero(trained)[-1]] = True
        trained[0] = False
        if not trained.any():
            raise DroppedError(NOTHING_TO_TRAIN)
        return Encoded(ids, trained, truncated)

    def _cut(self, messages: Sequence[Message], turns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        before = 1 if messages[0].role == "system" else 0
        # The turn in which the limit falls does not fit; a template may end a conversation with more than a turn.
        for kept in range(int(turns[self._max_length]), 0, -1):
            shorter = self._render(messages[: before + 2 * kept])
            if len(shorter[0]) <= self._max_length:
                return shorter
        raise DroppedError(TOO_LONG)

    def _render(self, messages: Sequence[Message]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, whether each is trained, and the number of its turn."""
        segments = self._template.segments(messages, default_system=self._spec.system)
        try:
            tokens = self._text.encode([Span(segment.text, segment.literal) for segment in segments])
        except SpecialTokenInTextError as error:
            raise DroppedError(SPECIAL_TEXT) from error
        trained = np.array([segment.trained for segment in segments], dtype=bool)[tokens.spans]
        turns = np.array([segment.turn for segment in segments], dtype=np.int64)[tokens.spans]
        return tokens.ids, trained, turns
