"""Where tokens stand in a text, from the bytes that each stands for.

A byte-level tokenizer (GPT-2, Llama 3, Qwen, …) cuts the bytes of a text into tokens and changes none, so that the
tokens' lengths alone tell where each ends. The library then needs not work out each token's place and text, a sixth
of its time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

_CUTS = ("Split", "Digits")
"""Pre-tokenizers that may come before the bytes: they cut the text, and may leave out some of it."""


class ByteLengths:
    """The lengths of one tokenizer's tokens."""

    def __init__(self, lengths: np.ndarray, backend: Tokenizer) -> None:
        """``lengths``: int64 (vocabulary,), bytes of each token."""
        self._lengths = lengths
        self._normalizer = backend.normalizer

    @classmethod
    def of(cls, backend: Tokenizer) -> ByteLengths | None:
        """None where tokens do not tell their bytes. All that :meth:`counts` looks at is that their sum is the
        text's, so there must be nothing that makes a token longer than what it stands for."""
        facts = json.loads(backend.to_str())
        if not _cuts_bytes_alone(facts):
            return None
        model = backend.get_vocab(with_added_tokens=False)
        if facts["model"]["unk_token"] is not None and not set(ByteLevel.alphabet()) <= model.keys():
            return None  # it stands for any byte that is none of a token
        added = {token.content: number for number, token in backend.get_added_tokens_decoder().items()}
        if any(len(text.encode()) != len(text) and text in model for text in added):
            return None  # the same token means its text, and other bytes
        lengths = np.zeros(max(chain(model.values(), added.values())) + 1, dtype=np.int64)
        lengths[list(model.values())] = [len(text) for text in model]  # a character a byte
        lengths[list(added.values())] = [len(text.encode()) for text in added]
        return cls(lengths, backend)

    def counts(self, ids: np.ndarray, texts: Sequence[str]) -> np.ndarray | None:
        """How many of the tokens ``ids`` of the joined ``texts`` end in each; None where the bytes do not tell, as
        where the tokenizer normalizes the text or leaves out some of it."""
        if self._normalizer is not None:
            text = "".join(texts)
            if not text.isascii() and self._normalizer.normalize_str(text) != text:
                return None
        ends = np.cumsum(self._lengths[ids])
        wanted = np.cumsum([len(text) if text.isascii() else len(text.encode()) for text in texts])
        if (ends[-1] if len(ends) else 0) != wanted[-1]:
            return None
        return np.diff(np.searchsorted(ends, wanted, side="right"), prepend=0)


def _cuts_bytes_alone(facts: dict[str, Any]) -> bool:
    """Whether a tokenizer does nothing but to cut the text's bytes."""
    model, before = facts["model"], facts["pre_tokenizer"] or {}
    *cuts, last = before["pretokenizers"] if before.get("type") == "Sequence" else [before]
    return (
        model["type"] == "BPE"
        and not (model["continuing_subword_prefix"] or model["end_of_word_suffix"] or model["byte_fallback"])
        and all(one["type"] in _CUTS for one in cuts)
        and (last.get("type"), last.get("add_prefix_space")) == ("ByteLevel", False)
        and (facts["normalizer"] or {"type": "NFC"})["type"] == "NFC"
    )
