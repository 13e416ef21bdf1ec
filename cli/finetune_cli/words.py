"""Numbers and times as a person reads them."""

from __future__ import annotations

from datetime import UTC, datetime


def duration(seconds: float | None) -> str:
    """``42s``, ``1m20s``, ``2h5m``, ``3d4h``; a dash where it is not known."""
    if seconds is None:
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if hours else f"{days}d"


def size(count: float | None) -> str:
    """Bytes in binary units: ``3.2 GiB``."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def number(count: float | None) -> str:
    """With thousands separated: ``134,515,008``; up to three digits behind the point."""
    if count is None:
        return "-"
    return f"{count:,.0f}" if float(count).is_integer() else f"{count:,.3f}"


def loss(value: float | None) -> str:
    """A loss with four digits."""
    return "-" if value is None else f"{value:.4f}"


def parse_time(text: str | None) -> datetime | None:
    """An RFC 3339 time; None for none or for something else."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def age(text: str | None, now: datetime) -> str:
    """Time since ``text``."""
    then = parse_time(text)
    return duration((now - then).total_seconds()) if then else "-"
