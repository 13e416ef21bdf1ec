"""Templates by slots: one declaration gives the text, what is trained, and the Jinja that is exported.

The slots are those of the guide: its ``format_user`` holds the user's text and the header of the answer. Here the
header stands apart (``assistant_header``), since the exported Jinja must be able to leave it out
(``add_generation_prompt=False``). A family is declared like this::

    SlotTemplate(
        name="qwen3",
        system="<|im_start|>system\\n{{content}}<|im_end|>\\n",
        user="<|im_start|>user\\n{{content}}<|im_end|>\\n",
        assistant_header="<|im_start|>assistant\\n",
        assistant="{{content}}<|im_end|>\\n",
        observation="<|im_start|>user{{content}}<|im_end|>\\n",  # one turn for all results of an answer's calls
        result="\\n<tool_response>\\n{{content}}\\n</tool_response>",  # each of them
        tool_format="qwen",
        thought_words=("<think>\\n", "\\n</think>\\n\\n"),
        stop_words=("<|im_end|>",),
        replace_eos=True,
    )

A format whose rules go beyond slots is a :class:`~finetune_trainer.templates.own.OwnTemplate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_trainer.messages import MEDIA_KINDS, MediaKind
from finetune_trainer.templates.declared import DeclaredTemplate
from finetune_trainer.templates.marks import ANSWER, END_ANSWER, TURN
from finetune_trainer.templates.tool_formats import TOOL_FORMATS, ToolFormat, fixed, person, quote, when

CONTENT, INDEX = "{{content}}", "{{idx}}"
_USERS = (
    "{%- set users = namespace(first=-1, last=-1, count=0) -%}"
    "{%- for message in turns -%}{%- if message.role == 'user' -%}"
    "{%- if users.first < 0 -%}{%- set users.first = loop.index0 -%}{%- endif -%}"
    "{%- set users.last = loop.index0 -%}"
    "{%- endif -%}{%- endfor -%}"
)
"""Finds the first and the last user's turn."""
_BEFORE = "(turns[loop.index0 - 1].role if loop.index0 else '')"
"""The role of the message before, in Jinja."""
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, kw_only=True)
class SlotTemplate(DeclaredTemplate):
    """A conversation format by slots: text in which ``{{content}}`` stands once for what the slot holds, and in
    ``user`` also ``{{idx}}`` for the turn's number, from 1."""

    prefix: str = ""
    """Written once, before everything; holds no content."""
    system: str
    """The system message."""
    system_place: Literal["turn", "first_user", "last_user"] = "turn"
    """Where it stands: in a turn of its own, or within the user's slot before the text of the first or last one."""
    system_start: str = ""
    """Jinja with marks that stands first in the system's slot."""
    system_always: bool = False
    """Whether the system's slot is written without a system message too."""
    default_system_for_tools: str | None = None
    """What stands in for a missing system message where tools are listed; None means ``default_system``."""
    user: str
    """A user's message."""
    assistant_header: str = ""
    """What an answer follows, in a conversation and in a prompt alike; not trained."""
    result_header: str | None = None
    """The same behind tools' results; None means as ``assistant_header``."""
    assistant: str
    """An answer. It is trained up to and with the first stop word; what follows that is never generated."""
    function: str | None = None
    """An answer that calls tools; its content is what the tool format writes. None means as ``assistant``."""
    end: str = ""
    """Ends an answer that no tool's result follows, trained (the guide's ``efficient_eos``); else the end stands in
    ``assistant``."""
    ended_by_next: bool = False
    """Whether the word that opens the next turn ends an answer. It is a stop word and trained with the answer; behind
    the last answer stands the word that would open the user's turn, or the results' where it calls tools."""
    suffix: str = ""
    """Written once behind a conversation that asks for no answer; not trained."""
    observation: str | None = None
    """A turn of tools' results. None means as ``user``."""
    result: str | None = None
    """One result of several in a turn; None means that each is a turn of its own."""
    results_join: str = ""
    """Between two results of a turn."""
    tool_format: str | ToolFormat | None = None
    """How tools are listed and called: a name of ``TOOL_FORMATS``, or one of the family's own."""
    tools: str = CONTENT
    """The list of tools."""
    tools_place: Literal[
        "system_end", "system_start", "after_system", "before_system", "first_user", "before_first_user",
        "before_last_user",
    ] = "system_end"  # fmt: skip
    """Where the list stands: within the system's slot behind or before its text, as a turn behind or before it, within
    the first user's slot before the text, or before that slot or the last one."""
    tools_join: str = "\n\n"
    """Between the system's text and a list within its slot."""
    trims: frozenset[Role] = frozenset()
    """Whose messages lose the white space around them."""
    thought_words: tuple[str, str] | None = None
    """What opens and closes a chain of thought."""
    thought_trim: Literal["nothing", "lines", "space"] = "lines"
    """What a thought loses around it, and the text behind it before it."""
    thought_in_prompt: bool = False
    """Whether a prompt opens the thought, where thinking is on."""
    no_thought: str | None = None
    """Stands for a thought that is missing: behind the header of a prompt where thinking is off (then not trained),
    before the last answer where it is on (then trained, unless the prompt opens the thought: then it is closed). None
    means the thought words with nothing between."""
    no_thought_within: bool = False
    """Whether an answer of the current turn that another follows (it called tools) has ``no_thought`` too."""
    thought_once: bool = False
    """Whether only the first answer to a user has a thought; those behind tools' results go on without."""
    unthinking: str = ""
    """Stands behind a user's text where thinking is off, unless that ends so."""
    past_thought: str = ""
    """Stands before the answers of earlier turns, whose thoughts are left out unless thinking is preserved."""
    image: str | None = None
    """Stands for an image in a message of several parts; ``{{idx}}`` in it, as in the others', is its number."""
    video: str | None = None
    """Stands for a video."""
    audio: str | None = None
    """Stands for a sound."""

    @property
    def format_user(self) -> str:
        """The guide's ``format_user``: the user's turn with the header of the answer."""
        return self.user + self.assistant_header

    @property
    def thinks(self) -> bool:
        """As :attr:`DeclaredTemplate.thinks`."""
        return self.thought_words is not None

    @property
    def takes_tools(self) -> bool:
        """As :attr:`DeclaredTemplate.takes_tools`."""
        return self.tool_format is not None

    @property
    def media_kinds(self) -> tuple[MediaKind, ...]:
        """As :attr:`DeclaredTemplate.media_kinds`."""
        return tuple(kind for kind in MEDIA_KINDS if getattr(self, kind))

    @property
    def rewrites(self) -> bool:
        """As :attr:`DeclaredTemplate.rewrites`."""
        return self.thinks or self.system_place == "last_user" or self.tools_place == "before_last_user"

    @property
    def tool_fragments(self) -> ToolFormat | None:
        """The tool format itself."""
        return TOOL_FORMATS[self.tool_format] if isinstance(self.tool_format, str) else self.tool_format

    def body(self) -> str:
        """As :meth:`DeclaredTemplate.body`."""
        trimmed = " | trim" if "system" in self.trims else ""
        default = "default_system"
        if self.default_system_for_tools is not None:
            default = f"{quote(self.default_system_for_tools)} if tools else default_system"
        lines = (
            "" if self.takes_tools else when("tools", _refusal("this chat template has no format for tools")),
            fixed(self.prefix),
            self._before_turns(),
            "{%- for message in turns -%}",
            "{%- if message.role == 'user' -%}",
            self._user(),
            "{%- elif message.role == 'assistant' -%}",
            self._assistant(),
            *(["{%- elif message.role == 'tool' -%}", self._observation()] if self.takes_tools else []),
            "{%- else -%}{{- raise_exception('unknown role: ' + message.role) -}}{%- endif -%}",
            "{%- endfor -%}",
            when("add_generation_prompt", self._prompt(), fixed(self.suffix)),
        )
        begins = (
            self._macro(),
            "{%- if messages and messages[0].role == 'system' -%}",
            f"{{%- set system = messages[0].content{trimmed} -%}}",
            "{%- set turns = messages[1:] -%}",
            "{%- else -%}",
            f"{{%- set system = {default} -%}}{{%- set turns = messages -%}}",
            "{%- endif -%}",
            _USERS if any("users." in line for line in lines) else "",
        )
        return "\n".join(line for line in (*begins, *lines) if line)

    # A message's text may come in parts (text, images); only templates with placeholders look for those.

    def _macro(self) -> str:
        holders = [("image", self.image), ("video", self.video), ("audio", self.audio)]
        parts = "".join(
            f"{{%- elif part.type == '{kind}' or part.type == '{kind}_url' -%}}{_held(kind, holder)}"
            for kind, holder in holders
            if holder
        )
        if not parts:
            return ""
        counts = any(INDEX in holder for _, holder in holders if holder)
        return (
            ("{%- set seen = namespace(image=0, video=0, audio=0) -%}" if counts else "")
            + "{%- macro parts(content) -%}{%- for part in content -%}"
            f"{{%- if part.type == 'text' -%}}{person('part.text')}{parts}"
            "{%- else -%}{{- raise_exception('no placeholder for a part of type ' + part.type) -}}"
            "{%- endif -%}{%- endfor -%}{%- endmacro -%}"
        )

    def _user_text(self) -> str:
        trimmed = " | trim" if "user" in self.trims else ""
        text = person(f"message.content{trimmed}")
        if not self._macro():
            return text
        return when("message.content is string", text, "{{- parts(message.content) -}}")

    def _tools(self) -> str:
        fragments = self.tool_fragments
        return _filled(self.tools, fragments.tools) if fragments else ""

    def _before_turns(self) -> str:
        """The system message and the list of tools, where they stand before the turns."""
        apart = when("tools", self._tools())
        before = apart if self.tools_place == "before_system" else ""
        after = apart if self.tools_place == "after_system" else ""
        if self.system_place != "turn":
            return before + after
        text = person("system")
        within = self.tools_place in ("system_end", "system_start") and self.takes_tools
        pieces = [when("system", text)]
        if within:
            pieces += [when("system and tools", fixed(self.tools_join)), apart]
        if self.tools_place == "system_start":
            pieces.reverse()
        slot = _filled(self.system, self.system_start + "".join(pieces))
        written = "system or tools" if within else "system"
        return before + (slot if self.system_always else when(written, slot)) + after

    def _user(self) -> str:
        tools = self._tools()
        first, last = "loop.index0 == users.first", "loop.index0 == users.last"
        before = {"before_first_user": first, "before_last_user": last}.get(self.tools_place)
        fused = {"first_user": first, "last_user": last}.get(self.system_place)
        opening, _, closing = self.user.partition(CONTENT)
        return "".join(
            (
                "{%- set users.count = users.count + 1 -%}" if INDEX in self.user else "",
                TURN,
                when(f"tools and {before}", tools) if before and tools else "",
                self._opening(opening),
                when(f"system and {fused}", _filled(self.system, person("system"))) if fused else "",
                when(f"tools and {first}", tools) if self.tools_place == "first_user" else "",
                self._user_text(),
                when(f"not enable_thinking and not {_ends(self.unthinking)}", fixed(self.unthinking)),
                _numbered(closing),
            )
        )

    def _opening(self, text: str) -> str:
        """What a turn that is not the assistant's begins with; its first word may end the answer before."""
        if not self.ended_by_next:
            return _numbered(text)
        word = self._opens(text)
        return fixed(word) + END_ANSWER + _numbered(text.removeprefix(word))

    def _opens(self, turn: str | None) -> str:
        """The stop word that ``turn`` begins with; without a turn the first."""
        return next((word for word in self.stop_words if turn and turn.startswith(word)), self.stop_words[0])

    def _header(self, before: str) -> str:
        """``before``: the role of the message before."""
        if self.result_header is None:
            return fixed(self.assistant_header)
        return when(f"{before} == 'tool'", fixed(self.result_header), fixed(self.assistant_header))

    def _assistant(self) -> str:
        trimmed = " | trim" if "assistant" in self.trims else ""
        answer = self._answer(self.assistant, person("content"))
        fragments = self.tool_fragments
        called = (
            self._answer(self.assistant if self.function is None else self.function, fragments.calls)
            if fragments
            else _refusal("this chat template has no format for tools")
        )
        return "\n".join(
            line
            for line in (
                f"{{%- set content = (message.content or ''){trimmed} -%}}",
                self._read_thought(),
                self._header(_BEFORE),
                self._thought() if self.thinks else ANSWER,
                when("message.tool_calls", called, answer),
            )
            if line
        )

    def _answer(self, slot: str, inner: str) -> str:
        """Trained up to the stop word; a line end after it is never generated."""
        before, _, after = slot.partition(CONTENT)
        ends = [after.find(word) + len(word) for word in self.stop_words if word in after]
        cut = min(ends, default=len(after))
        last = "loop.last or turns[loop.index0 + 1].role != 'tool'"
        end = when(last, fixed(self.end)) if self.end else ""
        if self.ended_by_next:
            end = when("message.tool_calls", fixed(self._opens(self.observation)), fixed(self._opens(self.user)))
            return fixed(before) + inner + when("loop.last", end + END_ANSWER)
        return f"{fixed(before)}{inner}{fixed(after[:cut])}{end}{END_ANSWER}{fixed(after[cut:])}"

    def _observation(self) -> str:
        fragments = self.tool_fragments
        if fragments is None:
            return ""
        trimmed = " | trim" if "tool" in self.trims else ""
        read = f"{{%- set content = message.content{trimmed} -%}}"
        turn = self.user if self.observation is None else self.observation
        if self.result is None:
            before, _, after = turn.partition(CONTENT)
            return read + self._opening(before) + fragments.result + fixed(after)
        before, _, after = turn.partition(CONTENT)
        opens = when(f"{_BEFORE} != 'tool'", self._opening(before), fixed(self.results_join))
        closes = when("loop.last or turns[loop.index0 + 1].role != 'tool'", fixed(after))
        return read + opens + _filled(self.result, fragments.result) + closes

    # Chains of thought.

    @property
    def _missing(self) -> str:
        opened, closed = self.thought_words or ("", "")
        return opened + closed if self.no_thought is None else self.no_thought

    def _trim(self, expression: str, *, left: bool = False) -> str:
        """``expression`` without what ``thought_trim`` names, on both sides or on the left."""
        method = "lstrip" if left else "strip"
        words = {"nothing": "", "lines": f".{method}('\\n')", "space": f".{method}()"}
        return f"({expression}){words[self.thought_trim]}"

    def _read_thought(self) -> str:
        """A thought comes in a field of its own; some clients leave it in the text, between its words."""
        if self.thought_words is None:
            return ""
        opened, closed = (quote(word.strip()) for word in self.thought_words)
        return "\n".join(
            (
                "{%- set thought = '' -%}",
                "{%- if message.reasoning_content is string -%}",
                "{%- set thought = message.reasoning_content -%}",
                f"{{%- elif {closed} in content -%}}",
                f"{{%- set thought = content.split({closed})[0].split({opened})[-1] -%}}",
                f"{{%- set content = {self._trim(f'content.split({closed})[-1]', left=True)} -%}}",
                "{%- endif -%}",
                f"{{%- set thought = {self._trim('thought')} -%}}",
            )
        )

    def _thought(self) -> str:
        """What stands between header and text; begins the answer."""
        opened, closed = self.thought_words or ("", "")
        if self.thought_in_prompt:
            begun = when("enable_thinking", fixed(opened) + ANSWER, ANSWER + fixed(opened))
        else:
            begun = ANSWER + fixed(opened)
        said = begun + person("thought") + fixed(closed)
        shown = "preserve_thinking or loop.index0 > users.last"
        kept = "true" if self.no_thought_within else "loop.last or preserve_thinking"
        # A prompt that has opened the thought is answered by closing it.
        absent_on = fixed(opened) + ANSWER + fixed(closed) if self.thought_in_prompt else ANSWER + fixed(self._missing)
        absent = when("enable_thinking", absent_on, fixed(self._missing) + ANSWER)
        begun = "".join(
            (
                f"{{%- if {shown} -%}}",
                f"{{%- set content = {self._trim('content', left=True)} -%}}",
                when("thought", said, when(kept, absent, ANSWER)),
                "{%- else -%}",
                fixed(self.past_thought),
                ANSWER,
                "{%- endif -%}",
            )
        )
        return when(f"{_BEFORE} == 'tool'", ANSWER, begun) if self.thought_once else begun

    def _prompt(self) -> str:
        header = self._header("turns[-1].role")
        if self.thought_words is None:
            return header
        opened = fixed(self.thought_words[0]) if self.thought_in_prompt else ""
        begun = (
            when("enable_thinking", opened, fixed(self._missing))
            if opened
            else when("not enable_thinking", fixed(self._missing))
        )
        return header + (when("turns[-1].role != 'tool'", begun) if self.thought_once else begun)


def _ends(word: str) -> str:
    return f"(message.content is string and message.content.endswith({quote(word)}))"


def _refusal(problem: str) -> str:
    return f"{{{{- raise_exception({quote(problem)}) -}}}}"


def _filled(slot: str, inner: str) -> str:
    """Jinja that writes ``slot`` with ``inner``, itself Jinja, for its content."""
    before, _, after = slot.partition(CONTENT)
    return _numbered(before) + inner + _numbered(after)


def _held(kind: str, holder: str) -> str:
    """A placeholder, with its number among those of its kind where it says so."""
    counted = f"{{%- set seen.{kind} = seen.{kind} + 1 -%}}" if INDEX in holder else ""
    return counted + f"{{{{- seen.{kind} -}}}}".join(map(fixed, holder.split(INDEX)))


def _numbered(text: str) -> str:
    return "{{- users.count -}}".join(map(fixed, text.split(INDEX)))
