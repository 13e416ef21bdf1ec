"""Samples of every kind: what a row of each format is read as, and how it becomes tokens.

A row gives units, each of which becomes one sequence where nothing is packed: a conversation, a piece of a text, a
pair of answers, a labelled answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from finetune_api.trainer_config import ResolvedSource
from finetune_api.training import DatasetFormat, TemplateSpec

from finetune_trainer.encode import (
    NOTHING_TO_TRAIN,
    SPECIAL_TEXT,
    ConversationEncoder,
    DroppedError,
    Encoded,
    UntrainedError,
)
from finetune_trainer.messages import Conversation, Message
from finetune_trainer.preference_rows import Pair, Rated, pair_of, rated_of
from finetune_trainer.row_files import RawRow, raw_rows
from finetune_trainer.rows import conversation_of, row_of, text_in
from finetune_trainer.templates import Template
from finetune_trainer.tokenizer import Span, SpecialTokenInTextError, TextEncoder
from finetune_trainer.turns import check_text

PROMPT_TOO_LONG = "prompt longer than maxLength"
SAME_ANSWERS = "chosen and rejected are the same"


@dataclass(frozen=True)
class Text:
    """Plain text."""

    text: str
    where: str
    """File and row, for a person."""


Sample = Conversation | Text | Pair | Rated


def read_samples(source: ResolvedSource, file: Path) -> Iterator[Sample]:
    """Stream the rows of one file as what its format says they are.

    Raises:
        TrainerError: DATASET_INVALID, naming file, row and field.
    """
    for raw in raw_rows(file):
        yield sample_of(source, raw)


def sample_of(source: ResolvedSource, raw: RawRow) -> Sample:
    """A row as what its source's format says it is.

    Raises:
        RowError: naming file, row and field.
    """
    return _READERS[source.format](source, raw)


def _text_of(source: ResolvedSource, raw: RawRow) -> Text:
    text = text_in(row_of(source, raw), "text", raw.where, required=True)
    check_text(text, "'text'", raw.where)
    return Text(text, raw.where)


_READERS: dict[DatasetFormat, Callable[[ResolvedSource, RawRow], Sample]] = {
    "alpaca": conversation_of,
    "sharegpt": conversation_of,
    "openai": conversation_of,
    "text": _text_of,
    "preference": pair_of,
    "kto": rated_of,
}


@dataclass(frozen=True)
class Unit:
    """What belongs into one sequence."""

    samples: tuple[Encoded, ...]
    desirable: bool | None = None

    @property
    def truncated(self) -> bool:
        """Whether a sample of it lost something."""
        return any(sample.truncated for sample in self.samples)


class SampleEncoder(Protocol):
    """Turns a stage's samples into tokens."""

    def foresee(self, samples: Sequence[Any]) -> None:
        """Get ready for the samples that come next: together their texts are tokenized faster than one by one."""
        ...

    def encode(self, sample: Any) -> list[Unit]:
        """The sample's units.

        Raises:
            DroppedError: there is nothing in it to train on.
            TrainerError: TEMPLATE_INVALID.
        """
        ...


class Conversations:
    """Stage sft."""

    def __init__(self, encoder: ConversationEncoder) -> None:
        self._encoder = encoder

    def foresee(self, samples: Sequence[Conversation]) -> None:
        """As :meth:`SampleEncoder.foresee`."""
        self._encoder.foresee((sample.messages, sample.tools) for sample in samples)

    def encode(self, sample: Conversation) -> list[Unit]:
        """The conversation, whole turns cut from its end; more than one where earlier answers need their own."""
        return [Unit((encoded,)) for encoded in self._encoder.encode(sample.messages, sample.tools)]


class Texts:
    """Stage pt: text as the tokenizer begins it, and the end of text behind it."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._encoder = TextEncoder(tokenizer)
        begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        self._start = Span(tokenizer.bos_token if begins else "", literal=False)
        self._end = Span(tokenizer.eos_token, literal=False)
        self._max_length = max_length

    def foresee(self, samples: Sequence[Text]) -> None:
        """As :meth:`SampleEncoder.foresee`."""
        self._encoder.foresee("".join([span.text for span in self._spans(sample)]) for sample in samples)

    def _spans(self, sample: Text) -> list[Span]:
        return [self._start, Span(sample.text, literal=True), self._end]

    def encode(self, sample: Text) -> list[Unit]:
        """Pieces of at most ``max_length`` tokens. Each begins with the last token of the one before, so that every
        token but the text's first is trained once."""
        try:
            ids = self._encoder.encode(self._spans(sample)).ids
        except SpecialTokenInTextError as error:
            raise DroppedError(SPECIAL_TEXT) from error
        if len(ids) < 2:  # nothing comes before the one that could predict it
            raise UntrainedError(NOTHING_TO_TRAIN)
        pieces = (ids[start : start + self._max_length] for start in range(0, len(ids) - 1, self._max_length - 1))
        return [Unit((Encoded(piece, np.arange(len(piece)) > 0, truncated=False),)) for piece in pieces]


class _Answers:
    """The last answer of a conversation is what is judged; where it is too long, it loses its end."""

    def __init__(self, tokenizer: Any, template: Template, spec: TemplateSpec, max_length: int) -> None:
        asked = spec.model_copy(update={"train_on_prompt": False})
        self._encoder = ConversationEncoder(tokenizer, template, asked, sys.maxsize, last_answer=True)
        self._max_length = max_length

    def _encoded(self, messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...]) -> Encoded:
        (whole,) = self._encoder.encode(messages, tools)
        if len(whole.ids) <= self._max_length:
            return whole
        ids, trained = whole.ids[: self._max_length], whole.trained[: self._max_length]
        if not trained.any():
            raise DroppedError(PROMPT_TOO_LONG)
        return Encoded(ids, trained, truncated=True)


class Pairs(_Answers):
    """Stages dpo, orpo and rm."""

    def foresee(self, samples: Sequence[Pair]) -> None:
        """As :meth:`SampleEncoder.foresee`."""
        self._encoder.foresee((one, pair.tools) for pair in samples for one in (pair.chosen, pair.rejected))

    def encode(self, sample: Pair) -> list[Unit]:
        """The chosen and the rejected answer, each behind the prompt and cut at the same length."""
        if sample.chosen == sample.rejected:
            raise DroppedError(SAME_ANSWERS)
        chosen, rejected = (self._encoded(one, sample.tools) for one in (sample.chosen, sample.rejected))
        if np.array_equal(chosen.ids, rejected.ids):
            raise DroppedError(f"{SAME_ANSWERS} within maxLength" if chosen.truncated else SAME_ANSWERS)
        return [Unit((chosen, rejected))]


class Labelled(_Answers):
    """Stage kto."""

    def foresee(self, samples: Sequence[Rated]) -> None:
        """As :meth:`SampleEncoder.foresee`."""
        self._encoder.foresee((sample.messages, sample.tools) for sample in samples)

    def encode(self, sample: Rated) -> list[Unit]:
        """The answer behind its prompt."""
        return [Unit((self._encoded(sample.messages, sample.tools),), sample.desirable)]
