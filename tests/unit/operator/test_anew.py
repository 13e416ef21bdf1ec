"""Jobs are read anew by their names, pods from the API server's cache."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from fake_cluster import FakeCluster, World
from finetune_operator.anew import read_jobs
from finetune_operator.cluster.client import CACHE_TRIES, ApiClient
from finetune_operator.cluster.errors import ApiError
from finetune_operator.cluster.objects import Cluster
from finetune_operator.core import names
from finetune_operator.core.times import stamp
from finetune_operator.reconciler import Reconciler
from operator_bodies import NOW, SETTINGS, batch_job, job_body, pod_of, running

Body = dict[str, Any]
KEY = ("team", "tune")
CONDITIONS = [
    {"type": kind, "status": "True", "reason": kind, "message": "", "lastTransitionTime": stamp(NOW)}
    for kind in ("Accepted", "Prepared")
]
PREPARED = batch_job("prepare", ended="Complete")


class Counting(FakeCluster):
    """A cluster that holds these Jobs and keeps the names that were asked for."""

    def __init__(self, body: Body, *jobs: Body) -> None:
        super().__init__(body)
        self.children = {job["metadata"]["name"]: job for job in jobs}
        self.asked: list[str] = []

    async def job(self, namespace: str, name: str) -> Body | None:
        self.asked.append(name)
        return await super().job(namespace, name)


def trains(attempt: int, **status: Any) -> Body:
    return job_body(status={"phase": "Running", "attempt": attempt, "conditions": CONDITIONS, **status})


def reconciler_of(cluster: FakeCluster, **options: Any) -> Reconciler:
    clock = World(cluster, {}).clock
    return Reconciler(cluster, SETTINGS, authority=lambda: None, clock=clock, **options)  # type: ignore[arg-type]


async def read(cluster: Counting, *heard: Body) -> list[str]:
    assert cluster.body is not None
    found = await read_jobs(cluster, cluster.body, heard)  # type: ignore[arg-type]
    return [job["metadata"]["name"] for job in found]


async def test_what_is_read_is_the_prepare_job_the_attempt_and_the_next_one() -> None:
    cluster = Counting(job_body(), PREPARED)
    assert await read(cluster) == ["tune-prepare"]
    assert cluster.asked == ["tune-prepare", "tune-train-1"]
    cluster = Counting(trains(7), PREPARED, *(batch_job(attempt=number, ended="Failed") for number in range(1, 8)))
    assert await read(cluster) == ["tune-prepare", "tune-train-7"]
    assert cluster.asked == ["tune-prepare", "tune-train-7", "tune-train-8"], "what ended before is not asked for"


async def test_attempts_whose_status_was_lost_are_found_by_going_on() -> None:
    later = [batch_job(attempt=number) for number in (2, 3)]
    cluster = Counting(trains(1), PREPARED, batch_job(ended="Failed"), *later)
    assert await read(cluster) == ["tune-prepare", "tune-train-1", "tune-train-2", "tune-train-3"]
    assert cluster.asked[-1] == "tune-train-4"
    del cluster.children["tune-train-1"]
    assert await read(cluster) == ["tune-prepare", "tune-train-2", "tune-train-3"], "somebody deleted the first one"
    del cluster.children["tune-train-2"]
    assert await read(cluster) == ["tune-prepare"]
    assert await read(cluster, later[1]) == ["tune-prepare", "tune-train-3"], "it was heard of"


async def test_an_attempt_whose_status_was_lost_is_taken_up_and_not_made_again() -> None:
    failure = {"reason": "TrainerCrash", "message": "it broke", "attempt": 1, "retryable": True}
    body = trains(1, phase="Pending", failure=failure, failedAttempts=1)
    job = batch_job(attempt=2)
    cluster = Counting(body, PREPARED, batch_job(ended="Failed"), job)
    cluster.pod_bodies["pod"] = pod_of(job, phase="Running", state=running())
    await reconciler_of(cluster).reconcile(KEY)
    assert (cluster.status["attempt"], cluster.status["phase"]) == (2, "Running")
    assert (cluster.created, cluster.deleted) == ([], [])


async def test_a_job_that_an_earlier_finetunejob_of_that_name_left_is_waited_for() -> None:
    left = batch_job(uid="of-an-earlier-one")
    cluster = Counting(job_body(status={"phase": "Queued", "conditions": CONDITIONS}), PREPARED, left)
    assert await read(cluster) == ["tune-prepare", "tune-train-1"]
    await reconciler_of(cluster).reconcile(KEY)
    assert (cluster.created, cluster.deleted) == ([], [])
    ready = next(one for one in cluster.status["conditions"] if one["type"] == "Ready")
    assert "Job tune-train-1 of an earlier FineTuneJob" in ready["message"]


async def test_somebody_else_s_job_of_that_name_is_said_in_the_status_and_left_alone() -> None:
    foreign = batch_job()
    foreign["metadata"]["labels"] = {"app": "something-else"}
    cluster = Counting(job_body(status={"phase": "Queued", "conditions": CONDITIONS}), PREPARED, foreign)
    assert await read(cluster) == ["tune-prepare"]
    with pytest.raises(ApiError, match="belongs to somebody else"):
        await reconciler_of(cluster).reconcile(KEY)
    assert (cluster.created, cluster.deleted) == ([], [])
    ready = next(one for one in cluster.status["conditions"] if one["type"] == "Ready")
    assert "Job tune-train-1 exists and belongs to somebody else" in ready["message"]


@pytest.mark.parametrize("watched", [True, False])
async def test_a_copy_of_a_job_by_hand_is_no_attempt(watched: bool) -> None:
    copy = batch_job(attempt=5)
    copy["metadata"] |= {"name": "my-copy", "uid": "copy"}
    job = batch_job()
    cluster = Counting(trains(1), PREPARED, job, copy)
    cluster.pod_bodies["pod"] = pod_of(job, phase="Running", state=running())
    reconciler = reconciler_of(cluster, watched=watched)
    assert cluster.body is not None
    reconciler.saw_job(cluster.body)
    async for child in cluster.all_children():
        reconciler.saw_child(child)
    await reconciler.reconcile(KEY)
    assert (cluster.status["attempt"], cluster.status["phase"]) == (1, "Running")
    assert (cluster.created, cluster.deleted) == ([], [])


class Server(ApiClient):
    """Answers lists of pods, those of a version only after so many that its cache is too old for."""

    def __init__(self, refusals: int, code: int = 504) -> None:
        self.refusals, self.code = refusals, code
        self.asked: list[dict[str, Any]] = []

    async def request(self, method: str, path: str, *, query: dict[str, Any] | None = None, **_: Any) -> Body:
        assert (method, path) == ("GET", "/api/v1/namespaces/team/pods")
        query = query or {}
        self.asked.append(query)
        if "resourceVersion" in query and self.refusals:
            self.refusals -= 1
            raise ApiError(self.code, "Too large resource version", what="GET pods")
        items = [] if "fieldSelector" in query else [{"metadata": {"name": "pod"}}]
        return {"metadata": {"resourceVersion": "42"}, "items": items}


LABEL = f"{names.JOB_LABEL}=tune"
PROBE = {"fieldSelector": "metadata.name=tune-prepare"}
CACHED = {"labelSelector": LABEL, "resourceVersion": "42", "resourceVersionMatch": "NotOlderThan"}


async def test_pods_are_asked_for_no_older_than_they_were_at_the_call_and_without_a_limit() -> None:
    server = Server(refusals=1)
    assert [pod["metadata"]["name"] for pod in await Cluster(server).pods(*KEY)] == ["pod"]
    assert server.asked == [PROBE, CACHED, CACHED], "the same version: the cache comes to it"


async def test_where_the_cache_stays_behind_pods_are_read_from_etcd_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(refusals=CACHE_TRIES)
    with caplog.at_level(logging.WARNING):
        assert [pod["metadata"]["name"] for pod in await Cluster(server).pods(*KEY)] == ["pod"]
    assert server.asked[-1] == {"labelSelector": LABEL, "limit": 100}
    assert "Too large resource version" in caplog.text


async def test_another_refusal_is_no_matter_of_the_cache() -> None:
    server = Server(refusals=1, code=403)
    with pytest.raises(ApiError) as told:
        await Cluster(server).pods(*KEY)
    assert told.value.status == 403
    assert server.asked == [PROBE, CACHED]
