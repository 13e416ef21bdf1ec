"""What the reconciler hears, keeps in mind and writes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_cluster import FakeCluster, World, lives_with_a_retry
from finetune_api.reports import ProgressReport
from finetune_api.status import Progress
from finetune_operator.cluster.errors import ApiError
from finetune_operator.core.settings import CoreSettings
from finetune_operator.reconciler import _SOON, GATHER_SECONDS, Reconciler
from operator_bodies import SETTINGS, batch_job, job_body, pod_of, report, terminated
from virtual_time import run_virtually

Body = dict[str, Any]
KEY = ("team", "tune")


def pair(body: Body | None, settings: CoreSettings = SETTINGS) -> tuple[FakeCluster, Reconciler, World]:
    cluster = FakeCluster(body)
    world = World(cluster, lives_with_a_retry())
    made = Reconciler(cluster, settings, authority=lambda: None, clock=world.clock)  # type: ignore[arg-type]
    return cluster, made, world


def due(reconciler: Reconciler) -> set[Any]:
    return set(reconciler.queue._waiting)


async def until_running(reconciler: Reconciler, world: World) -> None:
    for _ in range(10):
        await reconciler.reconcile(KEY)
        if world.cluster.status.get("phase") == "Running":
            return
        world.step()
    raise AssertionError(world.cluster.status)


def progress(step: int, attempt: int = 1) -> ProgressReport:
    return ProgressReport(attempt=attempt, progress=Progress(step=step, total_steps=100))


async def test_what_it_wrote_itself_does_not_wake_it() -> None:
    cluster, reconciler, _ = pair(job_body())
    await reconciler.reconcile(KEY)
    assert cluster.body is not None
    reconciler.saw_job(cluster.body)
    assert due(reconciler) == set()
    cluster.body["metadata"]["resourceVersion"] = "99"
    reconciler.saw_job(cluster.body)
    assert due(reconciler) == {KEY}


async def test_a_child_wakes_its_job_also_where_the_name_does_not_fit_a_label() -> None:
    _, reconciler, _ = pair(None)
    reconciler.saw_child(batch_job(name="a" * 200))
    reconciler.saw_child({"kind": "Pod", "metadata": {"name": "somebody's", "namespace": "team"}})
    assert due(reconciler) == {("team", "a" * 200)}


def test_what_the_watches_tell_of_its_pods_in_a_row_is_one_look_at_the_job() -> None:
    reconciler = Reconciler(FakeCluster(None), SETTINGS, authority=lambda: None, watched=True)  # type: ignore[arg-type]

    async def looks() -> list[float]:
        at: list[float] = []

        async def look(_: object) -> None:
            at.append(asyncio.get_running_loop().time())

        worker = asyncio.create_task(reconciler.queue.run(look, 1))
        reconciler.saw_job(job_body())
        await asyncio.sleep(10)
        for heard in ({"kind": "Job", **batch_job()}, pod_of(batch_job(), state=terminated(0))):
            reconciler.saw_child(heard)
            await asyncio.sleep(0.1)
        await asyncio.sleep(10)
        worker.cancel()
        return at

    assert run_virtually(looks()) == [0, 10 + GATHER_SECONDS]


async def test_a_job_that_is_gone_is_forgotten() -> None:
    cluster, reconciler, world = pair(job_body())
    await until_running(reconciler, world)
    reconciler.submit(KEY, progress(1))
    cluster.body = None
    assert await reconciler.reconcile(KEY) is None
    assert reconciler.known == {}
    assert reconciler._progress == {}
    assert await reconciler.job_known(KEY) is None


async def test_the_end_of_an_old_job_does_not_wipe_out_a_new_one_of_its_name() -> None:
    _, reconciler, _ = pair(None)
    reconciler.saw_job(job_body(uid="new"))
    reconciler.saw_job(job_body(uid="old"), deleted=True)
    assert reconciler.known[KEY].uid == "new"
    reconciler.saw_job(job_body(uid="new"), deleted=True)
    assert reconciler.known == {}


async def test_a_job_deleted_while_it_is_reconciled_is_no_error() -> None:
    cluster, reconciler, _ = pair(job_body())

    def delete(_number: int, what: str) -> None:
        if what == "patch status":
            cluster.body = None

    cluster.before_effect = delete
    await reconciler.reconcile(KEY)
    assert await reconciler.reconcile(KEY) is None
    assert cluster.notes == []


async def test_a_resync_looks_at_what_is_not_finished_and_at_what_is_news() -> None:
    cluster, reconciler, _ = pair(job_body(status={"phase": "Succeeded"}))
    await reconciler.resync()
    assert due(reconciler) == {KEY}, "not heard of before"
    reconciler.queue._waiting.clear()
    await reconciler.resync()
    assert due(reconciler) == set(), "finished, and nothing new"
    cluster.body = job_body(status={"phase": "Running"})
    await reconciler.resync()
    assert due(reconciler) == {KEY}
    reconciler.queue._waiting.clear()
    cluster.body = None
    await reconciler.resync()
    assert due(reconciler) == {KEY}, "known, and on the server no more"


@pytest.mark.parametrize(
    ("missed", "reads"),
    [(None, 0), ("a pod began", 1), ("a pod changed", 1), ("a Job is gone", 1), ("the job changed", 1)],
)
async def test_a_resync_reads_anew_what_the_watches_did_not_tell(missed: str | None, reads: int) -> None:
    cluster, first, world = pair(job_body())
    await until_running(first, world)
    assert cluster.body is not None
    heard = Reconciler(cluster, SETTINGS, authority=lambda: None, clock=world.clock, watched=True)  # type: ignore[arg-type]
    heard.saw_job(cluster.body)
    async for child in cluster.all_children():
        heard.saw_child(child)
    job = cluster.children["tune-train-1"]
    pod = next(iter(cluster.pod_bodies.values()))
    if missed == "a pod began":
        cluster.pod_bodies["other"] = {**pod, "metadata": {**pod["metadata"], "name": "other", "uid": "other"}}
    elif missed == "a pod changed":
        cluster.pod_bodies[pod["metadata"]["name"]]["status"]["reason"] = "Evicted"
    elif missed == "a Job is gone":
        del cluster.children[job["metadata"]["name"]]
    elif missed == "the job changed":
        cluster.body["status"]["phase"] = "Queued"
        cluster.body["metadata"]["resourceVersion"] += "0"
    read = 0
    whole = cluster.pods

    async def counted(namespace: str, name: str) -> list[Body]:
        nonlocal read
        read += 1
        return await whole(namespace, name)

    cluster.pods = counted  # type: ignore[method-assign]
    heard.queue._waiting.clear()
    await heard.resync()
    assert due(heard) == {KEY}
    await heard.reconcile(KEY)
    assert read == reads


async def test_the_last_word_of_a_pod_that_was_removed_is_remembered() -> None:
    cluster, reconciler, world = pair(job_body())
    await until_running(reconciler, world)
    job = batch_job(ended="Failed")
    text = report("train", 23, message="loss is nan at step 3")
    reconciler.saw_child(pod_of(job, phase="Failed", state=terminated(23, text)))
    cluster.pod_bodies.clear()
    cluster.children[job["metadata"]["name"]] = job
    await reconciler.reconcile(KEY)
    assert cluster.status["failure"]["reason"] == "NonFiniteLoss"


async def test_progress_is_written_at_most_once_an_interval() -> None:
    cluster, reconciler, world = pair(job_body())
    await until_running(reconciler, world)
    writes = len(cluster.status_patches)
    for step in range(1, 20):
        reconciler.submit(KEY, progress(step))
        due_in = await reconciler.reconcile(KEY)
    assert len(cluster.status_patches) == writes + 1
    assert cluster.status["progress"]["display"] == "1/100 1%"
    assert due_in == pytest.approx(SETTINGS.progress_interval, abs=5), "the newest one is not lost, only late"


async def test_late_progress_is_written_with_the_newest_value() -> None:
    quick = CoreSettings(trainer_image="i", progress_url="https://o", progress_interval=0.0)
    cluster, reconciler, world = pair(job_body(), quick)
    await until_running(reconciler, world)
    for step in (1, 2, 3):
        reconciler.submit(KEY, progress(step))
    await reconciler.reconcile(KEY)
    assert cluster.status["progress"]["step"] == 3
    assert reconciler._progress == {}


async def test_progress_survives_a_status_write_that_lost_to_another() -> None:
    cluster, reconciler, world = pair(job_body())
    await until_running(reconciler, world)
    reconciler.submit(KEY, progress(5))
    assert cluster.body is not None
    meta = cluster.body["metadata"]

    def edit(_number: int, what: str) -> None:
        if what == "patch status":
            cluster.before_effect = lambda _number, _what: None
            meta["resourceVersion"] = "777"
            cluster.status["observedGeneration"] = 0

    cluster.before_effect = edit
    assert await reconciler.reconcile(KEY) == _SOON
    assert "progress" not in cluster.status
    await reconciler.reconcile(KEY)
    assert cluster.status["progress"]["step"] == 5


@pytest.mark.parametrize(
    ("code", "phase", "events"), [(422, "Failed", ["Failed"]), (403, "Pending", []), (409, "Pending", [])]
)
async def test_what_the_server_will_not_have_is_said_in_the_status(code: int, phase: str, events: list[str]) -> None:
    cluster, reconciler, _ = pair(job_body())

    def refuse(_number: int, what: str) -> None:
        if what.startswith("apply Job"):
            raise ApiError(code, "the server's words", what="POST jobs")

    cluster.before_effect = refuse
    for _ in range(3):
        try:
            await reconciler.reconcile(KEY)
        except ApiError:
            assert phase == "Pending", "a wait comes again with the queue's growing delay"
    assert cluster.status["phase"] == phase
    ready = next(c for c in cluster.status["conditions"] if c["type"] == "Ready")
    assert "the server's words" in ready["message"]
    assert [note.reason for note in cluster.notes] == events
    assert len(cluster.status_patches) == 1


async def test_an_outage_of_the_server_changes_nothing_in_the_status() -> None:
    cluster, reconciler, _ = pair(job_body())

    def down(_number: int, _what: str) -> None:
        raise ApiError(0, "no answer", what="a call")

    cluster.before_effect = down
    with pytest.raises(ApiError):
        await reconciler.reconcile(KEY)
    assert cluster.status == {}
    text = reconciler.metrics.exposition().decode()
    assert "finetune_reconcile_errors_total 1.0" in text


async def test_metrics_count_phases_attempts_and_failures() -> None:
    _, reconciler, world = pair(job_body())
    for _ in range(12):
        await reconciler.reconcile(KEY)
        world.step()
    text = reconciler.metrics.exposition().decode()
    assert 'finetune_jobs{phase="Succeeded"} 1.0' in text
    assert "finetune_attempts_total 2.0" in text
    assert 'finetune_failures_total{reason="TrainerCrash"} 1.0' in text


async def test_a_job_that_was_edited_meanwhile_is_not_deleted_but_looked_at_again() -> None:
    status = {"phase": "Succeeded", "completionTime": "2026-05-01T12:00:00Z"}
    cluster, reconciler, world = pair(job_body(status=status, runPolicy={"ttlSecondsAfterFinished": 60}))
    assert await reconciler.reconcile(KEY) == pytest.approx(60)
    world.step(100)

    def keep(_number: int, what: str) -> None:
        if what == "delete itself":
            cluster.edit(ttlSecondsAfterFinished=1000)

    cluster.before_effect = keep
    assert await reconciler.reconcile(KEY) == pytest.approx(0.2)
    assert cluster.body is not None
    assert await reconciler.reconcile(KEY) == pytest.approx(900)
    cluster.edit(ttlSecondsAfterFinished=10)
    cluster.before_effect = lambda _number, _what: None
    await reconciler.reconcile(KEY)
    assert cluster.body is None
    assert "finetune_expired_jobs_total 1.0" in reconciler.metrics.exposition().decode()


async def test_suspensions_are_counted() -> None:
    cluster, reconciler, world = pair(job_body())
    await until_running(reconciler, world)
    cluster.edit(suspend=True)
    for _ in range(3):
        reconciler.submit(KEY, progress(5))
        await reconciler.reconcile(KEY)
        world.step()
    assert cluster.status["phase"] == "Suspended"
    assert reconciler._progress == {}, "what comes late is not waited for"
    assert "finetune_suspensions_total 1.0" in reconciler.metrics.exposition().decode()


async def test_an_operator_with_another_authority_publishes_it_for_pods_that_run_already() -> None:
    cluster, first, world = pair(job_body())
    await until_running(first, world)
    published = [item["data"] for item in cluster.applied if item["kind"] == "ConfigMap" and "ca.crt" in item["data"]]
    assert published == []
    second = Reconciler(cluster, SETTINGS, authority=lambda: "PEM", clock=world.clock)  # type: ignore[arg-type]
    for _ in range(3):
        await second.reconcile(KEY)
    published = [item["data"] for item in cluster.applied if item["kind"] == "ConfigMap" and "ca.crt" in item["data"]]
    assert published == [{"ca.crt": "PEM"}]


def changed_before_each_write(cluster: FakeCluster, change: Any, times: int) -> None:
    """Somebody else writes to the job just before each of the operator's first ``times`` writes of its status."""
    left = times

    def before(_number: int, what: str) -> None:
        nonlocal left
        if what == "patch status" and left:
            left -= 1
            assert cluster.body is not None
            meta = cluster.body["metadata"]
            meta["resourceVersion"] = str(int(meta["resourceVersion"]) + 1)
            change(cluster.body, left)

    cluster.before_effect = before


async def test_somebody_who_annotates_without_pause_does_not_keep_the_status_from_being_written() -> None:
    cluster, reconciler, _ = pair(job_body())

    def annotate(body: Body, left: int) -> None:
        body["metadata"].setdefault("annotations", {})["example.com/left"] = str(left)

    changed_before_each_write(cluster, annotate, 9)
    await reconciler.reconcile(KEY)
    assert cluster.status["phase"] == "Preparing"
    assert cluster.body is not None
    assert cluster.body["metadata"]["annotations"] == {"example.com/left": "0"}, "and theirs is kept"


@pytest.mark.parametrize("what", ["spec", "status"])
async def test_a_change_that_decisions_depend_on_is_decided_anew(what: str) -> None:
    cluster, reconciler, _ = pair(job_body())

    def edit(body: Body, _left: int) -> None:
        if what == "spec":
            body["spec"].setdefault("runPolicy", {})["suspend"] = True
        else:
            body["status"] = {"phase": "Failed", "observedGeneration": 1}

    changed_before_each_write(cluster, edit, 1)
    assert await reconciler.reconcile(KEY) == _SOON
    assert (cluster.status_patches, cluster.notes) == ([], [])
    await reconciler.reconcile(KEY)
    assert cluster.status["phase"] == ("Pending" if what == "spec" else "Failed")
    assert cluster.deleted == ["tune-prepare"], "whose Job was made before the write was lost"
