"""What is declared renders as a server renders the exported Jinja: tools, thoughts and odd texts included."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Message
from finetune_trainer.templates import FAMILIES
from finetune_trainer.templates.declared import DeclaredTemplate
from finetune_trainer.templates.plain import plain_messages, plain_tools
from finetune_trainer.templates.template import Thinking
from finetune_trainer.tokenizer import load_tokenizer
from formats import (
    CALLS_IN_THE_HEADER,
    CALLS_ONCE,
    FORMATS,
    FUSES_THE_SYSTEM,
    NUMBERS_ROUNDS,
    ONE_CALL,
    OPENS_THE_THOUGHT,
    OWN,
    PLAIN,
    SEVERAL_CALLS,
    THINKS,
    THOUGHT,
    TOOLS,
    TOOLS_BEFORE_THE_LAST,
    WEATHER,
    any_conversation,
    may_think,
    thoughtless,
)
from hypothesis import given, settings
from hypothesis import strategies as st

DECLARED = {**FAMILIES, **FORMATS}
THINKINGS: tuple[Thinking, ...] = get_args(Thinking)
WAYS = [
    (template, thinking)
    for template in DECLARED.values()
    for thinking in THINKINGS
    if template.thinks or thinking == "auto" or template.name in FORMATS
]
"""A format that has no thoughts is one and the same in all."""


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny, trust_remote_code=False)


def served(
    tokenizer: Any,
    template: DeclaredTemplate,
    messages: list[Message],
    tools: list[dict[str, Any]],
    thinking: Thinking,
    *,
    generate: bool = False,
) -> str:
    """The text that a server makes, by transformers' own rendering of the export."""
    if thinking == "disabled":
        messages = thoughtless(messages)
    return str(
        tokenizer.apply_chat_template(
            plain_messages(messages),
            tools=plain_tools(tools),
            chat_template=template.jinja(thinking=thinking),
            add_generation_prompt=generate,
            tokenize=False,
        )
    )


def text_of(segments: Any) -> str:
    return "".join(segment.text for segment in segments)


def answers_of(segments: Any) -> list[str]:
    """The trained text of each answer."""
    found: dict[int, str] = {}
    for segment in segments:
        if segment.answer is not None:
            found[segment.answer] = found.get(segment.answer, "") + segment.text
    return [found[number] for number in sorted(found)]


def conversations(template: DeclaredTemplate, thinking: Thinking) -> list[tuple[list[Message], list[dict[str, Any]]]]:
    """What the format can hold."""
    several = SEVERAL_CALLS if may_think(template, thinking) else thoughtless(SEVERAL_CALLS)
    found: list[tuple[list[Message], list[dict[str, Any]]]] = [(PLAIN, []), ([Message("system", "Be."), *PLAIN], [])]
    if template.takes_tools:
        found += [(PLAIN, TOOLS), (ONE_CALL, TOOLS), ([Message("system", "Be."), *ONE_CALL], TOOLS)]
        if not template.one_call:
            found += [(several, TOOLS), (several[1:], [])]
    return found


@pytest.mark.parametrize(
    ("template", "thinking"), WAYS, ids=lambda value: value if isinstance(value, str) else value.name
)
def test_the_text_is_that_of_the_exported_jinja_and_every_answer_is_trained_once(
    tokenizer: Any, template: DeclaredTemplate, thinking: Thinking
) -> None:
    for messages, tools in conversations(template, thinking):
        segments = template.segments(messages, tools, thinking=thinking)
        assert text_of(segments) == served(tokenizer, template, messages, tools, thinking)
        said = answers_of(segments)
        answers = [message for message in messages if message.role == "assistant"]
        assert len(said) == len(answers)
        for trained, message in zip(said, answers, strict=True):
            for call in message.calls:
                assert call.name in trained
            if not message.calls:
                assert message.content in trained


@pytest.mark.parametrize(
    ("template", "thinking"), WAYS, ids=lambda value: value if isinstance(value, str) else value.name
)
def test_the_last_answer_begins_where_its_prompt_ends(
    tokenizer: Any, template: DeclaredTemplate, thinking: Thinking
) -> None:
    for messages, tools in conversations(template, thinking):
        for count, message in enumerate(messages):
            if message.role != "assistant":
                continue
            prompt = template.prompt(messages[:count], tools, thinking=thinking)
            assert prompt == served(tokenizer, template, messages[:count], tools, thinking, generate=True)
            segments = template.segments(messages[: count + 1], tools, thinking=thinking)
            last = max(segment.answer for segment in segments if segment.answer is not None)
            begins = next(place for place, segment in enumerate(segments) if segment.answer == last)
            assert text_of(segments[:begins]) == prompt


def test_a_thinking_format_with_tools_renders_as_qwen3_does() -> None:
    segments = THINKS.segments(SEVERAL_CALLS, TOOLS[1:])
    assert text_of(segments) == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions to assist with the user "
        "query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "add", "description": "Sum", '
        '"parameters": {"type": "object", "properties": {}}}}\n'
        "</tools>\n\nFor each function call, return a json object with function name and arguments within "
        '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": '
        "<args-json-object>}\n</tool_call><|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nWeather and sum?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nTwo calls.\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, {"c": null}]}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nclear\n</tool_response>\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nOnce more.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nstill clear\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\nDone.\n</think>\n\nClear, and 3.<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("thinking", "expected"),
    [
        ("auto", ["b<|im_end|>", "<think>\ntwo\n</think>\n\nd<|im_end|>"]),
        ("enabled", ["b<|im_end|>", "<think>\ntwo\n</think>\n\nd<|im_end|>"]),
        ("disabled", ["b<|im_end|>", "d<|im_end|>"]),
        ("preserved", ["<think>\none\n</think>\n\nb<|im_end|>", "<think>\ntwo\n</think>\n\nd<|im_end|>"]),
    ],
)
def test_thoughts_are_trained_where_thinking_is_on_and_kept_where_they_are_preserved(
    thinking: Thinking, expected: list[str]
) -> None:
    assert answers_of(THINKS.segments(THOUGHT, thinking=thinking)) == expected


def test_a_missing_thought_is_trained_where_thinking_is_on_and_part_of_the_prompt_where_it_is_off() -> None:
    on = answers_of(THINKS.segments(PLAIN, thinking="enabled"))
    assert on == ["Hello!<|im_end|>", "<think>\n\n</think>\n\nNo.<|im_end|>"]
    off = THINKS.segments(PLAIN, thinking="disabled")
    assert answers_of(off) == ["Hello!<|im_end|>", "No.<|im_end|>"]
    assert text_of(off).endswith("assistant\n<think>\n\n</think>\n\nNo.<|im_end|>\n")


def test_a_prompt_that_opens_the_thought_leaves_its_first_word_untrained() -> None:
    segments = OPENS_THE_THOUGHT.segments(THOUGHT, thinking="enabled")
    assert answers_of(segments) == ["b<|im_end|>", "two\n</think>\n\nd<|im_end|>"]
    assert "assistant:</think>b" in text_of(segments)
    assert OPENS_THE_THOUGHT.prompt(THOUGHT[:1], thinking="enabled").endswith("assistant:<think>\n")
    assert OPENS_THE_THOUGHT.prompt(THOUGHT[:1]).endswith("assistant:</think>")  # thinking is not its default


def test_a_thought_that_a_client_left_in_the_text_is_read_as_one() -> None:
    within = [*PLAIN[:1], Message("assistant", "<think>\nhm\n</think>\n\nHello!")]
    apart = [*PLAIN[:1], Message("assistant", "Hello!", thought="hm")]
    assert text_of(THINKS.segments(within)) == text_of(THINKS.segments(apart))


def test_the_system_message_stands_within_the_first_users_turn() -> None:
    text = text_of(FUSES_THE_SYSTEM.segments([Message("system", " Be. "), *PLAIN]))
    assert text == (
        "<|im_start|>[INST] <<SYS>>\nBe.\n<</SYS>>\n\nHi [/INST] Hello! <|im_end|>"
        "<|im_start|>[INST] And? [/INST] No. <|im_end|>"
    )


def test_tools_and_system_stand_before_the_last_user() -> None:
    text = text_of(TOOLS_BEFORE_THE_LAST.segments([Message("system", "Be."), *PLAIN], TOOLS[1:]))
    assert text == (
        "<|endoftext|>[INST] Hi[/INST] Hello!<|im_end|>[AVAILABLE_TOOLS] "
        '[{"type": "function", "function": {"name": "add", "description": "Sum", '
        '"parameters": {"type": "object", "properties": {}}}}]'
        "[/AVAILABLE_TOOLS][INST] Be.\n\nAnd?[/INST] No.<|im_end|>"
    )


def test_rounds_are_numbered_and_answers_end_where_no_result_follows() -> None:
    text = text_of(NUMBERS_ROUNDS.segments([*PLAIN[:2], *ONE_CALL]))
    assert text == (
        "[Round 1]\nAsk: Hi\nAnswer: Hello!<|im_end|>\n[Round 2]\nAsk: Weather?\nAnswer: I look.\n"
        'Action: get_weather\nAction Input: {"city": "Köln", "days": 2}Seen: {"sky": "clear"}\n'
        "So: It is clear.<|im_end|>\n"
    )


def test_a_call_may_stand_in_the_header() -> None:
    text = text_of(CALLS_IN_THE_HEADER.segments(ONE_CALL))
    assert text.startswith(
        "<|endoftext|><|im_start|>user\nWeather?<|im_start|>assistant\nI look.<|assistant|>get_weather\n"
    )


def test_results_carry_the_id_of_the_call_that_they_answer() -> None:
    plain = plain_messages(SEVERAL_CALLS)
    first, second = (call["id"] for call in plain[4]["tool_calls"])
    assert first != second
    assert len(first) == 9
    assert first.isalnum()
    assert [(plain[n]["tool_call_id"], plain[n]["name"]) for n in (5, 6)] == [(first, "get_weather"), (second, "add")]


def test_an_image_of_a_served_message_becomes_its_placeholder(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "image_url", "image_url": {"url": "x"}}]
    asked = {"chat_template": CALLS_IN_THE_HEADER.jinja(), "tokenize": False}
    text = tokenizer.apply_chat_template([{"role": "user", "content": parts}], **asked)
    assert text == "<|endoftext|><|im_start|>user\nWhat is<|image|>"
    with pytest.raises(Exception, match="no placeholder for a part of type video"):
        tokenizer.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}], **asked)


def test_a_format_without_tools_refuses_them_in_training_and_in_serving(tokenizer: Any) -> None:
    with pytest.raises(TrainerError, match=r"chatml has no format for tools, .* such as qwen"):
        FAMILIES["chatml"].segments(ONE_CALL)
    with pytest.raises(Exception, match="no format for tools"):
        tokenizer.apply_chat_template(
            plain_messages(PLAIN), tools=plain_tools(TOOLS), chat_template=FAMILIES["chatml"].jinja(), tokenize=False
        )


def test_a_thought_that_would_not_be_served_is_refused() -> None:
    with pytest.raises(
        TrainerError, match=r"template\.thinking: template chatml has no chains of thought, .* disabled"
    ):
        FAMILIES["chatml"].segments(THOUGHT)
    with pytest.raises(TrainerError, match=r"opens-the-thought thinks only where it is told to, .* enabled, or"):
        OPENS_THE_THOUGHT.segments(THOUGHT)
    assert answers_of(FAMILIES["chatml"].segments(THOUGHT, thinking="disabled")) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_format_says_what_it_cannot_hold() -> None:
    several = [PLAIN[0], Message("assistant", "", calls=(WEATHER, WEATHER))]
    with pytest.raises(
        TrainerError, match=r"template calls-once calls one tool at a time, and an answer calls several"
    ):
        CALLS_ONCE.segments(several)
    with pytest.raises(TrainerError, match="unknown role: critic"):
        THINKS.segments([Message("critic", "x")])


def test_own_jinja_is_trained_by_its_marks() -> None:
    segments = OWN.segments([Message("system", "Be."), *PLAIN])
    assert text_of(segments) == "system:Be.user:HiA:Hello!<|im_end|>user:And?A:No.<|im_end|>"
    assert answers_of(segments) == ["Hello!<|im_end|>", "No.<|im_end|>"]
    assert [segment.turn for segment in segments if segment.text in ("Be.", "Hi", "And?")] == [0, 0, 1]


@settings(max_examples=100, deadline=None)
@given(messages=any_conversation(), thinking=st.sampled_from(THINKINGS), listed=st.booleans(), data=st.data())
def test_any_conversation_is_rendered_as_served_and_its_answers_alone_are_trained(
    tokenizer: Any, messages: list[Message], thinking: Thinking, listed: bool, data: st.DataObject
) -> None:
    holding = [name for name, template in DECLARED.items() if template.takes_tools and not template.one_call]
    template = DECLARED[data.draw(st.sampled_from(holding))]
    tools = TOOLS if listed else []
    if not may_think(template, thinking):
        messages = thoughtless(messages)
    segments = template.segments(messages, tools, thinking=thinking)
    assert text_of(segments) == served(tokenizer, template, messages, tools, thinking)
    assert len({segment.answer for segment in segments if segment.trained}) == sum(
        message.role == "assistant" for message in messages
    )
    for segment in segments:
        assert segment.literal or not any(mark in segment.text for mark in "﷐\ufdd1\ufdd2")


def held(template: DeclaredTemplate, messages: list[Message], thinking: Thinking) -> list[Message]:
    """``messages`` without what the format says that it cannot hold."""
    if not may_think(template, thinking):
        messages = thoughtless(messages)
    kept: list[Message] = []
    for message in messages:
        if message.calls and template.one_call:
            kept.append(dataclasses.replace(message, calls=message.calls[:1]))
        elif message.role == "tool" and template.one_call and kept[-1].role == "tool":
            continue
        elif template.takes_tools or not (message.calls or message.role == "tool"):
            kept.append(message)
    return kept


@pytest.mark.parametrize("name", sorted(FAMILIES))
@settings(max_examples=3, deadline=None)
@given(messages=any_conversation(), thinking=st.sampled_from(THINKINGS), listed=st.booleans())
def test_any_conversation_through_every_family_is_trained_as_it_was_asked(
    tokenizer: Any, name: str, messages: list[Message], thinking: Thinking, listed: bool
) -> None:
    """Its text is the export's; each answer is trained once, in a text that begins with what the model was asked."""
    template = FAMILIES[name]
    messages = held(template, messages, thinking)
    tools = TOOLS if listed and template.takes_tools else []
    segments = template.segments(messages, tools, thinking=thinking)
    assert text_of(segments) == served(tokenizer, template, messages, tools, thinking)
    assert [segment.turn for segment in segments] == sorted(segment.turn for segment in segments)
    ends = [place for place, message in enumerate(messages) if message.role == "assistant"]
    trained: list[int] = []
    for rendering in template.renderings(messages, tools, thinking=thinking):
        numbers = list(dict.fromkeys(segment.answer for segment in rendering if segment.answer is not None))
        trained += numbers
        for number in numbers:
            first = next(place for place, segment in enumerate(rendering) if segment.answer == number)
            asked = template.prompt(messages[: ends[number]], tools, thinking=thinking)
            assert text_of(rendering[:first]) == asked
    assert sorted(trained) == list(range(len(ends)))
