"""What all declared templates share: a marked Jinja source, from which come segments, prompts and the export."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import MediaKind, Message
from finetune_trainer.templates.marks import Segment, render, render_segments, unmarked
from finetune_trainer.templates.plain import plain_messages, plain_tools
from finetune_trainer.templates.served import Given, as_given, last_answer
from finetune_trainer.templates.template import Thinking
from finetune_trainer.templates.tool_formats import quote


@dataclass(frozen=True, kw_only=True)
class DeclaredTemplate:
    """A conversation format of our own declaration; :meth:`body` is all that kinds of it differ in."""

    name: str
    default_system: str = ""
    """System message of conversations that have none."""
    stop_words: tuple[str, ...] = ()
    """What ends an answer; the first one ends every turn."""
    replace_eos: bool = False
    """Export the first stop word as the tokenizer's end-of-sequence token, as serving stops at that."""
    one_call: bool = False
    """Whether an answer can call but one tool."""
    thinks_by_default: bool = True
    """Whether a thinking format thinks where nobody says."""
    day: str | None = None
    """That it is in training, YYYY-MM-DD; None: today."""

    def body(self) -> str:
        """Jinja with marks. It may use ``default_system`` and, where the template thinks, ``enable_thinking`` and
        ``preserve_thinking``, beside ``messages``, ``tools`` and ``add_generation_prompt``."""
        raise NotImplementedError

    @property
    def thinks(self) -> bool:
        """Whether the format has chains of thought."""
        raise NotImplementedError

    @property
    def takes_tools(self) -> bool:
        """Whether tools can be listed, called and answered."""
        raise NotImplementedError

    @property
    def media_kinds(self) -> tuple[MediaKind, ...]:
        """What a user's message may hold beside text."""
        raise NotImplementedError

    @property
    def rewrites(self) -> bool:
        """Whether an earlier turn may look otherwise than when it was the last."""
        raise NotImplementedError

    def segments(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        default_system: str | None = None,
        thinking: Thinking = "auto",
    ) -> list[Segment]:
        """As :meth:`Template.segments <finetune_trainer.templates.template.Template.segments>`."""
        self._check(messages, tools, thinking)
        return render_segments(
            self._source(default_system, thinking),
            _variables(messages, tools, thinking),
            name=self.name,
            day=self.day,
        )

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

        def render(part: Sequence[Message]) -> Given:
            return last_answer(self.segments(part, tools, default_system=default_system, thinking=thinking))

        if self.rewrites:
            return as_given(messages, first, render)
        whole = self.segments(messages, tools, default_system=default_system, thinking=thinking)
        return [
            [part._replace(answer=None) if part.answer is not None and part.answer < first else part for part in whole]
        ]

    def prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        default_system: str | None = None,
        thinking: Thinking = "auto",
    ) -> str:
        """As :meth:`Template.prompt <finetune_trainer.templates.template.Template.prompt>`."""
        self._check(messages, tools, thinking)
        variables = _variables(messages, tools, thinking) | {"add_generation_prompt": True}
        return render(self.jinja(default_system, thinking), variables, name=self.name, day=self.day)

    def jinja(self, default_system: str | None = None, thinking: Thinking = "auto") -> str:
        """The same format as a Jinja chat template, for the exported tokenizer."""
        return unmarked(self._source(default_system, thinking))

    @functools.lru_cache(maxsize=64)  # noqa: B019 - templates are few, and live as long as the process
    def _source(self, default_system: str | None, thinking: Thinking) -> str:
        system = self.default_system if default_system is None else default_system
        lines = [f"{{%- set default_system = {quote(system)} -%}}"]
        if self.thinks:
            enabled = self.thinks_by_default if thinking == "auto" else thinking != "disabled"
            lines += [_unless_given("enable_thinking", enabled)]
            lines += [_unless_given("preserve_thinking", thinking == "preserved")]
        return "\n".join([*lines, self.body()])

    def _check(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], thinking: Thinking) -> None:
        if not self.takes_tools and (tools or any(message.calls or message.role == "tool" for message in messages)):
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                f"spec.template.name: template {self.name} has no format for tools, and a conversation has some; name "
                "a template that has, such as qwen",
            )
        if self.one_call and any(len(message.calls) > 1 for message in messages):
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                f"spec.template.name: template {self.name} calls one tool at a time, and an answer calls several; let "
                "the calls and their results follow one another, or name a template that can, such as qwen",
            )
        for medium in chain.from_iterable(message.media for message in messages):
            if medium.kind not in self.media_kinds:
                raise TrainerError(
                    ExitCode.TEMPLATE_INVALID,
                    f"spec.template.name: template {self.name} has no placeholder for what is of type {medium.kind!r}, "
                    "and a conversation has some; name the template of the model's family, such as qwen2_vl",
                )
        if thinking == "disabled" or not any(message.thought for message in messages):
            return
        if not self.thinks:
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                f"spec.template.thinking: template {self.name} has no chains of thought, and an answer has one; set "
                "thinking to disabled to train without, or name a template that has, such as qwen3",
            )
        if thinking == "auto" and not self.thinks_by_default:
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                f"spec.template.thinking: template {self.name} thinks only where it is told to, and an answer has a "
                "chain of thought; set thinking to enabled, or to disabled to train without",
            )


def _unless_given(variable: str, value: bool) -> str:  # noqa: FBT001 - two words of a line
    assigned = f"{{%- set {variable} = {str(value).lower()} -%}}"
    return f"{{%- if {variable} is not defined -%}}{assigned}{{%- endif -%}}"


def _variables(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], thinking: Thinking) -> dict[str, Any]:
    if thinking == "disabled":
        messages = [dataclasses.replace(message, thought=None) for message in messages]
    return {"messages": plain_messages(messages), "tools": plain_tools(tools), "add_generation_prompt": False}
