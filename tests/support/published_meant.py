"""Where a family is meant to differ from what is published, and why."""

from __future__ import annotations

MEANT: dict[tuple[str, str], dict[str, str]] = {}
"""By family and name of the source: the reason by a pattern for the names of the cases, all of which must differ."""
