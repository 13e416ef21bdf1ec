"""Each built-in family writes what its model's published template writes."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conversations import GROUPS, declared
from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Message
from finetune_trainer.templates.families import FAMILIES
from finetune_trainer.templates.own_tokens import with_own_tokens
from finetune_trainer.templates.plain import plain_messages, plain_tools
from jinja2 import TemplateError
from published_meant import MEANT
from published_sources import SOURCES, Form, Source
from published_templates import Published, published
from transformers.utils.chat_template_utils import render_jinja_template


@dataclass(frozen=True)
class Case:
    """A conversation, or the prompt that asks for its last message; ``thinking`` None says nothing of that."""

    name: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    prompt: bool
    thinking: bool | None = None


def cases(source: Source) -> Iterator[Case]:
    for group in source.groups:
        for name, messages in GROUPS[group].items():
            tools = declared(group, name) if source.lists_tools else ()
            yield Case(f"text of {name}", messages, tools, prompt=False)
            asked = messages[:-1]
            yield Case(f"prompt of {name}", asked, tools, prompt=True)
            if source.thinking:
                yield Case(f"thinking prompt of {name}", asked, tools, prompt=True, thinking=True)
                # Who does not want thoughts has none in the conversation either.
                asked = tuple(dataclasses.replace(message, thought=None) for message in asked)
                yield Case(f"not thinking prompt of {name}", asked, tools, prompt=True, thinking=False)


def formed(messages: list[dict[str, Any]], form: Form) -> list[dict[str, Any]]:
    for message in messages:
        if form.parts:
            message["content"] = [{"type": "text", "text": message["content"]}]
        if message["role"] != "assistant":
            continue
        if (thought := message.pop("reasoning_content", None)) is not None:
            if "{thought}" in form.thought:
                message["content"] = form.thought.format(thought=thought) + message["content"]
            else:
                message[form.thought] = thought
        for call in message.get("tool_calls", ()):
            message["content"] = message["content"] or form.nothing
            if form.arguments == "text":
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return messages


def told(family: str, source: Source, case: Case) -> Case:
    """Who gives thoughts to a family that thinks only when told to tells it to."""
    thoughtful = any(message.thought is not None for message in case.messages)
    told_to = source.thinking and thoughtful and not FAMILIES[family].thinks_by_default
    return dataclasses.replace(case, thinking=True) if case.thinking is None and told_to else case


def theirs(published: Published, source: Source, case: Case) -> str:
    variables = dict(source.variables)
    if case.thinking is not None:
        variables[source.thinking] = case.thinking
    text = published.render(
        formed(plain_messages(case.messages), source.form),
        tools=plain_tools(case.tools) or (),
        add_generation_prompt=case.prompt,
        **variables,
    )
    return source.bos + text if source.adds_bos else text


def ours(family: str, source: Source, case: Case) -> dict[str, str]:
    """The declared text and the exported Jinja's, each of which must be theirs."""
    template = with_own_tokens(FAMILIES[family], SimpleNamespace(bos_token=source.bos, eos_token=source.eos))
    thinking = {None: "auto", True: "enabled", False: "disabled"}[case.thinking]
    variables = dict(source.variables)
    if case.thinking is not None:
        variables["enable_thinking"] = case.thinking
    rendered, _ = render_jinja_template(
        [plain_messages(case.messages)],
        tools=plain_tools(case.tools),
        chat_template=template.jinja(),
        add_generation_prompt=case.prompt,
        **variables,
    )
    declared = (
        template.prompt(case.messages, case.tools, thinking=thinking)
        if case.prompt
        else "".join(segment.text for segment in template.segments(case.messages, case.tools, thinking=thinking))
    )
    return {"declared": declared, "exported": cast("str", rendered[0])}


PAIRS = [(family, number) for family, sources in SOURCES.items() for number in range(len(sources))]


def compared(family: str, number: int) -> tuple[set[str], dict[str, str]]:
    """The names of all cases, and what is to be said of each in which the two differ."""
    source, format_ = SOURCES[family][number], published(family)[number]
    names: set[str] = set()
    differing: dict[str, str] = {}
    for case in cases(source):
        names.add(case.name)
        case = told(family, source, case)  # noqa: PLW2901
        try:
            wanted = theirs(format_, source, case)
        except (TemplateError, TypeError) as error:  # some add a text to nothing where they hold no such message
            wanted = f"refused: {error}"
        try:
            got = ours(family, source, case)
        except (TemplateError, TrainerError) as error:
            got = {"both": f"refused: {error}"}
        for side, text in got.items():
            if text != wanted and not (text.startswith("refused") and wanted.startswith("refused")):
                at = next(i for i in range(len(text) + 1) if text[: i + 1] != wanted[: i + 1])
                differing[case.name] = (
                    f"{side}: behind {wanted[max(0, at - 60) : at]!r}\n  theirs {wanted[at:]!r}\n  ours   {text[at:]!r}"
                )
    return names, differing


@pytest.mark.parametrize(
    ("family", "number"), PAIRS, ids=[f"{family}: {SOURCES[family][number].name}" for family, number in PAIRS]
)
def test_a_family_writes_what_is_published_but_for_what_is_meant(family: str, number: int) -> None:
    names, differing = compared(family, number)
    meant: set[str] = set()
    for pattern in MEANT.get((family, SOURCES[family][number].name), {}):
        matched = set(fnmatch.filter(names, pattern))
        assert matched, f"no case is called {pattern}"
        assert matched <= set(differing), f"{pattern} differ no longer: {sorted(matched - set(differing))}"
        meant |= matched
    unexpected = [f"{name}, {text}" for name, text in differing.items() if name not in meant]
    assert not unexpected, "\n".join(unexpected)


SEEN = [(family, number, kind) for family, number in PAIRS for kind in SOURCES[family][number].parts]


@pytest.mark.parametrize(("family", "number", "kind"), SEEN)
def test_a_picture_stands_where_the_published_template_has_it(family: str, number: int, kind: str) -> None:
    source = SOURCES[family][number]
    asked: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": kind}, {"type": "text", "text": "What is this?"}]},
    ]
    rendered, _ = render_jinja_template([asked], chat_template=FAMILIES[family].jinja(), add_generation_prompt=True)
    if source.form.parts:
        asked[0]["content"] = [{"type": "text", "text": "Be brief."}]
    wanted = published(family)[number].render(asked, add_generation_prompt=True)
    assert rendered == [source.bos + wanted if source.adds_bos else wanted]
