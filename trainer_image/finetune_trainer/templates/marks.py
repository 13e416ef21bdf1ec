"""Jinja with marks: one source gives the text, what in it is trained, and what a person wrote.

A chat template is a Jinja program. Ours hold marks in comments, which change nothing of what is rendered:

- ``{#text#}…{#/text#}`` around what a person or a program wrote: special tokens in it mean nothing;
- ``{#answer#}…{#/answer#}`` around what the assistant says, with what ends it: that is trained, once a message;
- ``{#turn#}`` where a user's turn begins.

The exported template is the source without the comments. The segments come from the same source with a character in
each comment's place, so that both are one text by construction.

The marks stand between tags that strip white space (``{{- … -}}``) or directly beside their text.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

import jinja2
from finetune_api.failures import ExitCode
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetune_trainer.errors import TrainerError

TEXT, END_TEXT = "{#text#}", "{#/text#}"
ANSWER, END_ANSWER = "{#answer#}", "{#/answer#}"
TURN = "{#turn#}"
_MARKS = (TEXT, END_TEXT, ANSWER, END_ANSWER, TURN)
_TEXT_ALONE = {"role", "content"}
_NAMES_OF_DICT = frozenset(dir(dict))
# Unicode's noncharacters, which no text is to hold; one that holds some is marked by others.
_NONCHARACTERS = [*range(0xFDD0, 0xFDF0), *(plane << 16 | low for plane in range(1, 17) for low in (0xFFFE, 0xFFFF))]
_ALPHABETS = [
    "".join(map(chr, _NONCHARACTERS[first : first + len(_MARKS)]))
    for first in range(0, len(_NONCHARACTERS) - len(_MARKS) + 1, len(_MARKS))
]


class Segment(NamedTuple):
    """A piece of a rendered conversation.

    ``literal``: text that a person wrote, in which special tokens mean nothing. ``turn``: number of the user turn it
    belongs to, from 0; the system message belongs to the first. ``answer``: number of the assistant's message that is
    trained here, from 0; None where nothing is trained. ``medium``: stands for an image, video or sound.
    """

    text: str
    literal: bool
    turn: int
    answer: int | None = None
    medium: bool = False

    @property
    def trained(self) -> bool:
        """Whether a loss is taken on it."""
        return self.answer is not None


def unmarked(source: str) -> str:
    """``source`` as it is exported."""
    for mark in _MARKS:
        source = source.replace(mark, "")
    return source


def clock(day: str | None) -> dict[str, Any]:
    """What a template has to find that it is ``day`` (YYYY-MM-DD), at midnight; nothing, where it is today."""
    return {} if day is None else {"strftime_now": datetime.fromisoformat(day).strftime}


def render(source: str, variables: Mapping[str, Any], *, name: str, day: str | None = None) -> str:
    """The text of an unmarked ``source``, on ``day`` as of :func:`clock`.

    Raises:
        TrainerError: TEMPLATE_INVALID with what the template says against the conversation.
    """
    try:
        return _compiled(source).render(**variables, **clock(day))
    except jinja2.TemplateError as error:
        raise TrainerError(
            ExitCode.TEMPLATE_INVALID, f"spec.template.name: template {name} refuses a conversation: {error.message}"
        ) from error


def render_segments(source: str, variables: Mapping[str, Any], *, name: str, day: str | None = None) -> list[Segment]:
    """The pieces of a marked ``source``'s text, on ``day`` as of :func:`clock`.

    Raises:
        TrainerError: as :func:`render`.
    """
    given = _texts(variables)
    alphabet = next((marks for marks in _ALPHABETS if not any(mark in given for mark in marks)), None)
    if alphabet is None:
        raise TrainerError(
            ExitCode.TEMPLATE_INVALID, "a conversation holds all of Unicode's noncharacters; remove them"
        )
    return _split(render(_with_marks(source, alphabet), variables, name=name, day=day), alphabet)


def _texts(variables: Mapping[str, Any]) -> str:
    """All text in ``variables``, for a look at its characters."""
    messages = variables["messages"]
    if variables.get("tools") is None and all(message.keys() == _TEXT_ALONE for message in messages):
        contents = [message["content"] for message in messages]
        if all(isinstance(content, str) for content in contents):  # else there are images or sounds among them
            return "".join(contents)
    return json.dumps(variables, ensure_ascii=False)


@functools.lru_cache(maxsize=512)
def _with_marks(source: str, alphabet: str) -> str:
    for mark, character in zip(_MARKS, alphabet, strict=True):
        source = source.replace(mark, character)
    return source


def _split(marked: str, alphabet: str) -> list[Segment]:
    text, end_text, answer, end_answer, turn = alphabet
    first, *rest = re.split(f"([{alphabet}])", marked)
    segments = [Segment(first, literal=False, turn=0)] if first else []
    literal, trained, answers, turns = False, False, -1, -1
    for mark, piece in zip(rest[::2], rest[1::2], strict=True):
        if mark in (text, end_text):
            literal = mark == text
        elif mark in (answer, end_answer):
            trained = mark == answer
            answers += trained
        elif mark == turn:
            turns += 1
        if piece:
            segments.append(Segment(piece, literal, max(turns, 0), answers if trained else None))
    return segments


@functools.lru_cache(maxsize=512)
def _compiled(source: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(source)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: FBT001, FBT002 - a filter's
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


class _Environment(ImmutableSandboxedEnvironment):
    """Looks a message's field up at once. The sandbox gives the same, after it has asked for an attribute: a tenth of
    the time that a conversation takes."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """As the sandbox's."""
        if type(obj) is dict and attribute in obj and attribute not in _NAMES_OF_DICT:
            return obj[attribute]
        return super().getattr(obj, attribute)


def _environment() -> ImmutableSandboxedEnvironment:
    """What chat templates may use where they are served (transformers.utils.chat_template_utils)."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)  # noqa: DTZ005 - as served
    return environment


_ENVIRONMENT = _environment()
