"""``finetune-operator``: start all parts, stop them on SIGTERM, end when one of them does."""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import kopf
from aiohttp import web

from finetune_operator import handlers, logs
from finetune_operator.cluster.client import ApiClient
from finetune_operator.cluster.errors import ApiError
from finetune_operator.cluster.objects import Cluster
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


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        ApiError: the API server cannot be reached, or does not let us keep our certificate.
        RuntimeError: a part of the operator ended by itself.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    api = await ApiClient.connect()
    try:
        await _run(settings, api, stop)
    finally:
        await api.close()


async def _run(settings: Settings, api: ApiClient, stop: asyncio.Event) -> None:
    cluster = Cluster(api, settings.namespaces)
    tls = TlsKeeper(cluster, namespace=settings.namespace, secret=settings.tls_secret, hosts=settings.hosts)
    await tls.refresh()
    reconciler = Reconciler(cluster, settings.core, authority=tls.authority)
    health = Health(api, reconciler.metrics)
    endpoint = ProgressEndpoint(Authenticator(cluster), reconciler)
    async with (
        _served(health.application(), settings.metrics_port),
        _served(endpoint.application(), settings.progress_port, tls.context),
    ):
        watching = asyncio.Event()
        parts = {
            "the watches": _watch(settings, reconciler, stop, watching),
            "the workers": reconciler.queue.run(reconciler.reconcile, settings.workers),
            "the resync": _resync(reconciler, settings.resync_seconds),
            "the heartbeat": health.heartbeat(cluster),
            "the certificate's renewal": tls.keep(),
        }
        tasks = {asyncio.create_task(part, name=name) for name, part in parts.items()}
        for task in tasks:
            health.watch(task.get_name(), lambda task=task: not task.done())  # type: ignore[misc]
        ready = asyncio.create_task(_announce(watching, health, settings))
        try:
            await _until_one_ends(tasks, stop)
        finally:
            for task in (*tasks, ready):
                task.cancel()
            await asyncio.gather(*tasks, ready, return_exceptions=True)


async def _until_one_ends(tasks: set[asyncio.Task[None]], stop: asyncio.Event) -> None:
    stopping = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        logger.info("stopping")
        return
    stopping.cancel()
    for task in done - {stopping}:
        error = task.exception() if not task.cancelled() else None
        raise RuntimeError(f"{task.get_name()} ended by itself") from error


async def _watch(settings: Settings, reconciler: Reconciler, stop: asyncio.Event, ready: asyncio.Event) -> None:
    await kopf.operator(
        registry=handlers.make_registry(reconciler),
        settings=handlers.make_settings(),
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        standalone=True,
        stop_flag=stop,
        ready_flag=ready,
    )


async def _announce(watching: asyncio.Event, health: Health, settings: Settings) -> None:
    await watching.wait()
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
