"""One of several operators acts: it holds a Lease, writes it again and again, and ends when it cannot.

The times follow from the one that is set, ``seconds``, for which the Lease is good after each write. The holder writes
every fifth of it; after two thirds without success it stops acting; after the whole another may take it. All are
counted from before the write was sent, by a clock that only runs forward. In the last third the process ends; and
should it be stopped so hard that it cannot (a frozen machine), :meth:`Leadership.check` stands before every write.

Why not the client library's own election: docs/decisions/0014.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from finetune_operator.cluster.errors import CONFLICT, NOT_FOUND, ApiError
from finetune_operator.core.leases import Candidate, Sight, given_up, sighted, taken

Body = dict[str, Any]
logger = logging.getLogger(__name__)


class LeadershipLostError(RuntimeError):
    """The Lease could not be kept, or another one holds it: this process must not act any more."""


class Leases(Protocol):
    """What of the cluster keeps the Lease."""

    async def lease(self, namespace: str, name: str) -> Body | None:
        """A Lease."""

    async def create(self, body: Body) -> Body:
        """Create ``body``."""

    async def replace(self, body: Body) -> Body:
        """Replace ``body``, if its resourceVersion is still the same."""


class Leadership:
    """One candidate's view of the Lease."""

    def __init__(
        self,
        leases: Leases,
        candidate: Candidate,
        *,
        namespace: str,
        name: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """``clock`` gives the times that are written into the Lease; nothing is decided by it."""
        self._leases, self._candidate = leases, candidate
        self._namespace, self._name, self._clock = namespace, name, clock
        self._retry, self._deadline = candidate.seconds / 5, candidate.seconds * 2 / 3
        self._lease: Body | None = None
        self._sight: Sight | None = None
        self._renewed: float | None = None
        """When the write that made or kept us the holder was begun; None while we are not."""

    @property
    def leads(self) -> bool:
        """Whether we may act, just now."""
        return self._renewed is not None and _now() < self._renewed + self._candidate.seconds

    @property
    def leader(self) -> str:
        """Who holds the Lease, as far as we know; empty where nobody does."""
        return self._sight.holder if self._sight else ""

    @property
    def leaders_address(self) -> str | None:
        """Where the holder takes progress; None where nobody holds it, or we do."""
        return self._sight.address if self._sight and self._sight.holder not in ("", self._candidate.identity) else None

    def check(self) -> None:
        """To be called before every write.

        Raises:
            LeadershipLostError: we do not hold the Lease, or no longer.
        """
        if not self.leads:
            raise LeadershipLostError("another operator may act by now")

    async def acquire(self, standing_by: Callable[[], None] = lambda: None) -> None:
        """Wait until we hold the Lease; ``standing_by`` is called when another is seen to."""
        told = ""
        while not await self._tries():
            if self.leader not in ("", told):
                told = self.leader
                logger.info("standing by: %s acts", told)
                standing_by()
            await asyncio.sleep(self._pause())
        logger.info("acting, as %s", self._candidate.identity)

    def _pause(self) -> float:
        """Until the next look: soon, since the time of a holder that is silent counts from the look that saw its last
        write; and no later than that time is over."""
        pause = self._candidate.seconds / 10 * random.uniform(0.9, 1.1)  # noqa: S311 - so that candidates do not collide
        left = self._sight.over - _now() if self._sight else 0.0
        return min(pause, left) if left > 0 else pause

    async def _tries(self) -> bool:
        try:
            async with asyncio.timeout(self._deadline):
                return await self._try_to_take()
        except (ApiError, TimeoutError) as error:
            logger.warning("the Lease %s cannot be had: %s", self._name, str(error) or "no answer")
            return False

    async def _try_to_take(self) -> bool:
        self._lease = await self._leases.lease(self._namespace, self._name)
        self._sight = sighted(self._sight, self._lease, _now())
        ours = self.leader == self._candidate.identity
        if self._sight is not None and not ours and not self._sight.is_free(_now()):
            return False
        return await self._write()

    async def keep(self) -> None:
        """Write the Lease again and again; until cancelled.

        Raises:
            LeadershipLostError: it could not be written in time, or another one has it.
        """
        while True:
            await asyncio.sleep(self._retry)
            await self._renew()

    async def _renew(self) -> None:
        if self._renewed is None:
            raise LeadershipLostError("the Lease was never taken")
        end = self._renewed + self._deadline
        error: Exception | None = None
        while (left := end - _now()) > 0:
            try:
                async with asyncio.timeout(min(left, self._deadline / 2)):  # one connection that hangs is not all
                    while not await self._write():
                        await self._look_again()
                    return
            except (ApiError, TimeoutError) as failed:
                error = failed
                logger.warning("the Lease %s is not renewed: %s", self._name, str(failed) or "no answer")
            await asyncio.sleep(max(0.0, min(1.0, self._retry / 2, end - _now())))
        self._renewed = None
        raise LeadershipLostError(
            f"the Lease {self._name} could not be renewed for {self._deadline:.0f} s: {str(error or '') or 'no answer'}"
        ) from error

    async def _look_again(self) -> None:
        """Somebody changed the Lease: another holder, an edit by hand, or a write of ours whose answer was lost."""
        self._lease = await self._leases.lease(self._namespace, self._name)
        self._sight = sighted(self._sight, self._lease, _now())
        if self._lease is not None and self.leader != self._candidate.identity:
            self._renewed = None
            raise LeadershipLostError(f"the Lease {self._name} is held by {self.leader or 'nobody'} now")

    async def _write(self) -> bool:
        """Take or renew; False where the Lease is not as we know it."""
        begun = _now()
        body = taken(self._lease, self._candidate, self._clock(), namespace=self._namespace, name=self._name)
        try:
            written = await (self._leases.replace(body) if self._lease else self._leases.create(body))
        except ApiError as error:
            if error.status in (CONFLICT, NOT_FOUND):
                return False
            raise
        self._lease = written
        self._sight = sighted(self._sight, written, _now())
        self._renewed = begun
        return True

    async def give_up(self) -> None:
        """Let the next one act at once, where the Lease is ours. To be called when nothing acts here any more."""
        self._renewed = None
        try:
            async with asyncio.timeout(self._retry):
                lease = await self._leases.lease(self._namespace, self._name)  # our last write may have had no answer
                self._sight = sighted(self._sight, lease, _now())
                if lease is not None and self.leader == self._candidate.identity:
                    await self._leases.replace(given_up(lease, self._clock()))
                    logger.info("given up: the next one may act")
        except (ApiError, TimeoutError) as error:  # it then ends by itself
            logger.warning("the Lease %s is not given up: %s", self._name, str(error) or "no answer")


def _now() -> float:
    return asyncio.get_running_loop().time()
