"""Tokens know their span: the quick way of finding it gives what asking each token would."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_trainer import tokenizer as tokenizer_module
from finetune_trainer.byte_lengths import ByteLengths
from finetune_trainer.tokenizer import Span, TextEncoder, load_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


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


def byte_level(**edits: Any) -> Tokenizer:
    """With all bytes in its vocabulary, unless ``missing`` names some; other ``edits`` are of its JSON."""
    missing = edits.pop("missing", "")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = [character for character in pre_tokenizers.ByteLevel.alphabet() if character not in missing]
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the answer is fine, é and 你 and so is five"] * 3, trainer)
    return Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()) | edits))


def swallowing() -> Tokenizer:
    """A special token that takes the space beside it."""
    tokenizer = byte_level(normalizer={"type": "NFC"})
    tokenizer.add_special_tokens([AddedToken("<|im_end|>", lstrip=True, rstrip=True)])
    tokenizer.add_tokens([AddedToken("é你", normalized=True)])
    return tokenizer


AWKWARD = st.lists(st.sampled_from([*"ab e.\n\tﬁ½é你🌸\u0301\u212b", "<|im_end|>"]), max_size=12).map("".join)


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(AWKWARD, min_size=1, max_size=7))
def test_bytes_give_the_span_that_places_give(spliced: list[Tokenizer], texts: list[str]) -> None:
    for backend in spliced:
        encoding = backend.encode("".join(texts), add_special_tokens=False)
        lengths = ByteLengths.of(backend)
        assert lengths is not None
        found = lengths.counts(np.array(encoding.ids, dtype=np.int64), texts)
        if found is not None:
            expected = tokenizer_module._placed(encoding.ids, encoding.offsets, np.cumsum([*map(len, texts)]))
            assert found.tolist() == expected.counts.tolist()


@pytest.fixture(scope="module")
def spliced(backends: dict[str, Tokenizer]) -> list[Tokenizer]:
    return [backends["byte level"], byte_level(missing="3Ã"), swallowing()]


def test_bytes_tell_all_places_in_common_text_and_none_where_text_is_changed_or_lost() -> None:
    def counts(backend: Tokenizer, *texts: str) -> list[int] | None:
        lengths = ByteLengths.of(backend)
        assert lengths is not None
        found = lengths.counts(np.array(backend.encode("".join(texts)).ids, dtype=np.int64), texts)
        return None if found is None else found.tolist()

    plain, changing = byte_level(), swallowing()
    assert counts(plain, "the ", "你", "", "é") == [1, 1, 0, 1]  # the space is of the next token
    assert counts(byte_level(missing="3"), "the 3", "4") is None
    assert counts(changing, "e\u0301", "a") is None  # composed
    assert counts(changing, "a", " <|im_end|>") is None
    assert counts(changing, "a", "<|im_end|>") == [1, 1]


@pytest.mark.parametrize(
    "backend",
    [
        sentencepiece_like(),
        byte_level(normalizer={"type": "Lowercase"}),
        byte_level(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}),
        byte_level(pre_tokenizer={"type": "Whitespace"}),
        Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")),
    ],
    ids=["sentencepiece", "lower case", "space before", "no bytes", "words"],
)
def test_tokens_that_do_not_tell_their_bytes_are_known(backend: Tokenizer) -> None:
    assert ByteLengths.of(backend) is None
