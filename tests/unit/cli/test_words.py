"""Numbers and times for people."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from finetune_cli import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (-1, "0s"), (59.4, "59s"), (60, "1m"), (80, "1m20s"), (7500, "2h5m"), (3600, "1h"), (360000, "4d4h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(None, "-"), (0, "0 B"), (1536, "1.5 KiB"), (5 * 2**50, "5120.0 TiB")])
def test_sizes(count: float | None, text: str) -> None:
    assert words.size(count) == text


def test_numbers() -> None:
    assert [words.number(n) for n in (None, 134515008, 0.25)] == ["-", "134,515,008", "0.250"]
    assert [words.loss(n) for n in (None, 2.5)] == ["-", "2.5000"]


def test_an_age_is_counted_from_any_rfc3339_time() -> None:
    now = datetime(2026, 1, 1, 2, 5, tzinfo=UTC)
    assert words.age("2026-01-01T00:00:00Z", now) == "2h5m"
    assert words.age("2026-01-01T01:00:00+01:00", now) == "2h5m"
    assert words.age("yesterday", now) == words.age(None, now) == "-"
