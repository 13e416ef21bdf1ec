"""An event loop whose time passes only where everything waits for it: minutes of time-outs in no time at all."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Begins at 0 s. What waits for anything but time waits for ever, and is an error."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Skipping(self))

    def time(self) -> float:
        """Seconds that have passed in this loop."""
        return self.now

    def freeze(self, seconds: float) -> None:
        """As if the process had been stopped, and went on ``seconds`` later."""
        self.now += seconds


class _Skipping(selectors.DefaultSelector):  # type: ignore[valid-type, misc] - chosen at run time
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError(f"at {self._loop.now:.0f} s nothing is left to wait for")
        self._loop.now += max(0.0, timeout)
        return super().select(0)


def run_virtually(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end in a :class:`VirtualLoop`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
