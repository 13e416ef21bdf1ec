"""The tokenizer's own Jinja: each answer is found exactly, and trained in the text that it was given in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from finetune_api.failures import ExitCode
from finetune_api.training import TemplateSpec
from finetune_trainer.encode import ConversationEncoder
from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Message, ToolCall
from finetune_trainer.templates import auto as auto_module
from finetune_trainer.templates import resolve_template
from finetune_trainer.templates.auto import AutoTemplate
from finetune_trainer.templates.declared import DeclaredTemplate
from finetune_trainer.templates.marks import Segment
from finetune_trainer.templates.plain import plain_messages, plain_tools
from finetune_trainer.templates.template import Thinking
from finetune_trainer.tokenizer import load_tokenizer, special_tokens
from formats import (
    FORMATS,
    NUMBERS_ROUNDS,
    ONE_CALL,
    PLAIN,
    SEVERAL_CALLS,
    THINKS,
    THOUGHT,
    TOOLS,
    any_conversation,
    may_think,
    thoughtless,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import CHAT_TEMPLATE, make_tiny_model

THINKINGS: tuple[Thinking, ...] = get_args(Thinking)


@pytest.fixture
def other(tiny: Path) -> Any:
    """A tokenizer that a test may give another template."""
    return load_tokenizer(tiny, trust_remote_code=False)


@pytest.fixture(scope="module")
def lent(tiny: Path) -> Any:
    """The same, for tests that give it one each time."""
    return load_tokenizer(tiny, trust_remote_code=False)


def auto(tokenizer: Any, jinja: str) -> AutoTemplate:
    tokenizer.chat_template = jinja
    return AutoTemplate(tokenizer)


def runs(segments: list[Segment]) -> list[str]:
    """The trained text of each answer."""
    found: dict[int, str] = {}
    for segment in segments:
        if segment.answer is not None:
            found[segment.answer] = found.get(segment.answer, "") + segment.text
    return [found[number] for number in sorted(found)]


def text_of(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def exchange(*texts: str) -> list[Message]:
    return [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]


HELD = {name: template for name, template in FORMATS.items() if template is not NUMBERS_ROUNDS}
"""All but the one that ends an answer only when it knows what follows, in which a call has no end."""


@pytest.mark.parametrize("thinking", THINKINGS)
@pytest.mark.parametrize("template", HELD.values(), ids=HELD)
def test_the_jinja_of_a_declared_template_is_trained_as_the_declaration_says(
    other: Any, template: DeclaredTemplate, thinking: Thinking
) -> None:
    if thinking == "preserved" and not template.thinks:
        thinking = "enabled"  # there is nothing to preserve
    found = auto(other, template.jinja(thinking=thinking))
    cases = [(PLAIN, []), ([Message("system", "Be."), *PLAIN], [])]
    if template.takes_tools:
        cases += [(ONE_CALL, TOOLS), ([Message("system", "Be."), *ONE_CALL], TOOLS)]
        if not template.one_call:
            cases.append((SEVERAL_CALLS, TOOLS))
    for messages, tools in cases:
        said = messages if may_think(template, thinking) else thoughtless(messages)
        expected = template.renderings(said, tools, thinking=thinking)
        renderings = found.renderings(said, tools, thinking=thinking)
        assert list(map(text_of, renderings)) == list(map(text_of, expected))
        assert list(map(runs, renderings)) == list(map(runs, expected))


@settings(max_examples=60, deadline=None)
@given(messages=any_conversation(odd=False), thinking=st.sampled_from(THINKINGS))
def test_any_conversation_is_trained_as_the_declaration_says(
    lent: Any, messages: list[Message], thinking: Thinking
) -> None:
    found = auto(lent, THINKS.jinja())
    expected = THINKS.renderings(messages, TOOLS, thinking=thinking)
    renderings = found.renderings(messages, TOOLS, thinking=thinking)
    assert list(map(text_of, renderings)) == list(map(text_of, expected))
    assert list(map(runs, renderings)) == list(map(runs, expected))
    special = special_tokens(lent)
    for segment in (segment for rendering in renderings for segment in rendering if segment.trained):
        assert segment.literal or segment.text.count("<|im_end|>") <= 1, special


def test_a_special_token_in_a_call_a_tool_or_a_result_stays_text(other: Any) -> None:
    found = auto(other, THINKS.jinja())
    segments = found.segments(ONE_CALL, TOOLS)
    end = [segment.text for segment in segments if "<|im_end|>" in segment.text and not segment.literal]
    assert "".join(end).count("<|im_end|>") == 5
    assert any("now <|im_end|>" in segment.text for segment in segments if segment.literal)


def test_earlier_answers_that_lost_their_thoughts_are_trained_where_they_have_them(other: Any) -> None:
    found = auto(other, THINKS.jinja())
    whole, earlier = found.renderings(THOUGHT)
    assert runs(whole) == ["<think>\ntwo\n</think>\n\nd<|im_end|>"]
    assert runs(earlier) == ["<think>\none\n</think>\n\nb<|im_end|>"]
    assert text_of(earlier) == (
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\none\n</think>\n\nb<|im_end|>\n"
    )
    assert len(found.renderings(THOUGHT, first=1)) == 1


def test_a_jinja_that_leaves_thoughts_out_is_refused_unless_thinking_is_off(other: Any) -> None:
    found = auto(other, CHAT_TEMPLATE)
    with pytest.raises(
        TrainerError, match=r"template\.thinking: .* leaves an answer's chain of thought out"
    ) as failure:
        found.segments(THOUGHT)
    assert failure.value.exit_code is ExitCode.TEMPLATE_INVALID
    assert runs(found.segments(THOUGHT, thinking="disabled")) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_jinja_that_cannot_keep_earlier_thoughts_is_refused_where_they_are_to_be_preserved(other: Any) -> None:
    stubborn = THINKS.jinja().replace("preserve_thinking or", "")
    with pytest.raises(TrainerError, match="cannot be told to keep them"):
        auto(other, stubborn).segments(THOUGHT, thinking="preserved")


def test_the_export_thinks_as_the_job_says_unless_it_is_told_otherwise(other: Any) -> None:
    jinja = auto(other, THINKS.jinja()).jinja(thinking="disabled")
    asked = {"conversation": [{"role": "user", "content": "Hi"}], "chat_template": jinja, "tokenize": False}
    off = other.apply_chat_template(**asked, add_generation_prompt=True)
    assert off.endswith("assistant\n<think>\n\n</think>\n\n")
    on = other.apply_chat_template(**asked, add_generation_prompt=True, enable_thinking=True)
    assert on.endswith("assistant\n")


TRIMS = CHAT_TEMPLATE.replace("message['content']", "message['content'] | trim")
ENDS_THE_TEXT = CHAT_TEMPLATE.replace("{% endif %}", "{% else %}{{ '<|endoftext|>' }}{% endif %}").replace(
    # The first endif closes the default system message.
    "{% else %}{{ '<|endoftext|>' }}{% endif %}",
    "{% endif %}",
    1,
)
THINKS_LAST = CHAT_TEMPLATE.replace(
    "+ message['content']",
    "+ ('<think></think>' if loop.last and message['role'] == 'assistant' else '') + message['content']",
)
CUTS_EARLIER = CHAT_TEMPLATE.replace(
    "message['content']", "(message['content'] if loop.last or message['role'] != 'assistant' else '(cut)')"
)
ESCAPES = CHAT_TEMPLATE.replace("message['content']", "message['content'] | tojson(ensure_ascii=True)")


@pytest.mark.parametrize(
    ("jinja", "expected"),
    [
        (TRIMS, [["one<|im_end|>", "two<|im_end|>"]]),
        (ENDS_THE_TEXT, [[" one <|im_end|>", "two<|im_end|>"]]),
        (THINKS_LAST, [["<think></think>two<|im_end|>"], ["<think></think> one <|im_end|>"]]),
        (CUTS_EARLIER, [["two<|im_end|>"], [" one <|im_end|>"]]),
        (ESCAPES, [['" one "<|im_end|>', '"two"<|im_end|>']]),
    ],
    ids=["trims messages", "ends the text", "writes the last answer differently", "cuts earlier answers", "escapes"],
)
def test_the_answers_of_templates_with_ways_of_their_own_are_found(
    other: Any, jinja: str, expected: list[list[str]]
) -> None:
    template = auto(other, jinja)
    messages = exchange("Hi", " one ", "Ho ", "two")
    assert [runs(rendering) for rendering in template.renderings(messages)] == expected
    whole = ConversationEncoder(other, template, TemplateSpec(), max_length=100_000).encode(messages)[0]
    served = other.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in messages], return_dict=False
    )
    assert whole.ids.tolist() == list(served)


REWRITES = CHAT_TEMPLATE.replace(
    "message['content']", "(message['content'] if message['role'] != 'assistant' else '(cut)')"
)


def test_a_template_that_rewrites_answers_is_refused(other: Any) -> None:
    with pytest.raises(TrainerError, match=r"rewrites .* name a built-in template") as failure:
        auto(other, REWRITES)
    assert failure.value.exit_code is ExitCode.TEMPLATE_INVALID


GENERATION = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message['content'] | length }}END{% endgeneration %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_spans_that_the_jinja_marks_are_taken_where_the_answers_cannot_be_found(other: Any) -> None:
    (whole,) = auto(other, GENERATION).renderings(exchange("Hi", "one", "Ho", "three"))
    assert runs(whole) == ["3END<|im_end|>", "5END<|im_end|>"]


def test_a_template_that_leaves_calls_out_is_refused(other: Any) -> None:
    with pytest.raises(TrainerError, match="leaves calls of tools out"):
        auto(other, CHAT_TEMPLATE).segments(ONE_CALL)
    first_alone = THINKS.jinja().replace("in message.tool_calls -", "in message.tool_calls[:1] -")
    found = auto(other, first_alone)
    assert "get_weather" in text_of(found.segments(ONE_CALL, TOOLS))
    with pytest.raises(TrainerError, match="or all but one of an answer"):
        found.segments(SEVERAL_CALLS, TOOLS)


def test_a_prompt_that_is_always_written_is_no_end_of_an_answer(other: Any) -> None:
    always = (
        "{% for message in messages %}{{ ('<|im_start|>' if message['role'] == 'assistant' else '<|endoftext|>')"
        " + message['content'] }}{% endfor %}<|im_start|>"
    )
    with pytest.raises(TrainerError, match="would never stop"):
        auto(other, always)


def test_a_template_without_an_end_of_turn_is_refused(other: Any) -> None:
    endless = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    with pytest.raises(TrainerError, match="would never stop"):
        auto(other, endless)


def test_what_the_template_refuses_is_passed_on(other: Any) -> None:
    template = auto(
        other, "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT_TEMPLATE
    )
    with pytest.raises(TrainerError, match="refuses a conversation: no system"):
        template.segments([Message("system", "Be brief."), *exchange("a", "b")])


def test_auto_needs_a_template(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_tiny_model(tmp_path, chat_template=False), trust_remote_code=False)
    with pytest.raises(TrainerError, match=r"this model has none .* name a template, such as chatml") as failure:
        resolve_template(TemplateSpec(), tokenizer)
    assert failure.value.exit_code is ExitCode.TEMPLATE_INVALID


DATED = "{{ 'It is ' + strftime_now('%d %b %Y') + '.\n' }}" + CHAT_TEMPLATE
NAMES_ITS_ANSWERS = (
    "{{ 'It is ' + strftime_now('%d %b %Y') + '.\n' }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% generation %}{{ message['content'] | upper }}<|im_end|>"
    "{% endgeneration %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("jinja", [DATED, NAMES_ITS_ANSWERS])
def test_the_day_of_training_is_the_jobs(other: Any, jinja: str) -> None:
    other.chat_template = jinja
    made = AutoTemplate(other, day="2024-02-29").renderings(exchange("Hi", "Good day"))[0]
    assert text_of(made).startswith("It is 29 Feb 2024.\n<|im_start|>")
    assert runs(made) in (["Good day<|im_end|>"], ["GOOD DAY<|im_end|>"])
    assert "29 Feb" not in AutoTemplate(other).jinja()


def test_conversations_are_rendered_as_the_tokenizer_renders_them(other: Any) -> None:
    """Thoughts, calls and tools included, and whatever the tokenizer lets templates say."""
    everything = "{{ bos_token }}{{ messages | tojson }}{{ tools | tojson }}{{ documents | tojson }}{{ eos_token }}"
    jinja = everything + "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
    template = auto(other, CHAT_TEMPLATE)
    template._compiled = auto_module._compile_jinja_template(jinja)
    calls = (ToolCall("clock", {"zone": None, "deep": [1, {"a": 2.5}]}),)
    talk = [*exchange("Hi", "Good day", "And?"), Message("assistant", "", thought="Well.", calls=calls)]
    for tools in ((), [{"name": "clock", "parameters": {"type": "object", "default": None}}]):
        for generate in (False, True):
            expected = other.apply_chat_template(
                plain_messages(talk),
                tools=plain_tools(tools),
                chat_template=jinja,
                tokenize=False,
                add_generation_prompt=generate,
            )
            assert template._render(talk, tools, "auto", generate=generate) == expected
