"""The client of the API server: whose clock counts, and who may write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_operator.cluster.client import ApiClient, Fenced, ServerClock
from finetune_operator.leadership import LeadershipLostError


def heard(clock: ServerClock, ahead: float, took: float = 0.01) -> None:
    """An answer of a server whose clock is ``ahead`` seconds ahead of ours."""
    asked = datetime.now(UTC)
    answered = asked + timedelta(seconds=took)
    there = asked + timedelta(seconds=took / 2 + ahead)
    clock.heard(format_datetime(there.replace(microsecond=0), usegmt=True), asked, answered)


def ahead(clock: ServerClock) -> float:
    return (clock.now() - datetime.now(UTC)).total_seconds()


@pytest.mark.parametrize("minutes", [-5, 5])
def test_the_api_servers_clock_counts_where_ours_is_wrong(minutes: int) -> None:
    clock = ServerClock()
    heard(clock, minutes * 60)
    assert ahead(clock) == pytest.approx(minutes * 60, abs=1)
    heard(clock, 0)
    assert ahead(clock) == pytest.approx(0, abs=0.1), "somebody set it right"


def test_a_clock_that_is_right_is_left_alone_however_slow_the_answer() -> None:
    clock = ServerClock()
    for offset in (-1.4, -0.3, 0, 0.7, 1.4):
        heard(clock, offset)
        heard(clock, 0, took=15)
    assert ahead(clock) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_an_answer_without_a_date_says_nothing(date: str | None) -> None:
    clock = ServerClock()
    clock.heard(date, datetime.now(UTC), datetime.now(UTC))
    assert ahead(clock) == pytest.approx(0, abs=0.01)


async def test_who_may_not_write_still_reads() -> None:
    asked: list[str] = []

    async def request(method: str, path: str, **_: Any) -> dict[str, Any]:
        asked.append(f"{method} {path}")
        return {"items": [{}]}

    may = True

    def check() -> None:
        if not may:
            raise LeadershipLostError

    moment = datetime(2026, 1, 31, tzinfo=UTC)
    whole: Any = SimpleNamespace(request=request, now=lambda: moment)
    fenced: ApiClient = Fenced(whole, check)
    await fenced.request("PATCH", "/a")
    may = False
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        with pytest.raises(LeadershipLostError):
            await fenced.request(method, "/b")
    assert await fenced.list_all("/c") == [{}]
    assert asked == ["PATCH /a", "GET /c"]
    assert fenced.now() == moment
