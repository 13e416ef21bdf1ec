"""Of several operators one acts at a time, whatever befalls it, the API server or the clocks."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from finetune_operator.cluster.errors import CONFLICT, NOT_FOUND, ApiError
from finetune_operator.core.leases import ADDRESS_ANNOTATION, Candidate
from finetune_operator.leadership import Leadership, LeadershipLostError
from virtual_time import VirtualLoop, run_virtually

Body = dict[str, Any]
BEGINNING = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECONDS = 10
RETRY = SECONDS / 5
WITHIN = 20.0
"""Seconds in which somebody must act again."""


def time() -> float:
    return asyncio.get_running_loop().time()


class ApiServer:
    """Keeps one Lease, with optimistic locking; may be down, slow, or do what is asked and not answer."""

    def __init__(self) -> None:
        self.lease_body: Body | None = None
        self.writes = 0
        self.down = False
        self.seconds = 0.01
        self.unanswered = 0
        self.versions = 0

    async def _call(self) -> None:
        await asyncio.sleep(self.seconds)
        if self.down:
            raise ApiError(0, "connection refused", what="a call")

    async def lease(self, namespace: str, name: str) -> Body | None:
        assert (namespace, name) == ("system", "tuner")
        await self._call()
        return copy.deepcopy(self.lease_body)

    async def create(self, body: Body) -> Body:
        await self._call()
        if self.lease_body is not None:
            raise ApiError(CONFLICT, "already exists", what="create")
        return await self._keep(body)

    async def replace(self, body: Body) -> Body:
        await self._call()
        if self.lease_body is None:
            raise ApiError(NOT_FOUND, "not found", what="replace")
        if body["metadata"].get("resourceVersion") != self.lease_body["metadata"]["resourceVersion"]:
            raise ApiError(CONFLICT, "the object has been modified", what="replace")
        return await self._keep(body)

    async def _keep(self, body: Body) -> Body:
        self.writes += 1
        self.versions += 1
        self.lease_body = copy.deepcopy(body)
        self.lease_body["metadata"]["resourceVersion"] = str(self.versions)
        if self.unanswered:
            self.unanswered -= 1
            await asyncio.sleep(3600)
        return copy.deepcopy(self.lease_body)

    @property
    def spec(self) -> Body:
        assert self.lease_body is not None
        spec: Body = self.lease_body["spec"]
        return spec


class Operators:
    """Candidates that act as soon as they may; at no time more than one."""

    def __init__(self, server: ApiServer | None = None) -> None:
        self.server = server or ApiServer()
        self.each: dict[str, Leadership] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ended: dict[str, str] = {}

    def start(self, name: str, *, skew: timedelta = timedelta(0), server: Any = None, seconds: int = SECONDS) -> None:
        """A process with a clock that is ``skew`` off."""
        loop = asyncio.get_running_loop()
        self.each[name] = Leadership(
            server or self.server,
            Candidate(name, seconds, f"{name}:8443"),
            namespace="system",
            name="tuner",
            clock=lambda: BEGINNING + timedelta(seconds=loop.time()) + skew,
        )
        self.tasks[name] = asyncio.create_task(self._live(name))

    async def _live(self, name: str) -> None:
        leadership = self.each[name]
        await leadership.acquire()
        try:
            await leadership.keep()
        except LeadershipLostError as error:
            self.ended[name] = str(error)

    async def kill(self, name: str) -> None:
        """SIGKILL: it says nothing to anybody."""
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)
        del self.each[name]

    async def stop(self, name: str) -> None:
        """SIGTERM."""
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)
        await self.each[name].give_up()
        del self.each[name]

    @property
    def acting(self) -> list[str]:
        found = [name for name, leadership in self.each.items() if leadership.leads]
        assert len(found) <= 1, f"two act at {time():.2f} s: {found}"
        return found

    async def until(self, holds: Callable[[], bool], seconds: float = WITHIN) -> float:
        """Seconds until ``holds``, in small steps, at each of which no two act."""
        begun = time()
        while not holds():
            assert time() - begun < seconds, f"not within {seconds:.0f} s"
            self.acting  # noqa: B018 - asserts
            await asyncio.sleep(0.05)
        return time() - begun

    async def pass_by(self, seconds: float) -> None:
        """Let time go, and see that no two act."""
        end = time() + seconds
        while time() < end:
            self.acting  # noqa: B018 - asserts
            await asyncio.sleep(0.05)


@asynccontextmanager
async def operators(*names: str) -> AsyncIterator[Operators]:
    """Some, of which one acts."""
    made = Operators()
    for name in names:
        made.start(name)
    await made.until(lambda: len(made.acting) == 1)
    yield made
    for name in list(made.each):
        await made.kill(name)


def other(made: Operators) -> str:
    (name,) = set(made.each) - set(made.acting)
    return name


def test_one_of_two_acts_and_goes_on_to() -> None:
    async def scene() -> None:
        async with operators("a", "b") as made:
            (first,) = made.acting
            await made.pass_by(300)
            assert made.acting == [first]
            assert made.server.spec["holderIdentity"] == first
            assert made.server.spec["leaseTransitions"] == 0
            assert made.server.spec["acquireTime"] < made.server.spec["renewTime"]
            assert 300 / RETRY * 0.9 < made.server.writes < 300 / RETRY * 1.1

    run_virtually(scene())


def test_when_the_one_that_acts_is_killed_another_does_within_twenty_seconds() -> None:
    async def scene() -> None:
        took = []
        for moment in range(20):  # at any time between two renewals
            async with operators("a", "b") as made:
                await made.pass_by(7 + moment / 10)
                (first,), second = made.acting, other(made)
                await made.kill(first)
                took.append(await made.until(lambda made=made, second=second: made.acting == [second]))
                assert made.server.spec["leaseTransitions"] == 1
        assert min(took) > SECONDS - RETRY - 1, "not before the promise is over"
        assert max(took) < 1.15 * SECONDS, (
            "which leaves three of twenty seconds for a start, where the promise is of 15"
        )

    run_virtually(scene())


def test_one_that_stops_gives_the_lease_up_at_once() -> None:
    async def scene() -> None:
        async with operators("a", "b") as made:
            (first,), second = made.acting, other(made)
            await made.stop(first)
            assert made.server.spec["holderIdentity"] == ""
            assert await made.until(lambda: made.acting == [second]) < RETRY * 1.2

    run_virtually(scene())


def test_one_that_stopped_while_its_last_write_had_no_answer_gives_the_lease_up() -> None:
    async def scene() -> None:
        async with operators("a") as made:
            made.server.unanswered = 1
            await made.until(lambda: made.server.unanswered == 0)
            await made.stop("a")
            assert made.server.spec["holderIdentity"] == ""
            assert ADDRESS_ANNOTATION not in (made.server.lease_body or {})["metadata"]["annotations"]

    run_virtually(scene())


def test_one_that_only_stood_by_takes_nothing_from_the_other_as_it_stops() -> None:
    async def scene() -> None:
        async with operators("a", "b") as made:
            (first,) = made.acting
            await made.stop(other(made))
            assert made.server.spec["holderIdentity"] == first

    run_virtually(scene())


def test_a_container_that_starts_again_in_its_pod_acts_at_once() -> None:
    async def scene() -> None:
        async with operators("a") as made:
            await made.kill("a")
            made.start("a")
            assert await made.until(lambda: made.acting == ["a"]) < 1
            assert made.server.spec["leaseTransitions"] == 0

    run_virtually(scene())


@pytest.mark.parametrize("minutes", [-5, 5])
def test_clocks_that_are_minutes_apart_make_no_two_leaders(minutes: int) -> None:
    """And no wait: what counts is how long one sees the Lease unchanged, by its own clock."""

    async def scene() -> None:
        made = Operators()
        made.start("a")
        await made.until(lambda: made.acting == ["a"])
        made.start("b", skew=timedelta(minutes=minutes))
        await made.pass_by(120)
        assert made.acting == ["a"]
        await made.kill("a")
        assert await made.until(lambda: made.acting == ["b"]) < SECONDS + 2 * RETRY + 1
        await made.kill("b")

    run_virtually(scene())


def test_an_api_server_that_is_down_for_a_moment_changes_nothing() -> None:
    async def scene() -> None:
        async with operators("a", "b") as made:
            (first,) = made.acting
            for _ in range(5):
                made.server.down = True
                await made.pass_by(SECONDS / 3)
                made.server.down = False
                await made.pass_by(RETRY)
                assert made.acting == [first]

    run_virtually(scene())


def test_when_the_api_server_is_down_the_one_that_acts_ends_before_its_promise_does() -> None:
    async def scene() -> None:
        async with operators("a", "b") as made:
            (first,), second = made.acting, other(made)
            made.server.down = True
            assert await made.until(lambda: first in made.ended) <= SECONDS * 2 / 3 + 0.1
            assert "could not be renewed" in made.ended[first]
            await made.pass_by(60)
            assert made.acting == []
            made.server.down = False
            await made.until(lambda: made.acting == [second])

    run_virtually(scene())


def test_one_that_alone_cannot_reach_the_api_server_ends_before_another_acts() -> None:
    async def scene() -> None:
        async with operators("a", "b") as made:
            (first,), second = made.acting, other(made)
            cut_off = ApiServer()
            cut_off.down = True
            made.each[first]._leases = cut_off
            await made.until(lambda: made.acting == [second])
            assert first in made.ended

    run_virtually(scene())


def test_a_call_that_hangs_is_given_up_in_time_for_another() -> None:
    async def scene() -> None:
        async with operators("a", "b") as made:
            (first,) = made.acting
            made.server.unanswered = 1
            await made.pass_by(60)
            assert made.acting == [first]
            assert made.ended == {}

    run_virtually(scene())


def test_a_process_that_was_frozen_writes_nothing_when_it_goes_on() -> None:
    async def scene() -> None:
        async with operators("a") as made:
            leadership = made.each["a"]
            leadership.check()
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            loop.freeze(SECONDS)
            with pytest.raises(LeadershipLostError):
                leadership.check()  # before anything else had its turn
            await made.until(lambda: "a" in made.ended, RETRY * 1.2)

    run_virtually(scene())


def test_a_lease_that_somebody_deletes_is_made_anew_by_the_one_that_acts() -> None:
    async def scene() -> None:
        async with operators("a", "b") as made:
            (first,) = made.acting
            await made.pass_by(RETRY * 2)
            made.server.lease_body = None
            await made.until(lambda: made.server.lease_body is not None, RETRY * 2)
            await made.pass_by(30)
            assert made.acting == [first]
            assert made.server.spec["holderIdentity"] == first

    run_virtually(scene())


def test_a_lease_that_somebody_gave_to_another_by_hand_ends_the_one_that_acts() -> None:
    async def scene() -> None:
        async with operators("a") as made:
            assert made.server.lease_body is not None
            made.server.spec["holderIdentity"] = "nobody-there"
            made.server.lease_body["metadata"]["resourceVersion"] = "by hand"
            await made.until(lambda: "a" in made.ended, RETRY * 2)
            assert "held by nobody-there" in made.ended["a"]

    run_virtually(scene())


def test_an_edit_of_the_lease_that_leaves_its_holder_is_kept() -> None:
    async def scene() -> None:
        async with operators("a") as made:
            assert made.server.lease_body is not None
            made.server.lease_body["metadata"] |= {"resourceVersion": "by hand", "labels": {"team": "x"}}
            await made.pass_by(30)
            assert made.acting == ["a"]
            assert made.server.lease_body["metadata"]["labels"]["team"] == "x"

    run_virtually(scene())


def test_the_promise_that_counts_is_the_holders_own() -> None:
    """As while an upgrade shortens it."""

    async def scene() -> None:
        made = Operators()
        made.start("a", seconds=60)
        await made.until(lambda: made.acting == ["a"])
        made.start("b", seconds=5)
        await made.pass_by(20)
        await made.kill("a")
        assert await made.until(lambda: made.acting == ["b"], 80) > 60 - 60 / 5 - 1
        await made.kill("b")

    run_virtually(scene())


def test_the_others_know_where_the_one_that_acts_takes_progress() -> None:
    async def scene() -> None:
        async with operators("a", "b") as made:
            (first,), second = made.acting, other(made)
            await made.pass_by(RETRY * 2)
            assert made.each[second].leaders_address == f"{first}:8443"
            assert made.each[first].leaders_address is None, "not to itself"
            await made.stop(first)
            await made.until(lambda: made.acting == [second])
            assert made.each[second].leaders_address is None

    run_virtually(scene())
