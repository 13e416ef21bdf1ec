"""``template: auto``: the tokenizer's own Jinja, with the assistant's text found exactly.

An answer is looked for in the conversation that ends with it. It begins where the rendering of all before it, with the
generation prompt, ends. It ends with the first special token behind its text, or behind its calls with the token that
ends other answers. Where the prompt is not how the conversation begins, the last span that the Jinja itself marks
(``{% generation %}``) is taken; where there is none, the template is refused: guessing would train on the wrong tokens.

A special token's text in a message stays text as in the built-in templates. Where messages, thoughts, calls and tools
stand is seen from a second rendering, in which each of their texts is held between characters that no text has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

from finetune_api.failures import ExitCode
from transformers.utils.chat_template_utils import render_jinja_template

from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Message, ToolCall
from finetune_trainer.templates.marks import Segment
from finetune_trainer.templates.plain import plain_messages, plain_tools
from finetune_trainer.templates.served import Given, Place, as_given, retrained
from finetune_trainer.templates.template import Thinking
from finetune_trainer.templates.tool_formats import quote
from finetune_trainer.tokenizer import special_tokens

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Unicode's noncharacters: what begins and ends a text, and digits of its number.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_DIGITS = [chr(0xFDD2 + digit) for digit in range(16)]
_MARK = re.compile(f"{_OPEN}([{_DIGITS[0]}-{_DIGITS[15]}]+){_CLOSE}|{_CLOSE}")
_ANY_MARK = re.compile("[\ufdd0-\ufdef]")
# Names under which templates ask whether to think, and whether earlier thoughts stay.
_THINKS, _KEEPS, _DROPS = ("enable_thinking", "thinking"), ("preserve_thinking",), ("clear_thinking",)


@dataclass(frozen=True)
class _Found:
    """Where texts of a conversation stand in its rendering."""

    literal: list[Place]
    users: list[int]
    """Where each user's text that was found begins."""
    said: Place | None
    """The last answer's text; None where it is not found, or is empty."""
    last: int
    """End of the last text of the last answer, its thought and calls included; -1 where none is found."""
    thought: bool
    """Whether the last answer's thought is found, or there is none."""
    calls: bool
    """Whether all calls of the last answer are found."""


class AutoTemplate:
    """A :class:`~finetune_trainer.templates.template.Template`."""

    name = "auto"
    replace_eos = False

    def __init__(self, tokenizer: Any) -> None:
        """Take the Jinja of ``tokenizer``.

        Raises:
            TrainerError: TEMPLATE_INVALID where the tokenizer has none, as base models' have not.
        """
        if not tokenizer.chat_template:
            raise _invalid(
                "auto takes the tokenizer's own chat template, and this model has none (a base model); name a "
                "template, such as chatml"
            )
        self._tokenizer = tokenizer
        self._own = str(tokenizer.get_chat_template())
        self._special = special_tokens(tokenizer)
        self.stop_words: tuple[str, ...] = ()
        asked = [Message("user", "question")]
        probe = self._given([*asked, Message("assistant", "reply")], (), "auto")
        said = probe.text[slice(*probe.answer)]
        stop = next(word for word in self._special if said.endswith(word))
        if self._render(asked, (), "auto", generate=True).rstrip().endswith(stop):
            raise _endless()  # it writes a prompt behind each conversation, whether it is asked for one or not
        self.stop_words = (stop,)

    def jinja(self, default_system: str | None = None, thinking: Thinking = "auto") -> str:
        """The tokenizer's own Jinja, with the job's system message put before conversations that have none, and with
        the job's word on thinking where the caller has none."""
        said = "".join(
            f"{{%- if {name} is not defined %}}{{% set {name} = {str(value).lower()} %}}{{% endif %}}"
            for name, value in _options(thinking).items()
        )
        if default_system is not None:
            said += (
                "{%- if messages[0]['role'] != 'system' %}"
                f"{{% set messages = [{{'role': 'system', 'content': {quote(default_system)}}}] + messages %}}"
                "{% endif %}"
            )
        return said + self._own

    def segments(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        default_system: str | None = None,
        thinking: Thinking = "auto",
    ) -> list[Segment]:
        """As :meth:`Template.segments <finetune_trainer.templates.template.Template.segments>`; answers that do not
        stand in it as they were given are not trained."""
        if messages[-1].role == "assistant":
            return self.renderings(messages, tools, default_system=default_system, thinking=thinking)[0]
        seen = self._seen(messages, default_system, thinking)
        text = self._render(seen, tools, thinking)
        places = {}
        for number, at in enumerate(at for at, message in enumerate(seen) if message.role == "assistant"):
            given = self._given(seen[: at + 1], tools, thinking)
            if text.startswith(given.text[: given.answer[1]]):
                places[number] = given.answer
        return retrained(_whole(text, self._find(seen, tools, thinking, text)), places)

    def renderings(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        first: int = 0,
        default_system: str | None = None,
        thinking: Thinking = "auto",
    ) -> list[list[Segment]]:
        """As :meth:`Template.renderings <finetune_trainer.templates.template.Template.renderings>`."""
        messages = self._seen(messages, default_system, thinking)
        return as_given(messages, first, lambda part: self._given(part, tools, thinking))

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        default_system: str | None = None,
        thinking: Thinking = "auto",
    ) -> str:
        """As :meth:`Template.prompt <finetune_trainer.templates.template.Template.prompt>`."""
        return self._render(self._seen(messages, default_system, thinking), tools, thinking, generate=True)

    def _seen(self, messages: Sequence[Message], default_system: str | None, thinking: Thinking) -> list[Message]:
        """``messages`` as the template is given them."""
        seen = [replace(message, thought=None) if thinking == "disabled" else message for message in messages]
        if default_system is not None and seen[0].role != "system":
            seen.insert(0, Message("system", default_system))
        return seen

    def _given(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], thinking: Thinking) -> Given:
        text = self._render(messages, tools, thinking)
        asked = self._render(messages[:-1], tools, thinking, generate=True)
        found = self._find(messages, tools, thinking, text)
        if not found.thought:
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                "spec.template.thinking: the tokenizer's chat template leaves an answer's chain of thought out; set "
                "thinking to disabled to train without, or name a built-in template of the model's family",
            )
        if not found.calls:
            raise _invalid(
                "the tokenizer's chat template leaves calls of tools out, or all but one of an answer; name a built-in "
                "template that writes them instead of auto"
            )
        if thinking == "preserved" and not self._keeps_thoughts(messages, text):
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                "spec.template.thinking: the tokenizer's chat template leaves the thoughts of earlier turns out and "
                "cannot be told to keep them; set thinking to enabled, or name a built-in template",
            )
        place = self._answer(messages, text, asked, found) or self._marked_by_jinja(messages, tools, thinking)
        return Given(_whole(text, found), place)

    def _answer(self, messages: Sequence[Message], text: str, asked: str, found: _Found) -> Place | None:
        """Where the last answer stands; None where the prompt does not lead to it or its text is not found."""
        message = messages[-1]
        if not text.startswith(asked):
            return None
        if message.calls:
            last = max(found.last, len(asked))
            if found.last < len(asked):
                return None
            end = next((at + len(word) for word in self.stop_words if (at := text.find(word, last)) >= 0), None)
            return len(asked), end or self._last_special(text, last)
        if found.said is None:
            return (len(asked), self._end(text, len(asked))) if not message.content.strip() else None
        return (len(asked), self._end(text, found.said[1])) if found.said[0] >= len(asked) else None

    def _end(self, text: str, start: int) -> int:
        """End of the special token that closes the answer whose text ends at ``start``."""
        ends = [(at, at + len(word)) for word in self._special if (at := text.find(word, start)) >= 0]
        if not ends:
            raise _endless()
        # Several tokens may begin at one place; the longest is meant.
        return max(ends, key=lambda place: (-place[0], place[1]))[1]

    def _last_special(self, text: str, start: int) -> int:
        """End of the last special token behind ``start``: a call may be ended by a token of its own."""
        ends = [at + len(word) for word in self._special if (at := text.rfind(word, start)) >= 0]
        if not ends:
            raise _endless()
        return max(ends)

    def _marked_by_jinja(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], thinking: Thinking
    ) -> Place:
        if not _GENERATION.search(self._own):
            raise _invalid(
                "the tokenizer's chat template rewrites what an answer says or what comes before it, so that its "
                "tokens cannot be told exactly; name a built-in template instead of auto"
            )
        # With the mask it gives the places of the answers beside the text.
        texts, places = cast(
            "tuple[list[str], list[list[Place]]]",
            render_jinja_template(
                [plain_messages(messages)],
                tools=plain_tools(tools),
                chat_template=self._own,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
                **_options(thinking),
            ),
        )
        if not places[0]:
            raise _invalid(
                "the tokenizer's chat template marks no answer of a conversation; name a built-in template instead of "
                "auto"
            )
        start, end = places[0][-1]
        # Authors often leave the token that ends the turn outside; without it the model would not learn to stop.
        closed = any(texts[0][start:end].rstrip().endswith(word) for word in self._special)
        return start, end if closed else self._end(texts[0], end)

    def _find(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], thinking: Thinking, text: str
    ) -> _Found:
        given = json.dumps([plain_messages(messages), tools], ensure_ascii=False)
        marked = None
        if not _ANY_MARK.search(given):
            marking = _Marking(self._special)
            held = [marking.message(message, number) for number, message in enumerate(messages)]
            marked = self._render(held, [marking.tool(tool) for tool in tools], thinking)
        if marked is None or _MARK.sub("", marked) != text:
            return self._search(messages, text)
        return marking.read(marked, messages)

    def _search(self, messages: Sequence[Message], text: str) -> _Found:
        """Where the template handles a text by what it says: what stands there once is found."""
        places = [_only(message.content, text) for message in messages]
        thought = messages[-1].thought
        shown = _only(thought, text) if thought and thought.strip() else None
        ends = [place[1] for place in (places[-1], shown) if place is not None]
        for call in messages[-1].calls:
            for said in (call.name, json.dumps(call.arguments, ensure_ascii=False)):
                at = text.rfind(said)
                ends += [at + len(said)] if at >= 0 else []
        return _Found(
            literal=sorted(place for place in places if place is not None),
            users=[
                place[0] for place, message in zip(places, messages, strict=True) if place and message.role == "user"
            ],
            said=places[-1],
            last=max(ends, default=-1),
            thought=not (thought and thought.strip()) or thought.strip() in text,
            calls=all(
                text.count(call.name) >= [other.name for other in messages[-1].calls].count(call.name)
                for call in messages[-1].calls
            ),
        )

    def _keeps_thoughts(self, messages: Sequence[Message], text: str) -> bool:
        return all(message.thought is None or message.thought.strip() in text for message in messages)

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        thinking: Thinking,
        *,
        generate: bool = False,
    ) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    plain_messages(messages),
                    tools=plain_tools(tools),
                    chat_template=self._own,
                    tokenize=False,
                    add_generation_prompt=generate,
                    **_options(thinking),
                )
            )
        except Exception as error:  # a template is a program; whatever it raises is its refusal
            raise _invalid(f"the tokenizer's chat template refuses a conversation: {error}") from error


class _Marking:
    """Holds each text of a conversation between marks, and finds them in its rendering.

    White space around a text stays outside, since templates strip it.
    """

    def __init__(self, special: Sequence[str]) -> None:
        self._special = special
        self._owners: list[tuple[int, str]] = []
        """Number of the message that each text is of (-1: the tools), and which of its texts it is."""

    def message(self, message: Message, number: int) -> Message:
        """``message`` with its texts held."""
        return replace(
            message,
            content=self._held(message.content, number, "content"),
            thought=None if message.thought is None else self._held(message.thought, number, "thought"),
            calls=tuple(
                ToolCall(self._held(call.name, number, "name"), self._value(call.arguments, number))
                for call in message.calls
            ),
        )

    def tool(self, tool: Mapping[str, Any]) -> dict[str, Any]:
        """``tool`` with those texts held that have a special token: by others templates choose what they write."""
        return cast("dict[str, Any]", self._value(tool, -1))

    def _value(self, value: Any, number: int) -> Any:
        """A JSON value with its texts held; keys stay, templates look things up by them."""
        if isinstance(value, str):
            held = number >= 0 or any(word in value for word in self._special)
            return self._held(value, number, "call") if held else value
        if isinstance(value, Mapping):
            return {key: self._value(inner, number) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._value(inner, number) for inner in value]
        return value

    def _held(self, text: str, number: int, kind: str) -> str:
        core = text.strip()
        if not core:
            return text
        digits = "".join(_DIGITS[int(digit, 16)] for digit in f"{len(self._owners):x}")
        self._owners.append((number, kind))
        before, _, after = text.partition(core)
        return f"{before}{_OPEN}{digits}{_CLOSE}{core}{_CLOSE}{after}"

    def read(self, marked: str, messages: Sequence[Message]) -> _Found:
        """Where the texts stand once the marks are gone. A text that the template cut has lost one of its marks, and
        is not found."""
        places: list[tuple[Place, int, str]] = []
        gone, opened = 0, None
        for match in _MARK.finditer(marked):
            at = match.start() - gone
            gone += len(match.group())
            if match.group(1):
                owner = int("".join(f"{_DIGITS.index(digit):x}" for digit in match.group(1)), 16)
                opened = (at, owner)
            elif opened is not None:
                places.append(((opened[0], at), *self._owners[opened[1]]))
                opened = None
        last = len(messages) - 1
        own = [(place, kind) for place, number, kind in places if number == last]
        said = [place for place, kind in own if kind == "content"]
        users: dict[int, int] = {}
        for place, number, kind in places:
            if kind == "content" and number >= 0 and messages[number].role == "user":
                users.setdefault(number, place[0])
        thought = messages[-1].thought
        return _Found(
            literal=sorted(place for place, _, _ in places),
            users=[users[number] for number in sorted(users)],
            said=said[-1] if said else None,
            last=max((place[1] for place, _ in own), default=-1),
            thought=not (thought and thought.strip()) or any(kind == "thought" for _, kind in own),
            calls=sum(kind == "name" for _, kind in own) >= len(messages[-1].calls),
        )


def _whole(text: str, found: _Found) -> list[Segment]:
    """``text`` in pieces, nothing of it trained."""
    begins = [0, *found.users[1:]]
    cuts = sorted({0, len(text), *begins, *(edge for place in found.literal for edge in place)})
    return [
        Segment(
            text[start:end],
            literal=any(first <= start < last for first, last in found.literal),
            turn=sum(start >= turn for turn in begins) - 1,
        )
        for start, end in pairwise(cuts)
    ]


def _options(thinking: Thinking) -> dict[str, bool]:
    """What the job's ``template.thinking`` tells a Jinja, by the names that are in use."""
    if thinking == "auto":
        return {}
    told = dict.fromkeys(_THINKS, thinking != "disabled")
    if thinking == "preserved":
        told |= dict.fromkeys(_KEEPS, True) | dict.fromkeys(_DROPS, False)
    return told


def _invalid(problem: str) -> TrainerError:
    return TrainerError(ExitCode.TEMPLATE_INVALID, f"spec.template.name: {problem}")


def _endless() -> TrainerError:
    return _invalid(
        "the tokenizer's chat template ends an answer with no special token, so the tuned model would never stop; name "
        "a built-in template instead of auto"
    )


def _only(content: str, text: str) -> Place | None:
    """Where ``content`` stands, as it is or without the space around it, if it does once."""
    made = (content, content.strip(), content.strip("\n"), content.lstrip("\n"), content.rstrip(), content.lstrip())
    for said in dict.fromkeys(made):
        if said and text.count(said) == 1:
            return (at := text.index(said), at + len(said))
    return None
