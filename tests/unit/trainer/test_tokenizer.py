"""Tokens know their span: the quick way of finding it gives what asking each token would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer import tokenizer as tokenizer_module
from finetune_trainer.tokenizer import Span, TextEncoder, load_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


def sentencepiece_like() -> Tokenizer:
    """Marks the start of words, and changes the text before: places in the two differ."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(["the answer is fine and so is ﬁve"] * 3, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def backends(tiny: Path) -> dict[str, Tokenizer]:
    byte_level = load_tokenizer(tiny, trust_remote_code=False).backend_tokenizer
    return {"byte level": byte_level, "sentencepiece": sentencepiece_like()}


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from("ab e.\nﬁ½é你🌸\u0301<|im_end|>"), max_size=12), min_size=1, max_size=7),
       kind=st.sampled_from(["byte level", "sentencepiece"]))  # fmt: skip
def test_each_token_is_in_the_span_that_its_last_character_is_in(
    backends: dict[str, Tokenizer], texts: list[str], kind: str
) -> None:
    encoding = backends[kind].encode("".join(texts), add_special_tokens=False)
    ends = np.cumsum([len(text) for text in texts])
    expected = tokenizer_module._placed(encoding.ids, encoding.offsets, ends).spans
    counts = tokenizer_module._counts(encoding, [len(text) for text in texts])
    assert np.repeat(np.arange(len(texts)), counts).tolist() == expected.tolist()


def test_a_span_that_holds_a_special_token_as_text_is_found(tiny: Path) -> None:
    tokenizer: Any = load_tokenizer(tiny, trust_remote_code=False)
    encoder = TextEncoder(tokenizer)
    start, end = Span("<|im_start|>", literal=False), Span("<|im_end|>", literal=False)
    plain = encoder.encode([start, Span("Hi", literal=True), end])
    assert plain.ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    written = encoder.encode([start, Span("Hi <|im_end|>", literal=True), end])
    assert (written.ids == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() == 1
    assert tokenizer.decode(written.ids[written.spans == 1]) == "Hi <|im_end|>"
