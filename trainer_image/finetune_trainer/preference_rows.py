"""Rows of the preference stages: a prompt with a better and a worse answer, or one answer that is good or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api.trainer_config import ResolvedSource

from finetune_trainer.messages import Message
from finetune_trainer.row_errors import MEDIA, MISSING, ORDER, WRONG_TYPE, invalid
from finetune_trainer.row_files import RawRow
from finetune_trainer.rows import Row, answer_in, question_in, row_of, system_in, text_in
from finetune_trainer.tool_rows import tools_in
from finetune_trainer.turns import Turn, answer, checked, turns_in

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


def pair_of(source: ResolvedSource, raw: RawRow) -> Pair:
    """The pair in a row: sharegpt's, alpaca's or a list's prompt, with ``chosen`` and ``rejected``.

    Raises:
        RowError: naming file, row and field.
    """
    row, where = row_of(source, raw), raw.where
    for field in ("chosen", "rejected"):
        if row.get(field) is None:
            known = ", ".join(map(str, row)) or "none"
            raise invalid(where, f"has no {field!r}; its fields are: {known}", MISSING)
    prompt = _prompt(row, where) or _shared_prompt(row, where)
    chosen, rejected = (checked([*prompt, _answer(row, name, prompt, where)], where) for name in ("chosen", "rejected"))
    return Pair(chosen, rejected, where, tools_in(row, where))


def rated_of(source: ResolvedSource, raw: RawRow) -> Rated:
    """The labelled answer in a row: a conversation or a prompt with its answer, and ``label``.

    Raises:
        RowError: naming file, row and field.
    """
    row, where = row_of(source, raw), raw.where
    return Rated(checked(_conversation(row, where), where), _label(row, where), where, tools_in(row, where))


def _label(row: Row, where: str) -> bool:
    field = next((name for name in ("label", "kto_tag") if name in row), None)
    if field is None:
        known = ", ".join(map(str, row)) or "none"
        raise invalid(where, f"has no 'label' (or 'kto_tag'); its fields are: {known}", MISSING)
    value = row[field]
    if isinstance(value, str):  # of a table of text
        value = {"true": True, "false": False}.get(value.strip().lower(), value)
    if not isinstance(value, bool):
        raise invalid(where, f"{field!r} must be true or false, not {value!r}", WRONG_TYPE)
    return value


def _conversation(row: Row, where: str) -> list[Turn]:
    for field in () if "completion" in row else ("conversations", "messages"):
        if field in row:
            return [*system_in(row, where), *_turns(row, field, where)]
    if "instruction" in row:
        return [*question_in(row, where), answer_in(row, "output", where)]
    prompt = _prompt(row, where)
    if prompt is None:
        known = ", ".join(map(str, row)) or "none"
        raise invalid(where, "has no conversation: one of 'messages', 'conversations', 'instruction' with 'output', "
                      f"and 'prompt' with 'completion'; its fields are: {known}", MISSING)  # fmt: skip
    return [*prompt, _answer(row, "completion", prompt, where)]


def _prompt(row: Row, where: str) -> list[Turn] | None:
    """What is before the answers; None where the row does not say it apart."""
    field = next((name for name in _PROMPTS if name in row), None)
    if field is None:
        return None
    if field == "instruction":
        return question_in(row, where)
    if isinstance(row[field], str):
        turns = [Turn(Message("user", text_in(row, field, where, required=True)), repr(field))]
    else:
        turns = _turns(row, field, where)
    if not turns or turns[-1].role != "user":
        raise invalid(where, f"{field!r} must end with the user's turn that the answers are to", ORDER)
    return [*system_in(row, where), *turns]


def _shared_prompt(row: Row, where: str) -> list[Turn]:
    """The turns with which ``chosen`` and ``rejected`` both begin."""
    if not (isinstance(row["chosen"], list) and isinstance(row["rejected"], list)):
        raise invalid(where, f"has no prompt: one of {', '.join(map(repr, _PROMPTS))}, or 'chosen' and 'rejected' as "
                      "lists of turns that begin with it", MISSING)  # fmt: skip
    chosen, rejected = _turns(row, "chosen", where), _turns(row, "rejected", where)
    shared = 0
    for one, other in zip(chosen[:-1], rejected[:-1], strict=False):
        if one != other:
            break
        shared += 1
    if shared == 0:
        raise invalid(
            where, "'chosen' and 'rejected' begin with different turns, so there is no prompt that both answer", ORDER
        )
    return [*system_in(row, where), *chosen[:shared]]


def _answer(row: Row, field: str, prompt: list[Turn], where: str) -> Turn:
    """The answer in ``field``: text, a turn, a list of one turn, or the whole conversation, prompt and all."""
    value = row.get(field)
    if value is None or isinstance(value, str):
        text = text_in(row, field, where, required=True)
        return Turn(answer(text, None, repr(field), where), repr(field))
    turns = _turns(row if isinstance(value, list) else {field: [value]}, field, where)
    bare = prompt[1:] if prompt[0].role == "system" else prompt
    for before in (prompt, bare):
        if turns[: len(before)] == before:
            turns = turns[len(before) :]
            break
    if len(turns) != 1 or turns[0].role != "assistant":
        raise invalid(where, f"{field!r} must be one turn of the assistant behind the prompt, not "
                      f"{', '.join(turn.role for turn in turns) or 'none'}", ORDER)  # fmt: skip
    return turns[0]


def _turns(row: Row, field: str, where: str) -> list[Turn]:
    """Turns of role/content or of from/value: both are in use for preferences."""
    turns = row[field]
    first = turns[0] if isinstance(turns, list) and turns else None
    keys = ("from", "value") if isinstance(first, dict) and "from" in first else ("role", "content")
    found = turns_in(row, field, *keys, where)
    for turn in found:
        if turn.message.media:
            medium = turn.message.media[0]
            raise invalid(
                where, f"{medium.place} is of type {medium.kind!r}; preferences are between texts alone", MEDIA
            )
    return found
