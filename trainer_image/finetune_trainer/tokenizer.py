"""The model's tokenizer: loaded in one way by all, and text encoded so that each token knows its place."""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from finetune_api.failures import ExitCode
from tokenizers import Encoding, Tokenizer
from tokenizers.models import BPE
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from finetune_trainer.byte_lengths import ByteLengths
from finetune_trainer.errors import TrainerError

_WORDS_KEPT = 2**16
"""Words whose tokens the library keeps, of 200 bytes each; by itself 10,000, and a text takes a ninth longer."""


def load_tokenizer(directory: Path, *, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """The tokenizer in ``directory``, with a pad token.

    The pad token may be the end of text: padding is masked by position, never by id, so the loss sees every real end.

    Raises:
        TrainerError: MODEL_INVALID.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the libraries raise whatever a broken file makes them raise
        hint = (
            "it needs Python code of its own: set spec.model.trustRemoteCode, if you trust it"
            if "trust_remote_code" in str(error)
            else f"{type(error).__name__}: {error}"
        )
        raise TrainerError(
            ExitCode.MODEL_INVALID, f"spec.model.source: the tokenizer in {directory} cannot be loaded: {hint}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            "spec.model.source: the model has no fast tokenizer (tokenizer.json), which says where in the text a "
            "token stands; save one beside the model with AutoTokenizer(…, use_fast=True).save_pretrained",
        )
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _of_processor(directory)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def _of_processor(directory: Path) -> str | None:
    """The chat template that older processors keep in a file of their own."""
    try:
        kept = json.loads((directory / "chat_template.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = kept.get("chat_template") if isinstance(kept, dict) else None
    return found if isinstance(found, str) else None


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The text of each special token, longest first: `<|end|>` must not be taken for part of a longer name.

    `all_special_tokens` holds those with a role; the others that steer a conversation, such as Llama 3's
    `<|eot_id|>`, are among the added ones.
    """
    named = {str(token) for token in tokenizer.all_special_tokens}
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(named | added, key=lambda text: (-len(text), text)))


def vocabulary_size(tokenizer: Any) -> int:
    """No token is as high."""
    return max(tokenizer.get_vocab().values()) + 1


def fingerprint(tokenizer: Any) -> str:
    """Hash of all that decides how text becomes tokens."""
    parts = [tokenizer.backend_tokenizer.to_str(), list(special_tokens(tokenizer)), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Span(NamedTuple):
    """A piece of text; in a ``literal`` one special tokens mean nothing."""

    text: str
    literal: bool


@dataclass(frozen=True)
class Tokens:
    """Ids, and how many of them end in each span."""

    ids: np.ndarray
    """int64 (n,)"""
    counts: np.ndarray
    """int64 (spans,); their sum is n."""

    @property
    def spans(self) -> np.ndarray:
        """Number of the span of each token."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


class SpecialTokenInTextError(Exception):
    """A person's text holds a special token, and this tokenizer cannot take it for text."""


class TextEncoder:
    """Encodes spans as one text: the ids are those that the serving side gets from the same text.

    Where a literal span holds the text of a special token, that stays text: the rest between special tokens is then
    encoded piece by piece, by a copy of the tokenizer that knows none.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._whole = _plain_copy(tokenizer.backend_tokenizer)
        if isinstance(self._whole.model, BPE):
            self._whole.model._resize_cache(_WORDS_KEPT)  # noqa: SLF001 - the library has no other name for it
        special = special_tokens(tokenizer)
        ids = [tokenizer.convert_tokens_to_ids(text) for text in special]
        self._special = dict(zip(special, ids, strict=True))
        vocabulary = self._whole.get_vocab(with_added_tokens=True)
        self._is_special = np.zeros(max([*vocabulary.values(), *ids, 0]) + 1, dtype=bool)
        self._is_special[ids] = True
        self._split = re.compile(f"({'|'.join(map(re.escape, special))})") if special else None
        self._bytes = ByteLengths.of(self._whole)
        self._foreseen: dict[str, Encoding] = {}

    def foresee(self, texts: Iterable[str]) -> None:
        """Tokenize what :meth:`encode` will be asked for next, and that alone. In one go it is faster than one by one:
        the vocabulary stays in the processor's cache."""
        joined = list(dict.fromkeys(texts))
        self._foreseen = dict(zip(joined, self._encoded(joined), strict=True))

    def _encoded(self, texts: list[str]) -> list[Encoding]:
        """With each token's place where it takes that to know its span."""
        encode = self._whole.encode_batch if self._bytes is None else self._whole.encode_batch_fast
        return encode(texts, add_special_tokens=False)

    def encode(self, spans: list[Span]) -> Tokens:
        """Ids of the joined text.

        Raises:
            SpecialTokenInTextError: see the class.
        """
        texts = [span.text for span in spans]
        text = "".join(texts)
        encoding = self._foreseen.get(text) or self._encoded([text])[0]
        ids = np.array(encoding.ids, dtype=np.int64)
        counts = None if self._bytes is None else self._bytes.counts(ids, texts)
        if counts is None:
            placed = encoding if self._bytes is None else self._whole.encode(text, add_special_tokens=False)
            counts = _counts(placed, [len(text) for text in texts])
        special = np.flatnonzero(self._is_special[ids])
        literal = np.array([span.literal for span in spans], dtype=bool)
        if not literal[np.searchsorted(np.cumsum(counts), special, side="right")].any():
            return Tokens(ids, counts)
        if not self._piecewise_is_exact:
            raise SpecialTokenInTextError
        return self._piecewise(spans, np.cumsum([len(text) for text in texts]))

    def _piecewise(self, spans: list[Span], spans_end: np.ndarray) -> Tokens:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        text, start, place = "", 0, 0

        def flush() -> None:
            nonlocal text
            if text:
                encoding = self._textual.encode(text, add_special_tokens=False)
                ids.extend(encoding.ids)
                offsets.extend((start + first, start + last) for first, last in encoding.offsets)
            text = ""

        for span in spans:
            pieces = [span.text] if span.literal or self._split is None else self._split.split(span.text)
            for number, piece in enumerate(pieces):
                if number % 2 == 0:
                    if not text:
                        start = place
                    text += piece
                else:
                    flush()
                    ids.append(self._special[piece])
                    offsets.append((place, place + len(piece)))
                place += len(piece)
        flush()
        return _placed(ids, offsets, spans_end)

    @cached_property
    def _textual(self) -> Tokenizer:
        """Knows no special token. Few data need it, and a copy takes a tenth of a second."""
        copy = _plain_copy(self._whole)
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _piecewise_is_exact(self) -> bool:
        """Whether pieces encode as the whole does. Not so where the start of a text is marked (SentencePiece)."""
        if not self._special:
            return False
        mark = next(iter(self._special))
        spans = [Span(f"{mark}user\n", literal=False), Span("One two", literal=True), Span(mark + "\n", literal=False)]
        ends = np.cumsum([len(span.text) for span in spans])
        whole = self._whole.encode("".join(span.text for span in spans), add_special_tokens=False)
        return bool(whole.ids == self._piecewise(spans, ends).ids.tolist())


def _plain_copy(backend: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _counts(encoding: Encoding, lengths: list[int]) -> np.ndarray:
    """How many tokens each span has, by the rule of :func:`_placed`; spans are few, so that looking for their ends is
    cheaper than to ask where each token is."""
    count = len(encoding)

    def last_character(token: int) -> int:
        start, end = encoding.token_to_chars(token)
        return max(start, end - 1)

    counts: list[int] = []
    end = first = 0
    for length in lengths[:-1]:
        end += length
        # The first token that holds the next span's first character, or reaches into it. A character that no token
        # holds (a normalizer took it away) tells nothing.
        behind = encoding.char_to_token(end) if length else first
        if behind is None:
            behind = bisect.bisect_left(range(count), end, lo=first, key=last_character)
        counts.append(behind - first)
        first = behind
    return np.array([*counts, count - first], dtype=np.int64)


def _placed(ids: list[int], offsets: list[tuple[int, int]], spans_end: np.ndarray) -> Tokens:
    """A token belongs to the span that its last character is in: one that reaches into an answer is part of it."""
    last = np.array([max(start, end - 1) for start, end in offsets], dtype=np.int64)
    places = np.minimum(np.searchsorted(spans_end, last, side="right"), len(spans_end) - 1)
    return Tokens(np.array(ids, dtype=np.int64), np.bincount(places, minlength=len(spans_end)))
