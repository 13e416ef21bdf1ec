"""How the operator starts, stops, and ends when a part of it does."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_operator import main
from finetune_operator.cluster.errors import ApiError
from finetune_operator.health import Health
from finetune_operator.main import PartEndedError
from finetune_operator.metrics import Metrics


def parts() -> main._Parts:
    api: Any = SimpleNamespace(last_contact=time.monotonic())
    return main._Parts(Health(api, Metrics(lambda: ())), asyncio.Event())


@pytest.mark.parametrize("status", [0, 429, 500, 503])
async def test_a_start_waits_for_an_api_server_that_is_down_or_too_busy(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "_START_AGAIN_SECONDS", 0.0)
    answers = [ApiError(status, "not now", what="GET secret")] * 3

    async def step() -> None:
        if answers:
            raise answers.pop()

    await main._patiently(step)
    assert answers == []


async def test_a_start_that_the_api_server_refuses_ends_at_once() -> None:
    async def step() -> None:
        raise ApiError(403, "forbidden", what="GET secret")

    with pytest.raises(ApiError, match="forbidden"):
        await main._patiently(step)


async def test_a_part_that_ends_ends_the_step_that_is_waited_for() -> None:
    async def fails() -> None:
        raise ValueError("broken")

    async with parts() as made:
        made.start("the workers", asyncio.sleep(3600))
        made.start("the Lease", fails())
        with pytest.raises(PartEndedError, match=r"the Lease ended by itself: ValueError\('broken'\)"):
            await made.until(asyncio.sleep(3600))


async def test_told_to_stop_it_leaves_the_step_undone_and_ends_all_parts() -> None:
    async with parts() as made:
        part = made.start("the workers", asyncio.sleep(3600))
        assert await made.until(asyncio.sleep(0))
        made.stop.set()
        assert not await made.until(asyncio.sleep(3600))
    assert part.cancelled()
