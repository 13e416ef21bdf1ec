"""Conditions over a spec that can be evaluated here and written as CEL for the API server: one source, two judges.

A condition looks at the spec as a dict in camelCase, defaults filled in and unset fields left out, which is what the
API server's CEL sees as ``self``. Paths are dotted, relative to the scope a rule belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

Data = dict[str, Any]
Scalar = str | int | float | bool
Given = Callable[[str], bool]
"""Whether the field at a path is there wherever its parent is: the API server demands it or fills it in."""


def nothing(_path: str) -> bool:
    """Of no field is it known that it is there."""
    return False


class Condition(Protocol):
    """Something that holds of a spec or not."""

    def holds(self, data: Data) -> bool:
        """Whether it holds of ``data``."""
        ...

    def cel(self, given: Given = nothing) -> str:
        """The same as a CEL expression over ``self``, which does not ask for fields that are ``given``: each look at a
        field costs the API server some time, at every write."""
        ...


def lookup(data: Data, path: str) -> Any:
    """The value at ``path``, or None where a part of the way is missing."""
    node: Any = data
    for part in path.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node


def _presence(path: str, given: Given) -> list[str]:
    parts = path.split(".")
    ways = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return [f"has(self.{way})" for way in ways if not given(way)]


def _and(parts: list[str]) -> str:
    return f"({' && '.join(parts)})" if parts else "true"


def _literal(value: Scalar) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)


@dataclass(frozen=True)
class Present:
    """The field is set."""

    path: str

    def holds(self, data: Data) -> bool:
        return lookup(data, self.path) is not None

    def cel(self, given: Given = nothing) -> str:
        return _and(_presence(self.path, given))


@dataclass(frozen=True)
class OneOf:
    """The field is set and equals one of the values."""

    path: str
    values: tuple[Scalar, ...]

    def holds(self, data: Data) -> bool:
        return lookup(data, self.path) in self.values

    def cel(self, given: Given = nothing) -> str:
        listed = ", ".join(_literal(v) for v in self.values)
        return _and([*_presence(self.path, given), f"self.{self.path} in [{listed}]"])


@dataclass(frozen=True)
class MoreThan:
    """The number is set and greater than the bound."""

    path: str
    bound: int | float

    def holds(self, data: Data) -> bool:
        value = lookup(data, self.path)
        return value is not None and value > self.bound

    def cel(self, given: Given = nothing) -> str:
        return _and([*_presence(self.path, given), f"self.{self.path} > {_literal(self.bound)}"])


@dataclass(frozen=True)
class NonEmpty:
    """The list, map or string is set and has something in it."""

    path: str

    def holds(self, data: Data) -> bool:
        return bool(lookup(data, self.path))

    def cel(self, given: Given = nothing) -> str:
        return _and([*_presence(self.path, given), f"size(self.{self.path}) > 0"])


@dataclass(frozen=True)
class StartsWith:
    """The string is set and starts with one of the prefixes."""

    path: str
    prefixes: tuple[str, ...]

    def holds(self, data: Data) -> bool:
        return str(lookup(data, self.path) or "").startswith(self.prefixes)

    def cel(self, given: Given = nothing) -> str:
        any_of = " || ".join(f"self.{self.path}.startsWith({_literal(p)})" for p in self.prefixes)
        return _and([*_presence(self.path, given), f"({any_of})"])


@dataclass(frozen=True)
class All:
    """Every part holds."""

    parts: tuple[Condition, ...]

    def holds(self, data: Data) -> bool:
        return all(part.holds(data) for part in self.parts)

    def cel(self, given: Given = nothing) -> str:
        return "(" + " && ".join(part.cel(given) for part in self.parts) + ")"


@dataclass(frozen=True)
class AnyOf:
    """At least one part holds."""

    parts: tuple[Condition, ...]

    def holds(self, data: Data) -> bool:
        return any(part.holds(data) for part in self.parts)

    def cel(self, given: Given = nothing) -> str:
        return "(" + " || ".join(part.cel(given) for part in self.parts) + ")"


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Condition

    def holds(self, data: Data) -> bool:
        return not self.part.holds(data)

    def cel(self, given: Given = nothing) -> str:
        return f"!{self.part.cel(given)}"


@dataclass(frozen=True)
class Custom:
    """Arithmetic that the small conditions cannot say: both forms by hand, held together by the equality test."""

    python: Callable[[Data], bool]
    expression: str

    def holds(self, data: Data) -> bool:
        return self.python(data)

    def cel(self, given: Given = nothing) -> str:  # noqa: ARG002 - it says what it asks for
        return f"({self.expression})"


def both(*parts: Condition) -> All:
    """All of ``parts``."""
    return All(parts)


def either(*parts: Condition) -> AnyOf:
    """Any of ``parts``."""
    return AnyOf(parts)
