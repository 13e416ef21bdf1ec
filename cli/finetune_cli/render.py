"""``finetune render``: a conversation as it is trained and served, text and mask, by the trainer's own templates."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from finetune_api.chat_template import ChatTemplate, ChatTemplateSpec
from finetune_api.training import TemplateSpec
from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import Message
from finetune_trainer.templates import Segment, Template, find_declared, resolve_template
from finetune_trainer.templates.own_tokens import needs_tokenizer
from finetune_trainer.templates.template import Thinking
from rich.text import Text

from finetune_cli.console import note, out
from finetune_cli.conversation_file import read_conversation, read_tools
from finetune_cli.documents import read_documents
from finetune_cli.errors import CliError
from finetune_cli.validate import report

_TRAINED = "bold green"


@dataclass(frozen=True)
class _Shown:
    """One text that the trainer would make."""

    segments: list[Segment]
    tokens: list[dict[str, Any]] | None
    """Id, text and whether it is trained; None without a tokenizer."""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(segment.text for segment in self.segments)

    def facts(self) -> dict[str, Any]:
        """As JSON: neighbours that are trained alike are one segment."""
        merged: list[dict[str, Any]] = []
        for segment in self.segments:
            if merged and merged[-1]["trained"] == segment.trained:
                merged[-1]["text"] += segment.text
            else:
                merged.append({"text": segment.text, "trained": segment.trained})
        tokens = {} if self.tokens is None else {"tokens": self.tokens}
        return {"text": self.text, "segments": merged, **tokens}


def render(
    messages: str,
    *,
    template: str,
    tools: str | None,
    tokenizer: Path | None,
    system: str | None,
    thinking: Thinking,
    generation_prompt: bool,
    as_json: bool,
) -> None:
    """Print the text of a conversation, its trained part in colour.

    Raises:
        CliError: a file cannot be read, or the template cannot hold the conversation.
    """
    conversation, listed = read_conversation(messages)
    if tools is not None:
        listed = read_tools(tools)
    loaded = None if tokenizer is None else _load(tokenizer)
    try:
        spec = TemplateSpec(name=template, system=system, thinking=thinking)
        found = _find(template, spec, loaded)
        shown = _render(found, spec, conversation, listed, loaded, generation_prompt=generation_prompt)
    except TrainerError as error:
        raise CliError(str(error)) from error
    if as_json:
        first, *others = (one.facts() for one in shown)
        typer.echo(json.dumps(first | ({"further": others} if others else {}), ensure_ascii=False, indent=2))
        return
    for number, one in enumerate(shown):
        if number:
            note("an earlier answer that the whole conversation shows otherwise is trained by itself:")
        _print(one)


def _find(name: str, spec: TemplateSpec, tokenizer: Any) -> Template:
    custom = None
    if Path(name).suffix in (".yaml", ".yml", ".json"):
        spec, custom = _read_own(name, spec)
    if tokenizer is not None:
        return resolve_template(spec, tokenizer, custom)
    declared = find_declared(spec, custom)
    if declared is None:
        raise CliError("auto is the tokenizer's own template: say where the tokenizer is with --tokenizer")
    if needs_tokenizer(declared):
        raise CliError(f"{declared.name} holds the model's own tokens: say where its tokenizer is with --tokenizer")
    return declared


def _read_own(file: str, spec: TemplateSpec) -> tuple[TemplateSpec, ChatTemplateSpec]:
    found = [document for document in read_documents([file]) if document.kind == "ChatTemplate"]
    if len(found) != 1:
        raise CliError(f"{file} must hold one ChatTemplate, not {len(found)}")
    if report(found[0], local=True, quiet=True):
        raise CliError(f"{file} would be refused for what is said above; correct it first")
    own = ChatTemplate.model_validate(found[0].body)
    return spec.model_copy(update={"ref": own.metadata.name}), own.spec


def _load(directory: Path) -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise CliError("--tokenizer needs the trainer's libraries, and transformers is not installed: "
                       "pip install 'finetune-operator[trainer]'")  # fmt: skip
    from finetune_trainer.tokenizer import load_tokenizer  # noqa: PLC0415 - it takes seconds

    try:
        return load_tokenizer(directory, trust_remote_code=False)
    except TrainerError as error:
        raise CliError(str(error).removeprefix("spec.model.source: ")) from error


def _render(
    template: Template,
    spec: TemplateSpec,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]],
    tokenizer: Any,
    *,
    generation_prompt: bool,
) -> list[_Shown]:
    options: dict[str, Any] = {"default_system": spec.system, "thinking": spec.thinking}
    if generation_prompt:
        found = [[Segment(template.prompt(messages, tools, **options), literal=False, turn=0)]]
    elif messages[-1].role == "assistant":
        found = template.renderings(messages, tools, **options)
    else:
        found = [template.segments(messages, tools, **options)]
    return [_Shown(segments, None if tokenizer is None else _tokens(segments, tokenizer)) for segments in found]


def _tokens(segments: list[Segment], tokenizer: Any) -> list[dict[str, Any]]:
    from finetune_trainer.tokenizer import Span, SpecialTokenInTextError, TextEncoder  # noqa: PLC0415 - as above

    try:
        encoded = TextEncoder(tokenizer).encode([Span(segment.text, segment.literal) for segment in segments])
    except SpecialTokenInTextError as error:
        raise CliError("a message holds the text of a special token, which this tokenizer cannot take for text; the "
                       "trainer would leave the row out") from error  # fmt: skip
    pairs = zip(encoded.ids.tolist(), encoded.spans.tolist(), strict=True)
    return [
        # Nothing comes before the first that could predict it.
        {"id": token, "text": tokenizer.decode([token]), "trained": number > 0 and segments[span].trained}
        for number, (token, span) in enumerate(pairs)
    ]


def _print(shown: _Shown) -> None:
    if out.is_terminal:
        pieces = [(segment.text, _TRAINED if segment.trained else "") for segment in shown.segments]
        out.print(Text.assemble(*pieces), end="" if shown.text.endswith("\n") else "\n")
    else:
        typer.echo(shown.text, nl=False)
    if shown.tokens is not None:
        listed = Text("\n")
        for token in shown.tokens:
            listed.append(f"{token['id']}", style=_TRAINED if token["trained"] else "dim")
            listed.append(f" {token['text']!r}  ", style=_TRAINED if token["trained"] else "")
        out.print(listed)
        trained = sum(token["trained"] for token in shown.tokens)
        note(f"{len(shown.tokens)} tokens, {trained} trained")
