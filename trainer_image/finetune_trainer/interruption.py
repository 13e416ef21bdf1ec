"""SIGTERM: the pod was told to end. Training saves a checkpoint first; whatever else runs just stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError
from finetune_trainer.log import log


class Interruption:
    """Whether the process was told to end. While :meth:`deferred` says so, work is stopped at the next good place;
    else at once."""

    def __init__(self) -> None:
        self._told = threading.Event()
        self._deferred = False
        self._pass_on: Callable[[], None] | None = None

    def listen(self) -> None:
        """Take SIGTERM and SIGINT from now on. In the main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)

    def defer(self, *, deferred: bool) -> bool:
        """Let the work in hand come to a good place first, or not; what held before."""
        before, self._deferred = self._deferred, deferred
        return before

    def pass_on(self, to: Callable[[], None]) -> None:
        """Call ``to`` each time that a signal comes, and now where one came before."""
        self._pass_on = to
        if self.told:
            to()

    def tell(self) -> None:
        """As if a signal had come: another process heard of it."""
        self._told.set()

    @property
    def told(self) -> bool:
        """Whether the process was told to end."""
        return self._told.is_set()

    def check(self) -> None:
        """Raise where the process was told to end and may end here.

        Raises:
            TrainerError: INTERRUPTED.
        """
        if self.told and not self._deferred:
            raise TrainerError(ExitCode.INTERRUPTED, "told to end by SIGTERM")

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        first = not self.told
        self._told.set()
        if first and self._deferred:
            log.info("%s: stopping at the end of this step", signal.Signals(number).name)
        if self._pass_on is not None:
            self._pass_on()
        self.check()
