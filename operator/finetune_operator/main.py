"""``finetune-operator``: start all parts, stop them on SIGTERM, end when one of them does."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import kopf
from aiohttp import web

from finetune_operator import handlers, logs
from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.errors import ApiError
from finetune_operator.cluster.objects import Cluster
from finetune_operator.core import names
from finetune_operator.health import Health
from finetune_operator.progress import Authenticator, ProgressEndpoint
from finetune_operator.reconciler import Reconciler
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
    try:
        asyncio.run(run(settings))
    except ApiError as error:
        logger.critical("%s", error)
        sys.exit(1)
    except PartEndedError as error:
        logger.critical("%s", error, exc_info=error.__cause__)
        sys.exit(1)


class PartEndedError(RuntimeError):
    """A part of the operator ended that should not have; the pod had better start anew."""


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        ApiError: the API server cannot be reached, or does not let us keep our certificate.
        PartEndedError: a part of the operator ended by itself.
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
    tls = TlsKeeper(cluster, namespace=settings.namespace, secret=settings.tls_secret, hosts=settings.hosts)
    await tls.refresh()
    reconciler = Reconciler(cluster, settings.core, authority=tls.authority, watched=True)
    health = Health(api, reconciler.metrics)
    endpoint = ProgressEndpoint(Authenticator(cluster), reconciler)
    watches = Watches(settings, reconciler)
    async with (
        _served(health.application(), settings.metrics_port),
        _served(endpoint.application(), settings.progress_port, tls.context),
    ):
        parts = {
            "the workers": reconciler.queue.run(reconciler.reconcile, settings.workers),
            "the resync": _resync(reconciler, settings.resync_seconds),
            "the heartbeat": health.heartbeat(cluster),
            "the certificate's renewal": tls.keep(),
            "the look at the watches": watches.look_after(),
        }
        tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
        watching = asyncio.create_task(watches.run(), name="the watches")
        for task in (*tasks, watching):
            health.watch(task.get_name(), lambda task=task: not task.done())  # type: ignore[misc]
        ready = asyncio.create_task(_announce(watches, health, settings, stop))
        try:
            await _until_one_ends({*tasks, watching}, stop)
        finally:
            # The watches last: as it ends, kopf cancels every task that is younger than itself.
            for task in (*tasks, ready):
                task.cancel()
            await asyncio.gather(*tasks, ready, return_exceptions=True)
            watches.stop.set()
            await asyncio.gather(watching, return_exceptions=True)


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


async def _until_one_ends(tasks: set[asyncio.Task[None]], stop: asyncio.Event) -> None:
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        logger.info("stopping")
        return
    stopping.cancel()
    for task in done - {stopping}:
        error = task.exception() if not task.cancelled() else None
        raise PartEndedError(f"{task.get_name()} ended by itself: {error!r}") from error


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


@asynccontextmanager
async def _served(app: web.Application, port: int, context: ssl.SSLContext | None = None) -> AsyncIterator[None]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=context).start()
        yield
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    main()
