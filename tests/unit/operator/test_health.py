"""Whether the operator is healthy, ready, and notices that a part of it has died."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from finetune_operator import handlers
from finetune_operator.health import HEALTHY_WITHIN, READY_WITHIN, Health
from finetune_operator.main import PartEndedError, Watches
from finetune_operator.metrics import Metrics
from finetune_operator.settings import read_settings


async def answers(health: Health) -> tuple[int, int]:
    async with TestClient(TestServer(health.application())) as client:
        codes = []
        for path in ("/healthz", "/readyz"):
            async with client.get(path) as answer:
                codes.append(answer.status)
        async with client.get("/metrics") as answer:
            assert answer.status == 200
            assert "finetune_reconcile_seconds_bucket" in await answer.text()
    return codes[0], codes[1]


def health_of(silence: float = 0.0) -> Health:
    api: Any = SimpleNamespace(last_contact=time.monotonic() - silence)
    return Health(api, Metrics(lambda: ()))


async def test_it_is_ready_once_everything_has_started() -> None:
    health = health_of()
    assert await answers(health) == (200, 503)
    health.ready()
    assert await answers(health) == (200, 200)


@pytest.mark.parametrize(
    ("silence", "codes"), [(READY_WITHIN + 5, (200, 503)), (HEALTHY_WITHIN + 5, (503, 503))], ids=["a while", "long"]
)
async def test_a_silent_api_server_makes_it_unready_and_in_the_end_unhealthy(
    silence: float, codes: tuple[int, int]
) -> None:
    health = health_of(silence)
    health.ready()
    assert await answers(health) == codes


async def test_a_part_that_ended_is_named() -> None:
    health = health_of()
    health.ready()
    health.watch("the workers", lambda: False)
    assert await answers(health) == (503, 503)
    assert health.problems(60) == ["the workers has ended"]


def watches_of(namespaces: str = "") -> Watches:
    settings = read_settings({"FINETUNE_TRAINER_IMAGE": "i", "FINETUNE_WATCH_NAMESPACES": namespaces})
    watches = Watches(settings, None)  # type: ignore[arg-type]
    watches.start_seconds, watches.look_seconds = 0.2, 0.01
    watches.ready.set()
    return watches


async def refused() -> None:
    await asyncio.sleep(0.05)
    raise PermissionError("pods is forbidden")


async def test_a_watch_that_dies_ends_the_operator() -> None:
    coroutines = [asyncio.sleep(60), asyncio.sleep(60), refused()]
    tasks = [asyncio.create_task(c, name=f"{handlers.WATCHER}kind-{i}") for i, c in enumerate(coroutines)]
    with pytest.raises(PartEndedError, match="watcher for kind-2 has ended") as error:
        await asyncio.wait_for(watches_of().look_after(), 5)
    assert isinstance(error.value.__cause__, PermissionError)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_watch_that_never_begins_ends_the_operator() -> None:
    task = asyncio.create_task(asyncio.sleep(60), name=f"{handlers.WATCHER}pods")
    with pytest.raises(PartEndedError, match=r"1 of 6 watches have begun; are the CRDs installed"):
        await asyncio.wait_for(watches_of("a,b").look_after(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_watches_that_live_are_left_in_peace() -> None:
    tasks = [asyncio.create_task(asyncio.sleep(60), name=f"{handlers.WATCHER}{i}") for i in range(3)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watches_of().look_after(), 0.5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
