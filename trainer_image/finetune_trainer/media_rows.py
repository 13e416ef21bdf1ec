"""Images, videos and sounds as rows write them: paths, data: URIs, bytes, parts of a message's content."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from finetune_trainer.messages import Content, MediaKind, Medium
from finetune_trainer.row_errors import MEDIA, WRONG_TYPE, invalid

PART_KINDS: dict[str, MediaKind] = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
}
"""Kinds by the type of a part."""
FROM_COLUMN = ""
"""Content of a medium that its row's column holds."""


def part_medium(part: dict[str, Any], place: str, where: str) -> Medium | None:
    """The medium that a part of a message's content is; None where it is of another type.

    Raises:
        RowError: it holds nothing that can be read.
    """
    name = str(part.get("type"))
    kind = PART_KINDS.get(name)
    if kind is None:
        return None
    held = next((part[key] for key in (name, kind, "url", "path", "bytes") if part.get(key) is not None), None)
    if isinstance(held, dict) and "bytes" not in held and "path" not in held:
        held = _unwrapped(held, f"{place}.{name}", where)
    if held is None:
        return Medium(kind, FROM_COLUMN, place)
    return Medium(kind, content_of(kind, held, place, where), place)


def _unwrapped(value: dict[str, Any], place: str, where: str) -> Any:
    """Of ``{"url": …}``, and of ``{"data": base64, "format": …}``, what is in it."""
    if isinstance(value.get("url"), str):
        return value["url"]
    if isinstance(value.get("data"), str):
        return _decoded(value["data"], f"{place}.data", where)
    raise invalid(where, f"{place} has neither 'url' nor 'data'; it has: {', '.join(map(str, value))}", MEDIA)


def content_of(kind: MediaKind, value: Any, place: str, where: str) -> Content:
    """A path, or the file itself, of any of the forms in use; of a video also a list of frames.

    Raises:
        RowError: it is none of these.
    """
    if kind == "video" and isinstance(value, list | tuple) and value:
        return tuple(_file(frame, f"{place}[{number}]", where) for number, frame in enumerate(value))
    return _file(value, place, where)


def _file(value: Any, place: str, where: str) -> str | bytes:
    if isinstance(value, dict) and ("bytes" in value or "path" in value):  # as the library datasets writes them
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    elif isinstance(value, dict):
        value = _unwrapped(value, place, where)
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if not isinstance(value, str) or not value:
        raise invalid(where, f"{place} must be a path, a data: URI or the file's bytes, not {type(value).__name__}",
                      WRONG_TYPE)  # fmt: skip
    if value.startswith("data:"):
        head, comma, body = value.partition(",")
        if not comma or not head.endswith(";base64"):
            raise invalid(where, f"{place} is a data: URI, but no base64 (data:image/png;base64,…)", MEDIA)
        return _decoded(body, place, where)
    if "://" in value[:16]:
        raise invalid(
            where,
            f"{place} is {value[:60]!r}: nothing that a row names is downloaded, since rows may come from anywhere and "
            "the job would ask any address for them; put the files beside the rows, or into them as data: URIs",
            MEDIA,
        )
    return value


def _decoded(text: str, place: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(where, f"{place} is not base64: {error}", MEDIA) from error
