"""Events of what does not get on, read for all who wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from finetune_operator import troubles
from finetune_operator.cluster.errors import ApiError
from finetune_operator.troubles import KEPT_SECONDS, SHARE, Troubles

Body = dict[str, Any]


class Clock:
    """Stands in for the module ``time``."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(troubles, "time", made)
    return made


class Events:
    """A namespace's; counts how often they are read, each of which takes ``seconds``."""

    def __init__(self, clock: Clock, *events: Body, seconds: float = 0.0) -> None:
        self.events, self.reads, self._clock, self._seconds = list(events), 0, clock, seconds
        self.down = False

    async def warnings(self, _namespace: str) -> AsyncIterator[Body]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.down:
            raise ApiError(0, "no answer", what="list events")
        self._clock.seconds += self._seconds
        for event in self.events:
            yield event


def event(uid: str, reason: str = "FailedMount") -> Body:
    return {
        "involvedObject": {"uid": uid},
        "reason": reason,
        "message": f"of {uid}",
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "source": {"component": "kubelet"},
    }


async def test_all_who_wait_share_one_reading(clock: Clock) -> None:
    events = Events(clock, *(event(f"pod-{index}") for index in range(50)))
    shared = Troubles(events)
    told = await asyncio.gather(*(shared.of("team", [f"pod-{index}"]) for index in range(50)))
    assert [[one["message"] for one in each] for each in told] == [[f"of pod-{index}"] for index in range(50)]
    assert events.reads == 1
    await shared.of("others", ["pod-1"])
    assert events.reads == 2


async def test_what_was_read_is_read_anew_after_a_while(clock: Clock) -> None:
    events = Events(clock)
    shared = Troubles(events)
    assert await shared.of("team", ["pod"]) == []
    events.events.append(event("pod"))
    clock.seconds += KEPT_SECONDS - 0.1
    assert await shared.of("team", ["pod"]) == []
    clock.seconds += 0.1
    assert len(await shared.of("team", ["pod"])) == 1


async def test_a_reading_that_takes_long_is_good_for_longer(clock: Clock) -> None:
    events = Events(clock, seconds=6.0)
    shared = Troubles(events)
    await shared.of("team", ["pod"])
    clock.seconds += 6.0 * SHARE - 0.1
    await shared.of("team", ["pod"])
    assert events.reads == 1
    clock.seconds += 0.1
    await shared.of("team", ["pod"])
    assert events.reads == 2


async def test_of_events_only_what_decisions_read_is_kept(clock: Clock) -> None:
    shared = Troubles(Events(clock, event("pod"), event("pod", "BackOff"), {"reason": "FailedMount"}))
    (kept,) = await shared.of("team", ["pod"])
    assert kept == {key: value for key, value in event("pod").items() if key != "source"}


async def test_a_reading_that_fails_is_tried_again_by_the_next(clock: Clock) -> None:
    events = Events(clock, event("pod"))
    shared = Troubles(events)
    events.down = True
    with pytest.raises(ApiError):
        await shared.of("team", ["pod"])
    events.down = False
    assert len(await shared.of("team", ["pod"])) == 1
