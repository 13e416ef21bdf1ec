"""A queue of keys, as controllers have: a key waits once however often it is added, and is never worked on twice
at a time; one that is added while it is worked on comes again afterwards; one that fails comes again later and later.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

K = TypeVar("K")
logger = logging.getLogger(__name__)


class WorkQueue(Generic[K]):
    """Keys, their delays and their failures."""

    def __init__(self, *, base: float = 1.0, cap: float = 120.0) -> None:
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._base, self._cap = base, cap

    def add(self, key: K) -> None:
        """Work on ``key`` as soon as may be."""
        self._cancel(key)
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Work on ``key`` in ``seconds``, unless it is due sooner."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        due = loop.time() + max(0.0, seconds)
        if timer is not None and timer.when() <= due:
            return
        self._cancel(key)
        self._timers[key] = loop.call_at(due, self.add, key)

    async def run(self, work: Callable[[K], Awaitable[float | None]], workers: int) -> None:
        """Work until cancelled. ``work`` says in how many seconds its key is due again, None for not by itself."""
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(work))

    async def _worker(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._working.add(key)
            try:
                seconds = await work(key)
            except Exception:
                failures = self._failures.get(key, 0) + 1
                self._failures[key] = failures
                seconds = min(self._cap, self._base * 2 ** min(failures - 1, 20)) * random.uniform(1.0, 1.2)  # noqa: S311
                logger.exception("%s is tried again in %.0f s", key, seconds)
            else:
                self._failures.pop(key, None)
            finally:
                self._working.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif seconds is not None:
                self.add_after(key, seconds)

    def _cancel(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
