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
from finetune_trainer.templates.plain import plain_messages, plain_tools
from finetune_trainer.tokenizer import Span, SpecialTokenInTextError, TextEncoder, load_tokenizer
from formats import ONE_CALL, SEVERAL_CALLS, THINKS, THOUGHT, TOOLS, any_conversation
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
    lengths = [len(unlimited.encode(turns[: head + 2 * kept])[0].ids) for kept in range(1, count + 1)]
    fitting = sum(length <= limit for length in lengths)
    if not fitting:
        with pytest.raises(DroppedError, match=TOO_LONG):
            encoder(tokenizer, limit, name=name).encode(turns)
        return
    (encoded,) = encoder(tokenizer, limit, name=name).encode(turns)
    assert np.array_equal(encoded.ids, unlimited.encode(turns[: head + 2 * fitting])[0].ids)
    assert encoded.truncated is (fitting < count)


@pytest.mark.parametrize("name", ["chatml", "auto", "qwen3"])
def test_what_was_foreseen_is_encoded_as_what_was_not(tokenizer: Any, name: str) -> None:
    conversations = [
        (tuple(turns), ())
        for turns in (
            exchanges(1),
            exchanges(12, system=True),  # is cut
            [Message("user", "Say <|im_end|>"), Message("assistant", "<|im_end|>")],
            exchanges(1),  # again
        )
    ]
    foreseeing = encoder(tokenizer, 150, name=name)
    foreseeing.foresee(conversations)
    for messages, tools in conversations:
        found = foreseeing.encode(messages, tools)
        expected = encoder(tokenizer, 150, name=name).encode(messages, tools)
        assert [one.ids.tolist() for one in found] == [one.ids.tolist() for one in expected]
        assert [one.trained.tolist() for one in found] == [one.trained.tolist() for one in expected]
    other = exchanges(2)
    assert foreseeing.encode(other)[0].ids.tolist() == encoder(tokenizer, 150, name=name).encode(other)[0].ids.tolist()


def test_a_conversation_of_exactly_the_limit_is_kept_whole(tokenizer: Any) -> None:
    turns = exchanges(3)
    length = len(encoder(tokenizer, 100_000).encode(turns)[0].ids)
    assert not encoder(tokenizer, length).encode(turns)[0].truncated
    assert encoder(tokenizer, length - 1).encode(turns)[0].truncated


def test_masked_history_after_a_cut_trains_on_the_last_answer_that_is_left(tokenizer: Any) -> None:
    turns = exchanges(3, words=1)
    two = len(encoder(tokenizer, 100_000).encode(turns[:4])[0].ids)
    (encoded,) = encoder(tokenizer, two, mask_history=True).encode(turns)
    assert tokenizer.decode(encoded.ids[encoded.trained]) == "answer 1 <|im_end|>"


@pytest.mark.parametrize("options", [{}, {"train_on_prompt": True}, {"mask_history": True}])
def test_the_first_token_is_never_trained(tokenizer: Any, options: dict[str, bool]) -> None:
    (encoded,) = encoder(tokenizer, 1000, **options).encode(exchanges(2))
    assert not encoded.trained[0]
    assert encoded.trained.any()


def thinking_encoder(tokenizer: Any, max_length: int = 100_000, **options: Any) -> ConversationEncoder:
    last_answer = options.pop("last_answer", False)
    return ConversationEncoder(tokenizer, THINKS, TemplateSpec(**options), max_length, last_answer=last_answer)


def trained(tokenizer: Any, encoded: list[Any]) -> list[str]:
    return [tokenizer.decode(sample.ids[sample.trained]) for sample in encoded]


def test_tools_thoughts_and_calls_are_encoded_as_served(tokenizer: Any) -> None:
    encoded = thinking_encoder(tokenizer).encode(SEVERAL_CALLS, TOOLS)
    for sample, count in zip(encoded, (10, 8, 3), strict=True):  # up to the end, the call without a thought, the first
        text = tokenizer.apply_chat_template(
            plain_messages(SEVERAL_CALLS[:count]),
            tools=plain_tools(TOOLS),
            chat_template=THINKS.jinja(),
            tokenize=False,
        )
        assert tokenizer.decode(sample.ids) == text


def test_each_answer_is_trained_once_in_the_text_that_it_was_given_in(tokenizer: Any) -> None:
    encoded = thinking_encoder(tokenizer).encode(THOUGHT)
    assert trained(tokenizer, encoded) == [
        "<think>\ntwo\n</think>\n\nd<|im_end|>",
        "<think>\none\n</think>\n\nb<|im_end|>",
    ]
    for sample, count in zip(encoded, (4, 2), strict=True):
        served = tokenizer.apply_chat_template(
            plain_messages(THOUGHT[:count]), chat_template=THINKS.jinja(), return_dict=False
        )
        assert sample.ids.tolist() == list(served)


def test_preserved_thoughts_are_trained_in_one_text(tokenizer: Any) -> None:
    encoded = thinking_encoder(tokenizer, thinking="preserved").encode(THOUGHT)
    assert trained(tokenizer, encoded) == ["<think>\none\n</think>\n\nb<|im_end|><think>\ntwo\n</think>\n\nd<|im_end|>"]


def test_trained_prompts_and_masked_history_take_the_whole_conversation_alone(tokenizer: Any) -> None:
    (prompts,) = thinking_encoder(tokenizer, train_on_prompt=True).encode(THOUGHT)
    assert prompts.trained[1:-1].all()
    last = thinking_encoder(tokenizer, mask_history=True).encode(THOUGHT)
    assert trained(tokenizer, last) == ["<think>\ntwo\n</think>\n\nd<|im_end|>"]


def test_masked_history_keeps_the_calls_of_the_last_turn_and_a_judged_answer_stands_alone(tokenizer: Any) -> None:
    calls = [Message("user", "Hi"), Message("assistant", "Hello!"), *ONE_CALL]
    history = trained(tokenizer, thinking_encoder(tokenizer, mask_history=True).encode(calls, TOOLS))
    assert "It is clear." in history[0]
    assert "get_weather" in history[1]
    assert "Hello!" not in "".join(history)
    alone = trained(tokenizer, thinking_encoder(tokenizer, last_answer=True).encode(calls, TOOLS))
    assert alone == ["<think>\n\n</think>\n\nIt is clear.<|im_end|>"]


def test_a_turn_is_cut_with_its_calls_and_results(tokenizer: Any) -> None:
    turns = [Message("user", "Hi"), Message("assistant", "Hello!"), *ONE_CALL]
    options = {"thinking": "preserved"}
    (whole,) = thinking_encoder(tokenizer, **options).encode(turns)
    (first,) = thinking_encoder(tokenizer, **options).encode(turns[:2])
    (cut,) = thinking_encoder(tokenizer, len(whole.ids) - 1, **options).encode(turns)
    assert np.array_equal(cut.ids, first.ids)
    assert cut.truncated
    with pytest.raises(DroppedError, match=TOO_LONG):
        thinking_encoder(tokenizer, len(first.ids) - 1, **options).encode(turns)


def test_an_earlier_answer_whose_thought_makes_it_too_long_is_left_out_and_told(tokenizer: Any) -> None:
    turns = [Message("user", "a"), Message("assistant", "b", thought="long " * 50), *THOUGHT[2:]]
    whole, earlier = thinking_encoder(tokenizer).encode(turns)
    assert len(earlier.ids) > len(whole.ids)
    (kept,) = thinking_encoder(tokenizer, len(whole.ids)).encode(turns)
    assert np.array_equal(kept.ids, whole.ids)
    assert kept.truncated


@settings(max_examples=40, deadline=None)
@given(messages=any_conversation(), thinking=st.sampled_from(["auto", "enabled", "disabled", "preserved"]))
def test_any_conversation_with_tools_decodes_to_its_text_and_trains_every_answer_once(
    tokenizer: Any, messages: list[Message], thinking: Any
) -> None:
    renderings = THINKS.renderings(messages, TOOLS, thinking=thinking)
    encoded = thinking_encoder(tokenizer, thinking=thinking).encode(messages, TOOLS)
    assert [tokenizer.decode(sample.ids) for sample in encoded] == [
        "".join(segment.text for segment in rendering) for rendering in renderings
    ]
    answers = sum(message.role == "assistant" for message in messages)
    numbers = [{segment.answer for segment in rendering if segment.trained} for rendering in renderings]
    assert sorted(number for found in numbers for number in found) == list(range(answers))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert sum(int((sample.ids[sample.trained] == end).sum()) for sample in encoded) == answers


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
