"""``/healthz``, ``/readyz`` and ``/metrics`` on a plain port.

Healthy means that the event loop answers, that no part of the operator has ended, and that the API server was heard
of not long ago: a watch that died quietly shows in nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from aiohttp import web

from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.errors import ApiError
from finetune_operator.cluster.objects import Cluster
from finetune_operator.metrics import Metrics

HEARTBEAT_SECONDS = 20.0
READY_WITHIN, HEALTHY_WITHIN = 60.0, 300.0
"""Seconds since the API server answered: an outage of its own must not have us restarted in a circle."""
logger = logging.getLogger(__name__)


class Health:
    """Says how the operator is."""

    def __init__(self, api: ApiClient, metrics: Metrics) -> None:
        self._api, self._metrics = api, metrics
        self._ready = False
        self._parts: dict[str, Callable[[], bool]] = {}

    def watch(self, name: str, is_alive: Callable[[], bool]) -> None:
        """Count part ``name`` of the operator, which must not end before it does."""
        self._parts[name] = is_alive

    def ready(self) -> None:
        """All has started."""
        self._ready = True

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._exposition)
        return app

    def problems(self, within: float) -> list[str]:
        """What is wrong; empty where nothing is."""
        found = [f"{name} has ended" for name, is_alive in self._parts.items() if not is_alive()]
        silence = time.monotonic() - self._api.last_contact
        if silence > within:
            found.append(f"the API server has not answered for {silence:.0f} s")
        return found

    async def heartbeat(self, cluster: Cluster) -> None:
        """Ask the API server for a sign of life when there was none for a while; until cancelled."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            if time.monotonic() - self._api.last_contact >= HEARTBEAT_SECONDS:
                try:
                    await cluster.ping()
                except ApiError as error:
                    logger.warning("no sign of life: %s", error)

    async def _healthz(self, _request: web.Request) -> web.Response:
        return self._answer(self.problems(HEALTHY_WITHIN))

    async def _readyz(self, _request: web.Request) -> web.Response:
        starting = [] if self._ready else ["still starting"]
        return self._answer(starting + self.problems(READY_WITHIN))

    async def _exposition(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.exposition(), content_type="text/plain", charset="utf-8")

    @staticmethod
    def _answer(problems: list[str]) -> web.Response:
        return web.Response(text="\n".join(problems) or "ok", status=503 if problems else 200)
