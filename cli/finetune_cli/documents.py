"""Manifests from YAML files, each field with its line, read as kubectl reads them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from finetune_api.base import GROUP
from finetune_api.validation import KINDS

from finetune_cli.errors import CliError
from finetune_cli.scalars import resolve_plain

STDIN = "-"
SUFFIXES = (".yaml", ".yml", ".json")
_PLAIN = "!plain"
_STR, _INT, _FLOAT, _BOOL, _NULL = (f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))
_MERGE_KEY = "<<"
_LAST_PART = re.compile(r"(\.[^.\[]+|\[\d+\])$")


@dataclass(frozen=True)
class Document:
    """One manifest of a file."""

    file: str
    """As the user named it."""
    line: int
    """Its first line, counted from 1."""
    body: dict[str, Any]
    lines: dict[str, int]
    """Line by field, such as ``spec.dataset.sources[0].uri``."""

    @property
    def kind(self) -> str:
        """Kind, for messages too: ``(no kind)`` where there is none."""
        return str(self.body.get("kind") or "(no kind)")

    @property
    def name(self) -> str:
        """metadata.name, for messages too."""
        metadata = self.body.get("metadata")
        return str(metadata.get("name") or "(no name)") if isinstance(metadata, dict) else "(no name)"

    @property
    def is_ours(self) -> bool:
        """Whether it is of a kind of this project, or says so by its apiVersion."""
        return self.kind in KINDS or str(self.body.get("apiVersion", "")).startswith(f"{GROUP}/")

    def line_of(self, field: str) -> int:
        """Line of ``field``; where it is missing, that of the field it should be in."""
        while field:
            if field in self.lines:
                return self.lines[field]
            shorter = _LAST_PART.sub("", field)
            field = "" if shorter == field else shorter
        return self.line


def read_documents(paths: list[str]) -> list[Document]:
    """All documents of files, of the YAML and JSON files of directories, and of standard input (``-``).

    Raises:
        CliError: a file cannot be read, or is not YAML as kubectl takes it; the message has file and line.
    """
    return [document for path in paths for file, text in _texts(path) for document in parse(text, file)]


def _texts(path: str) -> Iterator[tuple[str, str]]:
    if path == STDIN:
        yield "standard input", sys.stdin.read()
        return
    files = [Path(path)]
    if files[0].is_dir():
        files = sorted(file for file in files[0].iterdir() if file.suffix in SUFFIXES)
        if not files:
            raise CliError(f"{path}: no {', '.join(SUFFIXES)} file in this directory")
    for file in files:
        try:
            yield str(file), file.read_text(encoding="utf-8")
        except OSError as error:
            raise CliError(f"{file}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise CliError(f"{file}: not UTF-8 at byte {error.start}") from error


def parse(text: str, file: str) -> list[Document]:
    """The documents in ``text``; empty ones are left out.

    Raises:
        CliError: as :func:`read_documents`.
    """
    found = []
    try:
        for node in yaml.compose_all(text, Loader=_Loader):
            reader = _Reader(file)
            body = reader.value(node, "")
            if body is None:
                continue
            if not isinstance(body, dict):
                raise CliError(f"{file}:{_line(node)}: a manifest must be a map, not {type(body).__name__}")
            found.append(Document(file, _line(node), body, reader.lines))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else file
        raise CliError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise CliError(f"{file}: not valid YAML: {error}") from error
    return found


class _Loader(yaml.SafeLoader):
    """Leaves it to us what an unquoted scalar means."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _STR
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]


class _Reader:
    """Turns nodes into values and remembers lines. Nodes that an alias repeats are read once for each place."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[str, int] = {}
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: str) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise self._error(node, "the alias stands within what it repeats")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            items = []
            for index, item in enumerate(node.value):
                place = f"{path}[{index}]"
                self.lines[place] = _line(item)
                items.append(self.value(item, place))
            return items
        finally:
            self._open.remove(id(node))

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        body: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _PLAIN and key_node.value == _MERGE_KEY:
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            key = self._key(key_node)
            if key in seen:
                raise self._error(key_node, f"{key} is given twice, first in line {seen[key]}; keep one")
            seen[key] = _line(key_node)
            place = f"{path}.{key}" if path else key
            self.lines[place] = _line(key_node)
            body[key] = self.value(value_node, place)
        for source in merged:
            if not isinstance(source, yaml.MappingNode):
                raise self._error(source, "<< takes a map or a list of maps")
            outer = _Reader(self.file)
            outer._open = self._open
            for key, value in outer._mapping(source, path).items():
                body.setdefault(key, value)
            for place, line in outer.lines.items():
                self.lines.setdefault(place, line)
        return body

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key must be a word")
        value = self._scalar(node)
        if isinstance(value, bool):  # as kubectl: the key `on` is "true"
            return str(value).lower()
        return "null" if value is None else str(value)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text: str = node.value
        try:
            if node.tag == _STR:
                return text
            if node.tag == _PLAIN:
                return resolve_plain(text)
            value = resolve_plain(text)
        except ValueError as error:
            raise self._error(node, str(error)) from error
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {_INT: number and isinstance(value, int), _FLOAT: number, _BOOL: isinstance(value, bool)}
        if node.tag not in (*fits, _NULL):
            raise self._error(node, f"the tag {node.tag} is not known to Kubernetes")
        if not fits.get(node.tag, value is None):
            raise self._error(node, f"{text!r} is no {node.tag.rpartition(':')[2]}, as its tag says")
        return value

    def _error(self, node: yaml.Node, message: str) -> CliError:
        return CliError(f"{self.file}:{_line(node)}: {message}")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
