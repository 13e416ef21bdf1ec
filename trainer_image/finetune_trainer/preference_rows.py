"""Rows of the preference stages: a prompt with a better and a worse answer, or one answer that is good or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.trainer_config import ResolvedSource

from finetune_trainer.messages import Message
from finetune_trainer.rows import checked, invalid, question_in, read_rows, text_in, turns_in

Row = dict[str, Any]
_PROMPTS = ("prompt", "conversations", "instruction", "messages")
"""Fields that a row's prompt may be in; the first that is there counts."""


@dataclass(frozen=True)
class Pair:
    """Two conversations that differ in their last turn alone."""

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    where: str
    """File and row, for a person."""
    tools: tuple[dict[str, Any], ...] = ()
    """As a conversation's."""


@dataclass(frozen=True)
class Rated:
    """A conversation, and whether its last turn is a good answer."""

    messages: tuple[Message, ...]
    desirable: bool
    where: str
    """File and row, for a person."""
    tools: tuple[dict[str, Any], ...] = ()
    """As a conversation's."""


def read_pairs(source: ResolvedSource, file: Path) -> Iterator[Pair]:
    """Stream the pairs of one file: sharegpt's, alpaca's or a list's prompt, with ``chosen`` and ``rejected``.

    Raises:
        TrainerError: DATASET_INVALID, naming file, row and field.
    """
    for where, row in read_rows(source, file):
        for field in ("chosen", "rejected"):
            if row.get(field) is None:
                raise invalid(where, f"has no {field!r}; its fields are: {', '.join(map(str, row)) or 'none'}")
        prompt = _prompt(row, where) or _shared_prompt(row, where)
        chosen, rejected = (
            checked([*prompt, _answer(row, name, prompt, where)], where) for name in ("chosen", "rejected")
        )
        yield Pair(chosen, rejected, where)


def read_rated(source: ResolvedSource, file: Path) -> Iterator[Rated]:
    """Stream the labelled answers of one file: a conversation or a prompt with its answer, and ``label``.

    Raises:
        TrainerError: DATASET_INVALID, naming file, row and field.
    """
    for where, row in read_rows(source, file):
        yield Rated(checked(_conversation(row, where), where), _label(row, where), where)


def _label(row: Row, where: str) -> bool:
    field = next((name for name in ("label", "kto_tag") if name in row), None)
    if field is None:
        raise invalid(where, f"has no 'label' (or 'kto_tag'); its fields are: {', '.join(map(str, row)) or 'none'}")
    value = row[field]
    if not isinstance(value, bool):
        raise invalid(where, f"{field!r} must be true or false, not {value!r}")
    return value


def _conversation(row: Row, where: str) -> list[Message]:
    for field in () if "completion" in row else ("conversations", "messages"):
        if field in row:
            return _with_system(row, _turns(row, field, where), where)
    if "instruction" in row:
        question = question_in(row, where)
        return [*question, Message("assistant", text_in(row, "output", where, required=True))]
    prompt = _prompt(row, where)
    if prompt is None:
        known = ", ".join(map(str, row)) or "none"
        raise invalid(where, "has no conversation: one of 'messages', 'conversations', 'instruction' with 'output', "
                      f"and 'prompt' with 'completion'; its fields are: {known}")  # fmt: skip
    return [*prompt, _answer(row, "completion", prompt, where)]


def _prompt(row: Row, where: str) -> list[Message] | None:
    """What is before the answers; None where the row does not say it apart."""
    field = next((name for name in _PROMPTS if name in row), None)
    if field is None:
        return None
    if field == "instruction":
        return question_in(row, where)
    if isinstance(row[field], str):
        turns = [Message("user", text_in(row, field, where, required=True))]
    else:
        turns = _turns(row, field, where)
    if not turns or turns[-1].role != "user":
        raise invalid(where, f"{field!r} must end with the user's turn that the answers are to")
    return _with_system(row, turns, where)


def _shared_prompt(row: Row, where: str) -> list[Message]:
    """The turns with which ``chosen`` and ``rejected`` both begin."""
    if not (isinstance(row["chosen"], list) and isinstance(row["rejected"], list)):
        raise invalid(where, f"has no prompt: one of {', '.join(map(repr, _PROMPTS))}, or 'chosen' and 'rejected' as "
                      "lists of turns that begin with it")  # fmt: skip
    chosen, rejected = _turns(row, "chosen", where), _turns(row, "rejected", where)
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    if shared == 0:
        raise invalid(
            where, "'chosen' and 'rejected' begin with different turns, so there is no prompt that both answer"
        )
    return _with_system(row, chosen[:shared], where)


def _with_system(row: Row, turns: list[Message], where: str) -> list[Message]:
    system = text_in(row, "system", where, required=False)
    return [Message("system", system), *turns] if system else turns


def _answer(row: Row, field: str, prompt: list[Message], where: str) -> Message:
    """The answer in ``field``: text, a turn, a list of one turn, or the whole conversation, prompt and all."""
    value = row.get(field)
    if value is None or isinstance(value, str):
        return Message("assistant", text_in(row, field, where, required=True))
    turns = _turns(row if isinstance(value, list) else {field: [value]}, field, where)
    bare = prompt[1:] if prompt[0].role == "system" else prompt
    for before in (prompt, bare):
        if turns[: len(before)] == before:
            turns = turns[len(before) :]
            break
    if len(turns) != 1 or turns[0].role != "assistant":
        raise invalid(where, f"{field!r} must be one turn of the assistant behind the prompt, not "
                      f"{', '.join(turn.role for turn in turns) or 'none'}")  # fmt: skip
    return turns[0]


def _turns(row: Row, field: str, where: str) -> list[Message]:
    """Turns of role/content or of from/value: both are in use for preferences."""
    turns = row[field]
    first = turns[0] if isinstance(turns, list) and turns else None
    keys = ("from", "value") if isinstance(first, dict) and "from" in first else ("role", "content")
    return turns_in(row, field, *keys, where)
