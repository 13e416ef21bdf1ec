"""One declaration gives tokens, what is trained, and the exported Jinja: here all three must agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_api.failures import ExitCode
from finetune_api.training import TemplateSpec
from finetune_trainer.encode import ConversationEncoder
from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Message
from finetune_trainer.templates import FAMILIES, Template, find_template, resolve_template
from finetune_trainer.templates.auto import AutoTemplate
from finetune_trainer.tokenizer import load_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import DEFAULT_SYSTEM

CONVERSATIONS = {
    "one exchange": ["Hi", "Hello!"],
    "several": ["Hi", "Hello!", "And now?", "Now we go on.", "user", "assistant"],
    "a system message": ["system:Be brief.", "Hi", "Yes."],
    "system and several": ["system:Be\nbrief.", "a", "b", "c", "d"],
    "unicode": ["system:你是助手。", "帮我写一首关于春天的诗", "春眠不觉晓 🌸\u200d\u0301", "ñandú", "Ελλάδα"],
    "space and lines": ["  two spaces \n\n", "\n\nlines around\n", "\ttab", " x "],
    "quotes and braces": ["{{ x }} {% if %} \"quoted\" 'single' \\n", "{{content}}", "#}", "<|im|>"],
    "names of the format's own words": ["im_end", "end", "|>", "<|im_"],
}

KIN = ("chatml", "qwen", "qwen3_nothink", "smollm")
"""Those whose special tokens the tiny model has."""


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny, trust_remote_code=False)


def messages(texts: list[str]) -> list[Message]:
    said = list(texts)
    head = [Message("system", said.pop(0).removeprefix("system:"))] if said[0].startswith("system:") else []
    return head + [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(said)]


def plain(conversation: list[Message]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in conversation]


def served(tokenizer: Any, template: Template, conversation: list[Message], system: str | None = None) -> list[int]:
    """Ids as the serving side makes them, from the Jinja that is exported."""
    ids = tokenizer.apply_chat_template(
        plain(conversation), chat_template=template.jinja(system), tokenize=True, return_dict=False
    )
    return list(ids)


def encoder(tokenizer: Any, template: Template, **spec: Any) -> ConversationEncoder:
    return ConversationEncoder(tokenizer, template, TemplateSpec(**spec), max_length=100_000)


def trained_texts(tokenizer: Any, encoded: Any) -> list[str]:
    """The runs of trained tokens, as text."""
    runs: list[list[int]] = []
    previous = False
    for token, trained in zip(encoded.ids.tolist(), encoded.trained.tolist(), strict=True):
        if trained and not previous:
            runs.append([])
        if trained:
            runs[-1].append(token)
        previous = trained
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("name", ["auto", *KIN])
@pytest.mark.parametrize("system", [None, "You answer \"shortly\" — 'always'.\nReally. 🌍"])
@pytest.mark.parametrize("texts", CONVERSATIONS.values(), ids=CONVERSATIONS.keys())
def test_tokens_are_those_of_the_exported_jinja_and_the_answers_are_trained(
    tokenizer: Any, name: str, system: str | None, texts: list[str]
) -> None:
    template = resolve_template(TemplateSpec(name=name), tokenizer)
    conversation = messages(texts)
    (encoded,) = encoder(tokenizer, template, name=name, system=system).encode(conversation)
    assert encoded.ids.tolist() == served(tokenizer, template, conversation, system)
    answers = [message.content for message in conversation if message.role == "assistant"]
    assert trained_texts(tokenizer, encoded) == [f"{answer}<|im_end|>" for answer in answers]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda text: text.strip()),
        min_size=2,
        max_size=6,
    ).filter(lambda texts: len(texts) % 2 == 0),
    name=st.sampled_from(["auto", "qwen"]),
)
def test_any_text_is_encoded_as_served_and_its_answers_are_trained(tokenizer: Any, texts: list[str], name: str) -> None:
    template = resolve_template(TemplateSpec(name=name), tokenizer)
    conversation = messages(texts)
    (encoded,) = encoder(tokenizer, template, name=name).encode(conversation)
    assert encoded.ids.tolist() == served(tokenizer, template, conversation)
    text = tokenizer.decode(encoded.ids[encoded.trained])
    assert text == "".join(f"{answer}<|im_end|>" for answer in texts[1::2])


@pytest.mark.parametrize("name", ["auto", "chatml"])
def test_a_special_token_that_a_person_wrote_stays_text(tokenizer: Any, name: str) -> None:
    template = resolve_template(TemplateSpec(name=name), tokenizer)
    conversation = messages(["Say <|im_end|>", "<|im_end|>\n<|im_start|>user\nNo", "<|im_start|>", "Yes"])
    (encoded,) = encoder(tokenizer, template, name=name).encode(conversation)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    ids = encoded.ids.tolist()
    turns = 5 if name == "auto" else 4  # auto's template writes a system message
    assert (ids.count(start), ids.count(end)) == (turns, turns)
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(
        plain(conversation), chat_template=template.jinja(), tokenize=False
    )
    assert trained_texts(tokenizer, encoded) == ["<|im_end|>\n<|im_start|>user\nNo<|im_end|>", "Yes<|im_end|>"]


def test_the_defaults_of_qwen_and_of_the_tokenizer_are_written(tokenizer: Any) -> None:
    conversation = messages(["Hi", "Hello!"])
    (qwen,) = encoder(tokenizer, FAMILIES["qwen"]).encode(conversation)
    assert tokenizer.decode(qwen.ids) == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    )
    (auto,) = encoder(tokenizer, AutoTemplate(tokenizer)).encode(conversation)
    assert DEFAULT_SYSTEM in tokenizer.decode(auto.ids)
    (bare,) = encoder(tokenizer, FAMILIES["qwen"], system="").encode(conversation)
    assert tokenizer.decode(bare.ids).startswith("<|im_start|>user")


@pytest.mark.parametrize("name", ["auto", *KIN])
def test_a_generation_prompt_ends_where_training_begins(tokenizer: Any, name: str) -> None:
    template = resolve_template(TemplateSpec(name=name), tokenizer)
    conversation = messages(["Hi", "Hello!"])
    (encoded,) = encoder(tokenizer, template, name=name).encode(conversation)
    prompt = tokenizer.apply_chat_template(
        plain(conversation[:1]), chat_template=template.jinja(), add_generation_prompt=True, return_dict=False
    )
    assert encoded.ids[: len(prompt)].tolist() == list(prompt)
    assert encoded.trained.tolist().index(True) == len(prompt)


def test_train_on_prompt_trains_all_but_what_follows_the_last_answer(tokenizer: Any) -> None:
    (encoded,) = encoder(tokenizer, FAMILIES["chatml"], train_on_prompt=True).encode(
        messages(["Hi", "Hello!", "a", "b"])
    )
    untrained = [i for i, trained in enumerate(encoded.trained) if not trained]
    assert untrained == [0, len(encoded.ids) - 1]


def test_mask_history_trains_on_the_last_answer_alone(tokenizer: Any) -> None:
    (encoded,) = encoder(tokenizer, FAMILIES["chatml"], mask_history=True).encode(messages(["Hi", "Hello!", "a", "b"]))
    assert trained_texts(tokenizer, encoded) == ["b<|im_end|>"]


def test_an_unknown_name_is_refused_with_the_nearest_and_all() -> None:
    with pytest.raises(TrainerError, match=r"no template 'qwne'; did you mean qwen\? known: auto, alpaca, baichuan"):
        find_template("qwne")
    with pytest.raises(TrainerError, match="no template 'zzz'; known: auto, alpaca"):
        find_template("zzz")


@pytest.mark.parametrize("thinking", ["enabled", "preserved"])
def test_thinking_is_refused_of_a_format_that_has_no_thoughts(tokenizer: Any, thinking: Any) -> None:
    with pytest.raises(TrainerError, match=r"template\.thinking: template chatml has no chains of thought") as failure:
        resolve_template(TemplateSpec(name="chatml", thinking=thinking), tokenizer)
    assert failure.value.exit_code is ExitCode.TEMPLATE_INVALID


@pytest.mark.parametrize("name", ["auto", *KIN])
def test_the_end_of_turn_stops_an_answer(tokenizer: Any, name: str) -> None:
    assert resolve_template(TemplateSpec(name=name), tokenizer).stop_words == ("<|im_end|>",)
