"""Columns of media beside a conversation, and the placeholders in its text that they belong to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finetune_trainer.media_rows import FROM_COLUMN, content_of
from finetune_trainer.messages import MEDIA_KINDS, MediaKind, Medium
from finetune_trainer.row_errors import MEDIA, MEDIA_COUNT, invalid
from finetune_trainer.tool_rows import from_json
from finetune_trainer.turns import Turn

COLUMNS: dict[MediaKind, tuple[str, str]] = {
    "image": ("images", "image"),
    "video": ("videos", "video"),
    "audio": ("audios", "audio"),
}
"""Columns of each kind; a row has one of the two."""
PLACEHOLDERS: dict[MediaKind, str] = {kind: f"<{kind}>" for kind in MEDIA_KINDS}


def with_columns(turns: Sequence[Turn], row: dict[str, Any], where: str) -> list[Turn]:
    """``turns`` with what the row's columns hold, at the placeholders in the user's text and at empty parts.

    Raises:
        RowError: MEDIA_COUNT where placeholders and media differ in number.
    """
    columns = {kind: _column(row, kind, where) for kind in MEDIA_KINDS}
    if not any(held for _, held in columns.values()) and not any(turn.message.media for turn in turns):
        return list(turns)
    marked = [kind for kind, (_, held) in columns.items() if held]
    left = {kind: deque(held) for kind, (_, held) in columns.items()}
    asked = dict.fromkeys(MEDIA_KINDS, 0)
    found = []
    for turn in turns:
        if turn.role != "user":
            found.append(turn)
            continue
        pieces: list[str | Medium] = []
        for piece in _split(turn, marked):
            if isinstance(piece, Medium) and piece.content == FROM_COLUMN:
                asked[piece.kind] += 1
                if left[piece.kind]:
                    pieces.append(left[piece.kind].popleft())
            else:
                pieces.append(piece)
        found.append(replace(turn, message=turn.message.with_pieces(pieces)))
    for kind, (column, held) in columns.items():
        if asked[kind] != len(held):
            raise invalid(
                where,
                f"{column!r} has {len(held)} items, and the user's turns have {asked[kind]} placeholders for them: "
                f"write {PLACEHOLDERS[kind]} once for each, where it belongs",
                MEDIA_COUNT,
            )
    return found


def _split(turn: Turn, kinds: Sequence[MediaKind]) -> list[str | Medium]:
    """Text and media of ``turn``, with a medium for each placeholder of ``kinds``."""
    pieces = turn.message.pieces
    for kind in kinds:
        split: list[str | Medium] = []
        for piece in pieces:
            if isinstance(piece, Medium):
                split.append(piece)
                continue
            for number, text in enumerate(piece.split(PLACEHOLDERS[kind])):
                split += [Medium(kind, FROM_COLUMN, turn.place)] if number else []
                split += [text] if text else []
        pieces = split
    return pieces


def _column(row: dict[str, Any], kind: MediaKind, where: str) -> tuple[str, list[Medium]]:
    """Name and items of the row's column of ``kind``."""
    there = [name for name in COLUMNS[kind] if row.get(name) not in (None, "", [], {})]
    if len(there) > 1:
        raise invalid(where, f"has both {there[0]!r} and {there[1]!r}; leave one", MEDIA)
    if not there:
        return COLUMNS[kind][0], []
    name = there[0]
    value = row[name]
    if isinstance(value, str) and value.lstrip().startswith("["):  # a list in a table of text
        value = from_json(value, name, where)
    items = value if isinstance(value, list | tuple) else [value]
    return name, [
        Medium(kind, content_of(kind, item, f"{name}[{number}]", where), f"{name}[{number}]")
        for number, item in enumerate(items)
    ]
