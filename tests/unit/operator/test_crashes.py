"""Killed between any two of its effects, the operator loses nothing, doubles nothing and ends the same."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

import pytest
from fake_cluster import PREPARED, TRAINED, Crash, FakeCluster, World, lives_with_a_retry, merged
from finetune_operator.cluster.errors import ApiError
from finetune_operator.core import names
from finetune_operator.core.lifecycle import FINAL
from finetune_operator.reconciler import Reconciler
from operator_bodies import SETTINGS, job_body

Body = dict[str, Any]
KEY = ("team", "tune")


def reconciler_of(cluster: FakeCluster, world: World) -> Reconciler:
    return Reconciler(cluster, SETTINGS, authority=lambda: "PEM", clock=world.clock)  # type: ignore[arg-type]


class Watching(Reconciler):
    """One that the watches tell what is new, each kind so many of its calls late, as ``lags`` says."""

    def __init__(self, cluster: FakeCluster, world: World, lags: dict[str, int]) -> None:
        super().__init__(cluster, SETTINGS, authority=lambda: "PEM", clock=world.clock, watched=True)  # type: ignore[arg-type]
        self._fake, self._lags = cluster, lags
        self._told: dict[str, list[dict[str, Body]]] = {kind: [] for kind in lags}

    async def reconcile(self, key: tuple[str, str]) -> float | None:
        """Hear, then work."""
        held = {
            "FineTuneJob": {"": self._fake.body} if self._fake.body else {},
            "Job": self._fake.children,
            "Pod": self._fake.pod_bodies,
        }
        for kind, bodies in held.items():
            self._told[kind].append({name: copy.deepcopy(body) for name, body in bodies.items()})
            late = self._told[kind][: len(self._told[kind]) - self._lags[kind]]
            now, before = (late[-1] if late else {}), (late[-2] if len(late) > 1 else {})
            for name in before.keys() - now.keys():
                self._hear(kind, before[name], deleted=True)
            for body in now.values():
                self._hear(kind, body, deleted=False)
        return await super().reconcile(key)

    def _hear(self, kind: str, body: Body, *, deleted: bool) -> None:
        if kind == "FineTuneJob":
            self.saw_job(body, deleted=deleted)
        else:
            self.saw_child({"kind": kind, **body}, deleted=deleted)


@pytest.mark.parametrize(
    "lags",
    [
        {"FineTuneJob": 0, "Job": 0, "Pod": 0},
        {"FineTuneJob": 0, "Job": 0, "Pod": 3},
        {"FineTuneJob": 0, "Job": 3, "Pod": 0},
        {"FineTuneJob": 3, "Job": 0, "Pod": 0},
        {"FineTuneJob": 1, "Job": 2, "Pod": 4},
    ],
    ids=["none", "pods", "Jobs", "the job", "all"],
)
async def test_watches_that_come_late_lose_and_double_nothing(lags: dict[str, int]) -> None:
    cluster = FakeCluster(job_body())
    world = World(cluster, lives_with_a_retry())
    await live(cluster, world, reconciler=Watching(cluster, world, lags), rounds=60)
    assert_one_whole_life(cluster)
    assert [note.reason for note in cluster.notes] == ["Retrying", "Succeeded"]
    assert len(cluster.status_patches) <= 10

    cluster = FakeCluster(job_body(runPolicy={"ttlSecondsAfterFinished": 0}))
    await live_with_a_rest(cluster, lambda world: Watching(cluster, world, lags))
    assert_one_rest(cluster)


async def live(cluster: FakeCluster, world: World, *, rounds: int = 40, reconciler: Reconciler | None = None) -> int:
    """Reconcile until the job ended and some more; a crash or an error is followed by a start with no memory."""
    reconciler = reconciler or reconciler_of(cluster, world)
    crashes, rest = 0, 2
    for _ in range(rounds):
        for _ in range(2):  # some calls for each change of the world
            try:
                await reconciler.reconcile(KEY)
            except (Crash, ApiError):
                crashes += 1
                reconciler = reconciler_of(cluster, world)
        world.step()
        rest -= cluster.status.get("phase") in FINAL
        if rest == 0:
            break
    return crashes


def assert_one_whole_life(cluster: FakeCluster) -> None:
    assert cluster.status["phase"] == "Succeeded"
    assert cluster.status["attempt"] == 2
    assert cluster.created == ["tune-prepare", "tune-train-1", "tune-train-2"]
    assert cluster.status["dataset"]["samples"] == 10
    assert cluster.status["progress"]["display"] == "20/20 100%"
    for reason in ("Retrying", "Succeeded"):
        assert cluster.told(reason) <= 1, reason


async def test_a_life_without_a_crash() -> None:
    cluster = FakeCluster(job_body())
    assert await live(cluster, World(cluster, lives_with_a_retry())) == 0
    assert_one_whole_life(cluster)
    reasons = [note.reason for note in cluster.notes]
    assert reasons == ["Retrying", "Succeeded"]
    assert len(cluster.status_patches) <= 9, "a status is written when it changes, and only then"
    assert cluster.effects < 40


@pytest.mark.parametrize(
    ("kind", "every"), [(Crash(), 1), (ApiError(0, "no answer", what="a call"), 4)], ids=["killed", "no answer"]
)
async def test_a_crash_before_any_single_effect(kind: BaseException, every: int) -> None:
    whole = FakeCluster(job_body())
    await live(whole, World(whole, lives_with_a_retry()))
    for crash_at in range(0, whole.effects, every):
        cluster = FakeCluster(job_body())

        def crash(number: int, what: str, at: int = crash_at) -> None:
            if number == at and not (isinstance(kind, Exception) and what.startswith("tell")):
                raise kind

        cluster.before_effect = crash
        await live(cluster, World(cluster, lives_with_a_retry()))
        assert_one_whole_life(cluster)


async def test_a_crash_before_every_effect_in_turn() -> None:
    """Each effect succeeds only when it is tried for the second time, and each second write of the status."""
    cluster = FakeCluster(job_body())
    tried: dict[str, int] = {}

    def crash(_number: int, what: str) -> None:
        tried[what] = tried.get(what, 0) + 1
        if tried[what] == 1 or (what == "patch status" and tried[what] % 2):
            raise Crash

    cluster.before_effect = crash
    assert await live(cluster, World(cluster, lives_with_a_retry()), rounds=60) > 8
    assert_one_whole_life(cluster)


async def test_a_change_by_another_at_any_write_is_decided_anew() -> None:
    cluster = FakeCluster(job_body())
    world = World(cluster, lives_with_a_retry())
    writes = 0

    def edit(_number: int, what: str) -> None:
        nonlocal writes
        if what == "patch status":
            writes += 1
            if writes % 2:
                assert cluster.body is not None
                cluster.body["metadata"]["resourceVersion"] = str(1000 + writes)

    cluster.before_effect = edit
    assert await live(cluster, world) == 0
    assert_one_whole_life(cluster)
    assert cluster.told("Succeeded") == 1, "only what was written is told"


async def test_two_operators_at_once_make_one_life() -> None:
    """As while a node is cut off and the pod's successor runs already."""
    cluster = FakeCluster(job_body())
    world = World(cluster, lives_with_a_retry())
    pair = [reconciler_of(cluster, world) for _ in range(2)]
    for _ in range(12):
        await asyncio.gather(*(one.reconcile(KEY) for one in pair))
        world.step()
    assert_one_whole_life(cluster)


async def test_a_finished_job_is_left_alone_for_ever() -> None:
    cluster = FakeCluster(job_body())
    world = World(cluster, lives_with_a_retry())
    await live(cluster, world)
    before, children = cluster.effects, dict(cluster.children)
    for gone in list(children):
        del cluster.children[gone]
        await reconciler_of(cluster, world).reconcile(KEY)
    assert cluster.effects == before


async def test_what_runs_for_a_failed_job_is_stopped_even_after_a_crash_before_the_delete() -> None:
    cluster = FakeCluster(job_body(status={"phase": "Failed", "attempt": 1}))
    other: dict[str, Any] = {}
    world = World(cluster, lives_with_a_retry())
    running = FakeCluster(job_body())
    await reconciler_of(running, World(running, other)).reconcile(KEY)
    cluster.children = running.children  # the prepare Job still runs
    await reconciler_of(cluster, world).reconcile(KEY)
    assert cluster.deleted == ["tune-prepare"]
    assert cluster.status["phase"] in FINAL


async def live_with_a_rest(cluster: FakeCluster, make: Callable[[World], Reconciler] | None = None) -> None:
    """Trains, rests, is resumed, trains to the end and expires; a crash is followed by a start with no memory."""
    world = World(cluster, {names.prepare_job("tune"): (0, PREPARED), names.train_job("tune", 2): (0, TRAINED)})
    reconciler = make(world) if make else reconciler_of(cluster, world)
    stations = {"Running": {"suspend": True}, "Suspended": {"suspend": False}}
    for _ in range(60):
        for _ in range(3):
            try:
                await reconciler.reconcile(KEY)
            except Crash:
                reconciler = reconciler_of(cluster, world)
        if cluster.body is None:
            return
        world.step()
        wish = stations.get(cluster.status.get("phase", ""))
        if wish is not None and cluster.status.get("attempt") == 1:
            cluster.edit(**wish)
    raise AssertionError(cluster.status)


def assert_one_rest(cluster: FakeCluster) -> None:
    assert cluster.created == ["tune-prepare", "tune-train-1", "tune-train-2"]
    assert set(cluster.deleted) == {"tune-train-1"}
    statuses: dict[str, Any] = {}
    for patch in cluster.status_patches:
        statuses = merged(statuses, patch)
    assert (statuses["phase"], statuses["attempt"]) == ("Succeeded", 2)
    assert "failedAttempts" not in statuses
    assert 60 <= statuses["runningSeconds"] <= 90, "two attempts of one or two steps of 30 s"
    assert "runningSince" not in statuses


async def test_a_crash_before_any_single_effect_of_a_life_with_a_rest() -> None:
    policy = {"ttlSecondsAfterFinished": 0}
    whole = FakeCluster(job_body(runPolicy=policy))
    await live_with_a_rest(whole)
    assert_one_rest(whole)
    seconds = _running_seconds(whole)
    reasons = [note.reason for note in whole.notes]
    assert reasons == ["Suspended", "Resumed", "Succeeded"]
    for crash_at in range(whole.effects):
        cluster = FakeCluster(job_body(runPolicy=policy))

        def crash(number: int, _what: str, at: int = crash_at) -> None:
            if number == at:
                raise Crash

        cluster.before_effect = crash
        await live_with_a_rest(cluster)
        assert_one_rest(cluster)
        assert _running_seconds(cluster) == seconds


def _running_seconds(cluster: FakeCluster) -> int:
    return max(patch.get("runningSeconds") or 0 for patch in cluster.status_patches)


async def test_a_crash_before_any_single_effect_of_a_job_whose_time_is_over() -> None:
    policy = {"activeDeadlineSeconds": 45}
    whole = FakeCluster(job_body(runPolicy=policy))
    endings = {names.prepare_job("tune"): (0, PREPARED)}
    await live(whole, World(whole, endings))
    assert whole.status["failure"]["reason"] == "DeadlineExceeded"
    for crash_at in range(whole.effects):
        cluster = FakeCluster(job_body(runPolicy=policy))

        def crash(number: int, _what: str, at: int = crash_at) -> None:
            if number == at:
                raise Crash

        cluster.before_effect = crash
        await live(cluster, World(cluster, endings))
        assert cluster.status["failure"]["reason"] == "DeadlineExceeded"
        assert cluster.created == ["tune-prepare", "tune-train-1"]
        assert "tune-train-1" in cluster.deleted
        assert cluster.pod_bodies.keys() <= {"pod-0"}, "the prepare pod stays for its log"


async def a_life_in_a_queue(cluster: FakeCluster) -> None:
    world = World(cluster, lives_with_a_retry() | {names.train_job("tune", 1): (0, TRAINED)})
    world.preemptions = 1
    await live(cluster, world)


async def test_a_crash_before_any_single_effect_of_a_life_in_a_queue() -> None:
    """It is admitted, preempted and admitted again: one attempt, which nobody but the queue starts or stops."""
    whole = FakeCluster(job_body(scheduling={"queueName": "team"}))
    await a_life_in_a_queue(whole)
    assert [note.reason for note in whole.notes] == ["Requeued", "Succeeded"]
    for crash_at in range(whole.effects):
        cluster = FakeCluster(job_body(scheduling={"queueName": "team"}))

        def crash(number: int, _what: str, at: int = crash_at) -> None:
            if number == at:
                raise Crash

        cluster.before_effect = crash
        await a_life_in_a_queue(cluster)
        assert (cluster.status["phase"], cluster.status["attempt"]) == ("Succeeded", 1)
        assert cluster.created == ["tune-prepare", "tune-train-1"]
        assert cluster.deleted == []
        assert {"failure", "failedAttempts", "disruptions"} & cluster.status.keys() == set()
        assert cluster.told("Requeued") <= 1
