"""RFC 3339 times, as Kubernetes writes them, and durations as people read them."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(moment: datetime) -> str:
    """``2026-01-31T12:00:00Z``, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(text: str | None) -> datetime | None:
    """The moment that ``text`` names; None for None.

    Raises:
        ValueError: the text is no RFC 3339 time.
    """
    return None if text is None else datetime.fromisoformat(text).astimezone(UTC)


def spoken(seconds: float) -> str:
    """``45s``, ``1m20s``, ``2h05m``, ``3d04h``."""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
