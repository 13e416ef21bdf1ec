"""A conversation as every format is read and every template writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

MediaKind = Literal["image", "video", "audio"]
Content = str | bytes | tuple[str | bytes, ...]
"""Path as the row has it, or the file itself; of a video also its frames, each one of these."""
MEDIA_KINDS: tuple[MediaKind, ...] = ("image", "video", "audio")


@dataclass(frozen=True)
class ToolCall:
    """A function that the assistant wants called. ``arguments`` is a JSON object."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Medium:
    """An image, video or sound in a message."""

    kind: MediaKind
    content: Content
    place: str = field(default="", compare=False)
    """Its field in the row, for a person."""
    at: int = 0
    """Characters of the message's text before it."""
    text: str = field(default="", compare=False)
    """What stands for it in the model's text, once it has been read."""
    digest: bytes = field(default=b"", compare=False)
    """SHA-256 of the file, once it has been read."""
    source: int = field(default=0, compare=False)
    """Number of the data set that it is of."""


@dataclass(frozen=True)
class Message:
    """One turn. ``role`` is system, user, assistant, or tool for what a called function gave back."""

    role: str
    content: str
    thought: str | None = None
    """The assistant's chain of thought, without the words that set it off; None where there is none."""
    calls: tuple[ToolCall, ...] = ()
    """What the assistant wants called, after its text."""
    media: tuple[Medium, ...] = ()
    """What stands in the text, in its order."""

    @property
    def pieces(self) -> list[str | Medium]:
        """Text and media as they follow one another; no text is empty."""
        found: list[str | Medium] = []
        start = 0
        for medium in self.media:
            found += [self.content[start : medium.at], medium]
            start = medium.at
        return [piece for piece in [*found, self.content[start:]] if piece != ""]

    def with_pieces(self, pieces: Sequence[str | Medium]) -> Message:
        """The same message with other text and media."""
        text, media = "", []
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
            else:
                media.append(replace(piece, at=len(text)))
        return replace(self, content=text, media=tuple(media))


@dataclass(frozen=True)
class Conversation:
    """A sample before templating: an optional system message, then user and assistant in turn, assistant last. Behind
    an answer that calls tools come their results, each a message of its own, and then the assistant again."""

    messages: tuple[Message, ...]
    where: str
    """File and row, for a person: ``rows.jsonl:17``."""
    tools: tuple[dict[str, Any], ...] = ()
    """Functions that may be called, each as ``{"name": …, "description": …, "parameters": JSON schema}``."""
