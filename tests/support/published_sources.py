"""Where each family's published format is found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """A template by its package and name there, and the special tokens that its model's tokenizer puts in."""

    package: str
    name: str
    bos: str = ""
    eos: str = ""


SOURCES: dict[str, tuple[Source, ...]] = {}
