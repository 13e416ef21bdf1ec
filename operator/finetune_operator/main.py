"""``finetune-operator``: start all parts, stop them on SIGTERM, end when one of them does."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self

import kopf
from aiohttp import web

from finetune_operator import handlers, logs
from finetune_operator.cluster.client import ApiClient, Fenced
from finetune_operator.cluster.errors import ApiError
from finetune_operator.cluster.objects import Cluster
from finetune_operator.core import names
from finetune_operator.core.leases import Candidate
from finetune_operator.health import Health
from finetune_operator.leadership import Leadership
from finetune_operator.progress import Authenticator, ProgressEndpoint
from finetune_operator.reconciler import Reconciler
from finetune_operator.relay import Relay
from finetune_operator.settings import Settings, SettingsError, read_settings
from finetune_operator.tls import TlsKeeper

logger = logging.getLogger(__name__)


def main() -> None:
    """Entry point. Exit code 2: the settings are wrong; 1: a part ended that should not have."""
    try:
        settings = read_settings()
    except SettingsError as error:
        sys.exit(f"finetune-operator: {error}")
    logs.configure(settings.log_format, settings.log_level)
    _spare_collections()
    try:
        asyncio.run(run(settings))
    except ApiError as error:
        logger.critical("%s", error)
        sys.exit(1)
    except PartEndedError as error:
        logger.critical("%s", error, exc_info=error.__cause__)
        sys.exit(1)


def _spare_collections() -> None:
    """Of cyclic garbage, of which there is little: else each page of objects that is read starts several, and a third
    of the time of a start with thousands of jobs goes into looking at modules and what is kept for good."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 10)


class PartEndedError(RuntimeError):
    """A part of the operator ended that should not have; the pod had better start anew."""


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT: stand by until no other operator acts, then act.

    Raises:
        ApiError: there are no credentials, or the API server does not let us keep our certificate.
        PartEndedError: a part of the operator ended by itself, or another operator acts by now.
    """
    stop = asyncio.Event()
    _stop_on_signals(stop)
    api = await ApiClient.connect()
    try:
        await _run(settings, api, stop)
    finally:
        await api.close()


def _stop_on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


async def _run(settings: Settings, api: ApiClient, stop: asyncio.Event) -> None:
    cluster = Cluster(api, settings.namespaces)
    candidate = Candidate(settings.identity, settings.lease_seconds, settings.address)
    leadership = Leadership(cluster, candidate, namespace=settings.namespace, name=settings.lease, clock=api.now)
    acting = Cluster(Fenced(api, leadership.check), settings.namespaces)
    tls = TlsKeeper(
        cluster, namespace=settings.namespace, secret=settings.tls_secret, hosts=settings.hosts, clock=api.now
    )
    reconciler = Reconciler(acting, settings.core, authority=tls.authority, clock=api.now, watched=True)
    reconciler.metrics.leader.set_function(lambda: leadership.leads)
    health = Health(api, reconciler.metrics)
    relay = Relay(address=lambda: leadership.leaders_address, authority=tls.authority, host=settings.host)
    endpoint = ProgressEndpoint(Authenticator(cluster), reconciler, relay, leads=lambda: leadership.leads)
    async with _served(health.application(), settings.metrics_port), _Parts(health, stop) as parts:
        parts.start("the heartbeat", health.heartbeat(cluster))
        if not await parts.until(_patiently(tls.refresh)):
            return
        async with _served(endpoint.application(), settings.progress_port, tls.context):
            parts.start("the certificate's renewal", tls.keep())
            if await parts.until(leadership.acquire(standing_by=health.ready)):
                await _act(settings, parts, leadership=leadership, tls=tls, reconciler=reconciler, health=health)


async def _act(
    settings: Settings, parts: _Parts, *, leadership: Leadership, tls: TlsKeeper, reconciler: Reconciler, health: Health
) -> None:
    """The life of the replica that acts."""
    watches = Watches(settings, reconciler)
    watching: asyncio.Task[None] | None = None
    try:
        parts.start("the Lease", leadership.keep())
        # Whoever acted before may have made another one; what we tell jobs' namespaces must be what we serve.
        if not await parts.until(_patiently(tls.refresh)):
            return
        parts.start("the workers", reconciler.queue.run(reconciler.reconcile, settings.workers))
        parts.start("the resync", _resync(reconciler, settings.resync_seconds))
        parts.start("the look at the watches", watches.look_after())
        watching = parts.start("the watches", watches.run())
        if await parts.until(_announce(watches, health, settings, parts.stop)):
            await parts.until(asyncio.Event().wait())
    finally:
        # The watches last: as it ends, kopf cancels every task that is younger than itself.
        await parts.end(but=watching)
        await leadership.give_up()
        if watching is not None:
            watches.stop.set()
            await asyncio.gather(watching, return_exceptions=True)


class _Parts:
    """Tasks of which none may end before the operator does."""

    def __init__(self, health: Health, stop: asyncio.Event) -> None:
        self._health, self.stop = health, stop
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    def start(self, name: str, part: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``part`` beside the others."""
        task = asyncio.create_task(part, name=name)
        self._tasks.append(task)
        self._health.watch(name, lambda: not task.done())
        return task

    async def until(self, step: Coroutine[Any, Any, Any]) -> bool:
        """Do ``step`` and say whether it was done; False where the operator is to stop instead.

        Raises:
            PartEndedError: a part ended by itself.
            Exception: whatever ``step`` raises.
        """
        doing, stopping = asyncio.create_task(step), asyncio.create_task(self.stop.wait())
        try:
            done, _ = await asyncio.wait({*self._tasks, doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self.stop.is_set():
                logger.info("stopping")
                return False
            for task in done.intersection(self._tasks):
                error = task.exception() if not task.cancelled() else None
                raise PartEndedError(f"{task.get_name()} ended by itself: {error!r}") from error
            await doing
            return True
        finally:
            for task in (doing, stopping):
                task.cancel()
            await asyncio.gather(doing, stopping, return_exceptions=True)

    async def end(self, *, but: asyncio.Task[Any] | None = None) -> None:
        """Cancel all parts ``but`` one, and wait for their end."""
        ending = [task for task in self._tasks if task is not but]
        self._tasks = [but] if but else []
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


async def _patiently(step: Callable[[], Awaitable[None]]) -> None:
    """Do ``step``, again and again while the API server is down: an operator that ends then starts later and later."""
    while True:
        try:
            return await step()
        except ApiError as error:
            if not error.may_pass:
                raise
            logger.warning("the start waits for the API server: %s", error)
        await asyncio.sleep(_START_AGAIN_SECONDS)


_START_AGAIN_SECONDS = 2.0
_IDENTITY: Any = names.MANAGER
"""Else kopf asks for the name of its user, and in a container there may be none. Nobody reads it: it has no peers."""


class Watches:
    """kopf, embedded."""

    start_seconds, look_seconds = 60.0, 5.0
    """How long all watches may take to begin, and the time between two looks at them."""

    def __init__(self, settings: Settings, reconciler: Reconciler) -> None:
        self._settings, self._reconciler = settings, reconciler
        self.stop, self.ready = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Watch until :attr:`stop` is set."""
        await kopf.operator(
            registry=handlers.make_registry(self._reconciler),
            settings=handlers.make_settings(),
            clusterwide=not self._settings.namespaces,
            namespaces=self._settings.namespaces,
            identity=_IDENTITY,
            standalone=True,
            stop_flag=self.stop,
            ready_flag=self.ready,
        )

    async def look_after(self) -> None:
        """Until cancelled, see to it that every watch lives.

        kopf goes on without a watch that the API server refused (403, 404, 500), deaf to that kind from then on, and
        waits in silence for a kind that the API server does not know.

        Raises:
            PartEndedError: a watch has ended or has not begun.
        """
        await self.ready.wait()
        wanted = len(handlers.WATCHED) * max(1, len(self._settings.namespaces))
        begun = asyncio.get_running_loop().time()
        seen: set[asyncio.Task[object]] = set()
        while True:
            seen |= {task for task in asyncio.all_tasks() if task.get_name().startswith(handlers.WATCHER)}
            for task in seen:
                if task.done():
                    error = None if task.cancelled() else task.exception()
                    raise PartEndedError(f"the {task.get_name()} has ended") from error
            if len(seen) < wanted and asyncio.get_running_loop().time() - begun > self.start_seconds:
                missing = f"{len(seen)} of {wanted} watches have begun"
                raise PartEndedError(f"{missing}; are the CRDs installed, and may the operator list and watch?")
            await asyncio.sleep(self.look_seconds)


async def _announce(watches: Watches, health: Health, settings: Settings, stop: asyncio.Event) -> None:
    await watches.ready.wait()
    _stop_on_signals(stop)  # kopf has put its own handlers in place of ours
    health.ready()
    where = ", ".join(settings.namespaces) or "all namespaces"
    logger.info("ready: %s; progress at %s", where, settings.core.progress_url)


async def _resync(reconciler: Reconciler, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await reconciler.resync()
        except ApiError as error:
            logger.warning("resync is put off: %s", error)


_SERVED_SECONDS = 5.0
"""For what is being answered when the operator stops."""


@asynccontextmanager
async def _served(app: web.Application, port: int, context: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SERVED_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=context).start()
        yield
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    main()
