"""What events say of Jobs and pods that do not get on, read for all of a namespace at once.

The API server keeps events in no cache: to ask for those of one pod makes it read all of the namespace. Where many
jobs wait, each asking for its own, that alone would keep it busy, and them waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from finetune_operator.core.waiting import TELLING

Body = dict[str, Any]
KEPT_SECONDS = 5.0
"""How long what was read is good for, at least."""
SHARE = 10
"""So many times as long as the reading took it is good for too: no more than a tenth of the time goes into it."""
_KEPT = ("involvedObject", "reason", "message", "lastTimestamp", "eventTime")


class Source(Protocol):
    """Where events are read."""

    def warnings(self, namespace: str) -> AsyncIterator[Body]:
        """The namespace's events that warn."""


@dataclass
class _Namespace:
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    good_until: float = 0.0
    of: dict[str, list[Body]] = field(default_factory=dict)
    """By the uid of what they are about."""


class Troubles:
    """Events of one reason or another for which a pod waits; each namespace's are read by whoever asks first."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._namespaces: defaultdict[str, _Namespace] = defaultdict(_Namespace)

    async def of(self, namespace: str, uids: list[str]) -> list[Body]:
        """Events of the objects of these uids, as of a moment ago.

        Raises:
            ApiError: they cannot be read.
        """
        kept = self._namespaces[namespace]
        async with kept.reading:
            if time.monotonic() >= kept.good_until:
                begun = time.monotonic()
                kept.of = await self._read(namespace)
                ended = time.monotonic()
                kept.good_until = ended + max(KEPT_SECONDS, SHARE * (ended - begun))
        return [event for uid in uids for event in kept.of.get(uid, ())]

    async def _read(self, namespace: str) -> dict[str, list[Body]]:
        found: dict[str, list[Body]] = {}
        async for event in self._source.warnings(namespace):
            if event.get("reason") in TELLING:
                uid = (event.get("involvedObject") or {}).get("uid", "")
                found.setdefault(uid, []).append({key: event[key] for key in _KEPT if key in event})
        return found
