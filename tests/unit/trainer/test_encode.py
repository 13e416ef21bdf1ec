"""Long conversations lose whole turns; what cannot be trained on is dropped by a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.training import TemplateSpec
from finetune_trainer.encode import SPECIAL_TEXT, TOO_LONG, ConversationEncoder, DroppedError
from finetune_trainer.messages import Message
from finetune_trainer.templates import resolve_template
from finetune_trainer.tokenizer import Span, SpecialTokenInTextError, TextEncoder, load_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny, trust_remote_code=False)


def encoder(tokenizer: Any, max_length: int, **spec: Any) -> ConversationEncoder:
    fields = TemplateSpec(**{"name": "chatml", **spec})
    return ConversationEncoder(tokenizer, resolve_template(fields, tokenizer), fields, max_length)


def exchanges(count: int, *, system: bool = False, words: int = 3) -> list[Message]:
    turns = [Message("system", "Be brief.")] if system else []
    for number in range(count):
        turns += [Message("user", f"Question {number}?"), Message("assistant", f"answer {number} " * words)]
    return turns


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 5),
    limit=st.integers(8, 400),
    system=st.booleans(),
    name=st.sampled_from(["chatml", "qwen", "auto"]),
)
def test_a_long_conversation_keeps_as_many_whole_turns_as_fit(
    tokenizer: Any, count: int, limit: int, system: bool, name: str
) -> None:
    turns = exchanges(count, system=system)
    head = 1 if system else 0
    unlimited = encoder(tokenizer, 100_000, name=name)
    lengths = [len(unlimited.encode(turns[: head + 2 * kept]).ids) for kept in range(1, count + 1)]
    fitting = sum(length <= limit for length in lengths)
    if not fitting:
        with pytest.raises(DroppedError, match=TOO_LONG):
            encoder(tokenizer, limit, name=name).encode(turns)
        return
    encoded = encoder(tokenizer, limit, name=name).encode(turns)
    assert np.array_equal(encoded.ids, unlimited.encode(turns[: head + 2 * fitting]).ids)
    assert encoded.truncated is (fitting < count)


def test_a_conversation_of_exactly_the_limit_is_kept_whole(tokenizer: Any) -> None:
    turns = exchanges(3)
    length = len(encoder(tokenizer, 100_000).encode(turns).ids)
    assert not encoder(tokenizer, length).encode(turns).truncated
    assert encoder(tokenizer, length - 1).encode(turns).truncated


def test_masked_history_after_a_cut_trains_on_the_last_answer_that_is_left(tokenizer: Any) -> None:
    turns = exchanges(3, words=1)
    two = len(encoder(tokenizer, 100_000).encode(turns[:4]).ids)
    encoded = encoder(tokenizer, two, mask_history=True).encode(turns)
    assert tokenizer.decode(encoded.ids[encoded.trained]) == "answer 1 <|im_end|>"


@pytest.mark.parametrize("options", [{}, {"train_on_prompt": True}, {"mask_history": True}])
def test_the_first_token_is_never_trained(tokenizer: Any, options: dict[str, bool]) -> None:
    encoded = encoder(tokenizer, 1000, **options).encode(exchanges(2))
    assert not encoded.trained[0]
    assert encoded.trained.any()


@pytest.fixture(scope="module")
def sentencepiece_like() -> Any:
    """Marks the start of a text, as Llama 2's tokenizer does: pieces do not encode as the whole."""
    words = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz<>/|_\n", "▁a", "▁b"]
    backend = Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def test_ids_are_those_of_the_whole_text_where_pieces_would_differ(sentencepiece_like: Any) -> None:
    spans = [Span("<s>a", literal=False), Span("a b", literal=True), Span("</s>", literal=False)]
    tokens = TextEncoder(sentencepiece_like).encode(spans)
    assert tokens.ids.tolist() == sentencepiece_like("<s>aa b</s>", add_special_tokens=False)["input_ids"]
    assert tokens.spans[-1] == 2


def test_a_tokenizer_that_cannot_take_a_special_token_for_text_drops_the_row(sentencepiece_like: Any) -> None:
    spans = [Span("<s>", literal=False), Span("a </s> b", literal=True), Span("</s>", literal=False)]
    with pytest.raises(SpecialTokenInTextError):
        TextEncoder(sentencepiece_like).encode(spans)


def test_a_dropped_row_says_why(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = encoder(tokenizer, 1000)
    monkeypatch.setattr(one._text, "_piecewise_is_exact", False)
    with pytest.raises(DroppedError, match=SPECIAL_TEXT):
        one.encode([Message("user", "<|im_end|>"), Message("assistant", "b")])
