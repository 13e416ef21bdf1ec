"""Holds what is delivered against what was trained: the exported tokenizer must make the very same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from transformers import GenerationConfig

from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import MEDIA_KINDS, Medium, Message, ToolCall
from finetune_trainer.prepared import Prepared
from finetune_trainer.templates import resolve_template
from finetune_trainer.templates.plain import plain_messages, plain_tools
from finetune_trainer.tokenizer import Span, TextEncoder, load_tokenizer

_TOOLS: tuple[dict[str, Any], ...] = (
    {"name": "look_up", "description": "Looks a word up", "parameters": {"type": "object", "properties": {}}},
)
_PLAIN = (
    Message("user", "How are you?"),
    Message("assistant", "Well, thank you."),
    Message("user", "And 你们?"),
    Message("assistant", "We are well too: all 3 of us."),
)
_CALLS = (
    Message("user", "What is a quern?"),
    Message("assistant", "", calls=(ToolCall("look_up", {"word": "quern", "limit": 1}),)),
    Message("tool", '{"found": "a hand mill"}'),
    Message("assistant", "A hand mill."),
)
_SAMPLES: tuple[tuple[tuple[Message, ...], Sequence[dict[str, Any]]], ...] = (
    (_PLAIN, ()),
    ((Message("system", "Be brief."), *_PLAIN), ()),
    ((*_PLAIN[:-1], replace(_PLAIN[-1], thought="They ask of us all.")), ()),
    (_CALLS, _TOOLS),
    *(((Message("user", "").with_pieces(["Is ", Medium(kind, ""), "new?"]), _PLAIN[1]), ()) for kind in MEDIA_KINDS),
)


def check_served(directory: Path, config: TrainerConfig, prepared: Prepared) -> None:
    """Render sample conversations by the tokenizer in ``directory``, as a server does, and hold their tokens against
    those that were trained on. What the template refuses, such as tools, is left out.

    Raises:
        TrainerError: EXPORT_INVALID where they differ, or where serving would not stop at what ends an answer.
    """
    if config.stage == "pt":
        return
    exported = load_tokenizer(directory, trust_remote_code=config.model.trust_remote_code)
    trained = load_tokenizer(prepared.model_directory, trust_remote_code=config.model.trust_remote_code)
    today = config.template.model_copy(update={"date": None})  # as it is where it is served
    template = resolve_template(today, trained, config.chat_template)
    encoder = TextEncoder(trained)
    options: dict[str, Any] = {"default_system": config.template.system, "thinking": config.template.thinking}
    for number, (messages, tools) in enumerate(_SAMPLES):
        asked = messages[:-1]
        try:
            whole = template.renderings(messages, tools, **options)[0]
            prompt = template.prompt(asked, tools, **options)
        except TrainerError:
            if number == 0:
                raise
            continue
        seen = [replace(one, thought=None) if config.template.thinking == "disabled" else one for one in messages]
        texts = (("".join(segment.text for segment in whole), seen, False), (prompt, seen[:-1], True))
        for said, served_messages, is_prompt in texts:
            expected = encoder.encode([Span(said, literal=False)]).ids.tolist()
            served = _served(directory, exported, served_messages, tools, prompt=is_prompt)
            if served != expected:
                raise _differs(directory, trained.decode(expected), exported.decode(served))
    if config.stage != "rm":
        _check_stops(directory, exported, prepared)


def _served(
    directory: Path, exported: Any, messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, prompt: bool
) -> list[int]:
    try:
        ids = exported.apply_chat_template(
            plain_messages(messages), tools=plain_tools(tools), add_generation_prompt=prompt, return_dict=False
        )
    except Exception as error:  # a template is a program; whatever it raises is its refusal
        raise TrainerError(
            ExitCode.EXPORT_INVALID,
            f"{directory}: the exported chat template refuses a conversation that can be trained on: {error}",
        ) from error
    return list(ids)


def _check_stops(directory: Path, exported: Any, prepared: Prepared) -> None:
    ends = GenerationConfig.from_pretrained(directory).eos_token_id
    known = set(ends if isinstance(ends, list) else [ends])
    if missing := set(prepared.stop_token_ids) - known:
        raise TrainerError(
            ExitCode.EXPORT_INVALID,
            f"{directory}: generation_config.json does not stop at {exported.convert_ids_to_tokens(sorted(missing))}, "
            "which ends an answer in training",
        )
    if prepared.replace_eos and exported.eos_token != prepared.eos_token:
        raise TrainerError(
            ExitCode.EXPORT_INVALID,
            f"{directory}: the tokenizer ends at {exported.eos_token}, where training ends an answer at "
            f"{prepared.eos_token}",
        )


def _differs(directory: Path, trained: str, served: str) -> TrainerError:
    shared = min(len(trained), len(served))
    at = next((place for place in range(shared) if trained[place] != served[place]), shared)
    return TrainerError(
        ExitCode.EXPORT_INVALID,
        f"{directory}: the exported tokenizer serves another text than was trained. Trained: "
        f"…{trained[max(0, at - 40) : at + 60]!r}; served: …{served[max(0, at - 40) : at + 60]!r}. "
        "Checkpoints are kept; please report the model and its template",
    )
