"""Keys are worked on one at a time each, once however often added, and later after each failure."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from finetune_operator.work_queue import WorkQueue

Work = Callable[[str], Awaitable[float | None]]


@asynccontextmanager
async def running(queue: WorkQueue[str], work: Work, workers: int = 4) -> AsyncIterator[None]:
    task = asyncio.create_task(queue.run(work, workers))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_key_is_never_worked_on_twice_at_a_time_and_no_change_is_lost() -> None:
    queue: WorkQueue[str] = WorkQueue()
    at_work: Counter[str] = Counter()
    most: Counter[str] = Counter()
    runs: Counter[str] = Counter()
    gate = asyncio.Event()

    async def work(key: str) -> None:
        at_work[key] += 1
        most[key] = max(most[key], at_work[key])
        await gate.wait()
        runs[key] += 1
        at_work[key] -= 1

    async with running(queue, work):
        queue.add("a")
        queue.add("b")
        await settle()
        for _ in range(50):
            queue.add("a")
        await settle()
        assert at_work == {"a": 1, "b": 1}, "keys do not wait for each other"
        gate.set()
        await settle()
    assert most == {"a": 1, "b": 1}
    assert runs == {"a": 2, "b": 1}, "what came in meanwhile is one more run"


async def test_many_additions_before_the_work_are_one_run() -> None:
    queue: WorkQueue[str] = WorkQueue()
    done: list[str] = []

    async def work(key: str) -> None:
        done.append(key)

    for _ in range(5):
        queue.add("a")
        queue.add("b")
    async with running(queue, work, workers=1):
        await settle()
    assert done == ["a", "b"]


async def test_a_key_comes_again_when_its_work_says_so() -> None:
    queue: WorkQueue[str] = WorkQueue()
    twice = asyncio.Event()
    runs = 0

    async def work(_key: str) -> float | None:
        nonlocal runs
        runs += 1
        if runs == 2:
            twice.set()
            return None
        return 0.01

    async with running(queue, work):
        queue.add("a")
        await asyncio.wait_for(twice.wait(), 5)
        await settle()
    assert runs == 2


async def test_the_sooner_of_two_delays_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    done = asyncio.Event()

    async def work(_key: str) -> None:
        done.set()

    async with running(queue, work):
        queue.add_after("a", 60)
        queue.add_after("a", 0.01)
        queue.add_after("a", 60)
        await asyncio.wait_for(done.wait(), 5)
        assert queue._timers == {}


async def test_an_addition_replaces_a_delay() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add("a")
    assert queue._timers == {}


async def test_what_fails_comes_again_later_and_later_and_others_go_on() -> None:
    queue: WorkQueue[str] = WorkQueue(base=0.01, cap=0.05)
    times: list[float] = []
    good = asyncio.Event()
    enough = asyncio.Event()

    async def work(key: str) -> None:
        if key == "good":
            good.set()
            return
        times.append(asyncio.get_running_loop().time())
        if len(times) == 4:
            enough.set()
            return
        raise ValueError("bad")

    async with running(queue, work, workers=1):
        queue.add("bad")
        queue.add("good")
        await asyncio.wait_for(good.wait(), 5)
        await asyncio.wait_for(enough.wait(), 5)
        await settle()
    waits = [b - a for a, b in itertools.pairwise(times)]
    assert waits[0] >= 0.01
    assert waits[1] >= 0.02
    assert waits[2] >= 0.04
    assert queue._failures == {}, "a success forgets the failures"
