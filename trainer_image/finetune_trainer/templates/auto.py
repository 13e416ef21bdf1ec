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
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any

from finetune_api.failures import ExitCode
from transformers.utils.chat_template_utils import _compile_jinja_template, _render_with_assistant_indices

from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Message
from finetune_trainer.templates.finding import ANY_MARK, MARK, Found, Marking
from finetune_trainer.templates.marks import Segment, clock
from finetune_trainer.templates.plain import plain_messages, plain_tools
from finetune_trainer.templates.served import Given, Place, as_given, retrained
from finetune_trainer.templates.template import Thinking
from finetune_trainer.templates.tool_formats import quote
from finetune_trainer.tokenizer import special_tokens

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Names under which templates ask whether to think, and whether earlier thoughts stay.
_THINKS, _KEEPS, _DROPS = ("enable_thinking", "thinking"), ("preserve_thinking",), ("clear_thinking",)


class AutoTemplate:
    """A :class:`~finetune_trainer.templates.template.Template`."""

    name = "auto"
    replace_eos = False

    def __init__(self, tokenizer: Any, *, day: str | None = None) -> None:
        """Take the Jinja of ``tokenizer``. In training it is ``day`` (YYYY-MM-DD), or today.

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
        # What apply_chat_template does with a conversation, without what it does to find out that it is one: a third of
        # the time that a row takes.
        self._compiled = _compile_jinja_template(self._own)
        self._words = tokenizer.special_tokens_map | clock(day)
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

    def _answer(self, messages: Sequence[Message], text: str, asked: str, found: Found) -> Place | None:
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
        plain, functions = _as_given(messages, tools)
        text, places = _render_with_assistant_indices(
            self._compiled,
            plain,
            functions,
            documents=None,
            add_generation_prompt=False,
            **self._words,
            **_options(thinking),
        )
        if not places:
            raise _invalid(
                "the tokenizer's chat template marks no answer of a conversation; name a built-in template instead of "
                "auto"
            )
        start, end = places[-1]
        # Authors often leave the token that ends the turn outside; without it the model would not learn to stop.
        closed = any(text[start:end].rstrip().endswith(word) for word in self._special)
        return start, end if closed else self._end(text, end)

    def _find(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], thinking: Thinking, text: str
    ) -> Found:
        marked = None
        if not ANY_MARK.search(_texts(messages, tools)):
            marking = Marking(self._special)
            held = [marking.message(message, number) for number, message in enumerate(messages)]
            marked = self._render(held, [marking.tool(tool) for tool in tools], thinking)
        if marked is None or MARK.sub("", marked) != text:
            return self._search(messages, text)
        return marking.read(marked, messages)

    def _search(self, messages: Sequence[Message], text: str) -> Found:
        """Where the template handles a text by what it says: what stands there once is found."""
        # A message with media is told by its first text.
        said = [next((piece for piece in message.pieces if isinstance(piece, str)), "") for message in messages]
        places = [_only(content, text) for content in said]
        thought = messages[-1].thought
        shown = _only(thought, text) if thought and thought.strip() else None
        ends = [place[1] for place in (places[-1], shown) if place is not None]
        for call in messages[-1].calls:
            for said in (call.name, json.dumps(call.arguments, ensure_ascii=False)):
                at = text.rfind(said)
                ends += [at + len(said)] if at >= 0 else []
        return Found(
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
        plain, functions = _as_given(messages, tools)
        try:
            return self._compiled.render(
                messages=plain,
                tools=functions,
                documents=None,
                add_generation_prompt=generate,
                **self._words,
                **_options(thinking),
            )
        except Exception as error:  # a template is a program; whatever it raises is its refusal
            raise _invalid(f"the tokenizer's chat template refuses a conversation: {error}") from error


def _as_given(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> tuple[Any, Any]:
    """Messages and tools as apply_chat_template hands them on."""
    return [_thought_by_both_names(message) for message in plain_messages(messages)], plain_tools(tools)


def _thought_by_both_names(message: dict[str, Any]) -> dict[str, Any]:
    thought = message.get("reasoning_content")
    return message if thought is None else {"thinking": thought, **message}


def _texts(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
    """All text of a conversation, for a look at its characters."""
    if tools or any(message.calls or message.thought for message in messages):
        return json.dumps([plain_messages(messages), tools], ensure_ascii=False)
    return "".join([message.content for message in messages])


def _whole(text: str, found: Found) -> list[Segment]:
    """``text`` in pieces, nothing of it trained."""
    begins = [0, *found.users[1:]]
    cuts = sorted({0, len(text), *begins, *chain.from_iterable(found.literal)})
    literal = {cut for first, last in found.literal for cut in cuts[bisect_left(cuts, first) : bisect_left(cuts, last)]}
    return [
        Segment(text[start:end], start in literal, bisect_right(begins, start) - 1) for start, end in pairwise(cuts)
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
