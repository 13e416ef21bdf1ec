"""Jobs that a queue starts, stops and starts again, by their ``suspend``."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from decisions import failed_attempt, go, later, made, prepared_pod, preparing, reason, said, told
from finetune_api.profile import TrainingProfileSpec
from finetune_api.reports import ProgressReport
from finetune_operator.core import manifests, names
from finetune_operator.core.decision import Decision
from finetune_operator.core.queueing import QUEUE_LABEL, held_jobs, why_held
from finetune_operator.core.reconcile import PREPARING
from finetune_operator.core.times import stamp
from operator_bodies import NOW, SETTINGS, at, batch_job, job_body, plan_of, pod_of, report, running, terminated

Body = dict[str, Any]
QUEUED = {"scheduling": {"queueName": "team"}}
SAVED = {"step": 40, "path": "checkpoints/checkpoint-40", "time": stamp(NOW)}


def child(attempt: int = 1, *, held: bool = True, queue: str = "team", **options: Any) -> Body:
    """A train Job of a queue."""
    job = batch_job(attempt=attempt, **options)
    job["spec"] = {"suspend": held}
    job["metadata"]["labels"][QUEUE_LABEL] = queue
    job["metadata"]["annotations"][names.QUEUE_ANNOTATION] = queue
    return job


def pod(number: int = 0, *, told: bool = False, state: Body | None = None, phase: str = "Running") -> Body:
    """The attempt's pod; each that the queue starts is a new one."""
    body = pod_of(batch_job(), phase=phase, state=state or {"running": {"startedAt": stamp(at(10 + 1000 * number))}})
    body["metadata"] |= {"name": f"tune-train-1-0-{number}", "uid": f"pod-{number}"}
    body["metadata"]["creationTimestamp"] = stamp(at(10 + 1000 * number))
    if told:
        body["metadata"]["deletionTimestamp"] = stamp(at(200 + 1000 * number))
    return body


def saved_pod(number: int = 0, code: int = 40) -> Body:
    """The pod after it was told to end."""
    last = report("train", code, message="told to end", checkpoint=SAVED)
    return pod(number, told=True, state=terminated(code, last, at_second=110), phase="Failed")


def queued() -> tuple[Body, Decision]:
    """A job of a queue whose first attempt was just made."""
    body = job_body(**QUEUED)
    body = later(body, go(body))
    job, ended = prepared_pod()
    decision = go(body, jobs=[job], pods=[ended])
    return later(body, decision), decision


def training() -> Body:
    body, _ = queued()
    return later(body, go(body, seconds=20, jobs=[child(held=False)], pods=[pod()]))


def requeued() -> Body:
    """A job whose training the queue stopped; its checkpoint is saved."""
    body = training()
    body = later(body, go(body, seconds=100, jobs=[child()], pods=[pod(told=True)]))
    return later(body, go(body, seconds=120, jobs=[child()], pods=[saved_pod()]))


def workload(*conditions: Body, **spec: Any) -> Body:
    """Kueue's, of the first attempt."""
    metadata = {"name": "job-tune-train-1-abc", "labels": {"kueue.x-k8s.io/job-uid": "job-tune-train-1"}}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": list(conditions)}}


def is_so(kind: str, status: str, message: str) -> Body:
    return {"type": kind, "status": status, "reason": "Pending", "message": message}


# -- what is made ----------------------------------------------------------------------------------------------


def test_a_training_job_of_a_queue_is_made_suspended_and_its_prepare_job_is_not() -> None:
    plan = plan_of(job_body(**QUEUED))
    job = manifests.train_job(plan, attempt=1, config="c", progress_url=SETTINGS.progress_url)
    assert (job["metadata"]["labels"][QUEUE_LABEL], job["spec"]["suspend"]) == ("team", True)
    assert QUEUE_LABEL not in job["spec"]["template"]["metadata"]["labels"], "the Job queues, not its pods"
    prepare = manifests.prepare_job(plan, config="c", progress_url=SETTINGS.progress_url)
    assert QUEUE_LABEL not in prepare["metadata"]["labels"]
    assert "suspend" not in prepare["spec"]


def test_an_administrator_may_queue_prepare_steps() -> None:
    profile = TrainingProfileSpec.model_validate({"prepare": {"queueName": "cpu"}})
    plan = plan_of(profile=profile)
    prepare = manifests.prepare_job(plan, config="c", progress_url=SETTINGS.progress_url)
    assert (prepare["metadata"]["labels"][QUEUE_LABEL], prepare["spec"]["suspend"]) == ("cpu", True)
    train = manifests.train_job(plan, attempt=1, config="c", progress_url=SETTINGS.progress_url)
    assert "suspend" not in train["spec"]


def test_priority_and_scheduler_reach_the_pods_of_both_steps() -> None:
    plan = plan_of(job_body(scheduling={"priorityClassName": "urgent", "schedulerName": "volcano"}))
    for job in (
        manifests.prepare_job(plan, config="c", progress_url=SETTINGS.progress_url),
        manifests.train_job(plan, attempt=1, config="c", progress_url=SETTINGS.progress_url),
    ):
        spec = job["spec"]["template"]["spec"]
        assert (spec["priorityClassName"], spec["schedulerName"]) == ("urgent", "volcano")


# -- a place in the queue --------------------------------------------------------------------------------------


def test_an_attempt_waits_for_its_place_with_the_queues_own_reason() -> None:
    body, launch = queued()
    assert (made(launch), launch.status.phase) == (["tune-train-1"], "Queued")
    assert "the LocalQueue team" in said(launch)
    full = workload(is_so("QuotaReserved", "False", "insufficient unused quota for nvidia.com/gpu, 2 more needed"))
    waits = go(body, seconds=500, jobs=[child()], workloads=[full])
    assert (waits.status.phase, reason(waits), waits.requeue_after) == ("Queued", "Queued", 15)
    assert "2 more needed." in said(waits)
    assert (waits.delete_jobs, waits.status.running_since, told(waits)) == ([], None, [])
    again = go(later(body, waits), seconds=9999, jobs=[child()], workloads=[full])
    assert again.status == waits.status, "nothing changed, so nothing is written"


def test_an_attempt_that_the_queue_starts_runs() -> None:
    body, _ = queued()
    released = go(body, seconds=900, jobs=[child(held=False)], pods=[pod_of(child(), phase="Pending")])
    assert (released.status.phase, said(released)) == ("Queued", "The training pod waits for a node.")
    runs = go(later(body, released), seconds=910, jobs=[child(held=False)], pods=[pod()])
    assert (runs.status.phase, told(runs)) == ("Running", [])


def test_a_running_attempt_whose_place_is_taken_back_saves_a_checkpoint_and_waits_again() -> None:
    body = training()
    preempted = workload(is_so("Evicted", "True", "Preempted to accommodate a workload (UID: 1)"))
    ending = go(body, seconds=100, jobs=[child()], pods=[pod(told=True)], workloads=[preempted])
    assert (ending.status.phase, reason(ending), ending.requeue_after) == ("Running", "Requeued", 5)
    assert (ending.delete_jobs, told(ending)) == ([], [])
    assert (ending.status.running_seconds, ending.status.running_since) == (90, None)
    body = later(body, ending)
    waits = go(body, seconds=120, jobs=[child()], pods=[saved_pod()], workloads=[preempted])
    assert (waits.status.phase, reason(waits), told(waits)) == ("Queued", "Queued", ["CheckpointSaved", "Requeued"])
    assert "Preempted to accommodate" in said(waits)
    (note,) = [note for note in waits.notes if note.reason == "Requeued"]
    assert "goes on from its checkpoint of step 40" in note.message
    assert (waits.status.failure, waits.status.failed_attempts, waits.status.disruptions) == (None, None, None)
    assert (waits.status.running_seconds, waits.status.attempt) == (90, 1)
    again = go(later(body, waits), seconds=5000, jobs=[child()], pods=[saved_pod()], workloads=[preempted])
    assert (again.status, told(again)) == (waits.status, [])


def test_the_same_attempt_goes_on_when_the_queue_starts_it_again() -> None:
    body = requeued()
    released = go(body, seconds=1005, jobs=[child(held=False)], pods=[saved_pod()])
    assert (released.status.phase, told(released)) == ("Queued", []), "the pod of before is no pod of now"
    assert released.status.running_since is None
    runs = go(later(body, released), seconds=1020, jobs=[child(held=False)], pods=[saved_pod(), pod(1)])
    assert (runs.status.phase, told(runs), made(runs)) == ("Running", [], [])
    assert (runs.status.running_seconds, runs.status.running_since) == (90, stamp(at(1010)))
    done = go(later(body, runs), seconds=1100, jobs=[child(held=False, ended="Complete", ended_at=1090)])
    assert (done.status.phase, done.status.attempt, done.status.running_seconds) == ("Succeeded", 1, 170)


def test_a_pod_that_still_ends_when_the_queue_has_started_the_job_again_is_no_start() -> None:
    body = requeued()
    decision = go(body, seconds=130, jobs=[child(held=False)], pods=[pod(told=True)])
    assert (decision.status.phase, told(decision), decision.status.running_since) == ("Queued", [], None)


def test_a_failure_after_a_preemption_is_that_of_the_pod_that_failed() -> None:
    body = requeued()
    body = later(body, go(body, seconds=1020, jobs=[child(held=False)], pods=[saved_pod(), pod(1)]))
    crashed = pod(1, state=terminated(24, report("train", 24, message="lost"), at_second=1100), phase="Failed")
    failed = child(held=False, ended="Failed", ended_at=1100)
    decision = go(body, seconds=1101, jobs=[failed], pods=[saved_pod(), crashed])
    assert decision.status.failure is not None
    assert (decision.status.failure.reason, decision.status.failed_attempts) == ("NCCLTimeout", 1)


def test_progress_that_comes_late_does_not_undo_the_last_word() -> None:
    body = requeued()
    late = ProgressReport.model_validate({"attempt": 1, "progress": {"step": 30, "totalSteps": 60}})
    assert go(body, seconds=130, jobs=[child()], pods=[saved_pod()], progress=late).status.to_dict() == body["status"]


def test_time_in_a_queue_is_no_running_time_and_no_stall() -> None:
    body = training()
    body["spec"]["runPolicy"] = {"activeDeadlineSeconds": 200, "stallTimeoutSeconds": 50}
    body = later(body, go(body, seconds=100, jobs=[child()], pods=[saved_pod()]))
    waits = go(body, seconds=1e6, jobs=[child()], pods=[saved_pod()])
    assert (waits.status.phase, waits.delete_jobs) == ("Queued", [])


def test_a_checkpoint_that_does_not_fit_the_volume_ends_the_job_in_its_queue() -> None:
    """The Job's own policy fails it, suspended or not."""
    job = child(ended="Failed", ended_at=110, reason="PodFailurePolicy")
    decision = go(training(), seconds=120, jobs=[job], pods=[saved_pod(code=20)])
    assert (decision.status.phase, reason(decision, "Failed")) == ("Failed", "VolumeFull")


def test_a_pod_on_a_lost_node_is_named_while_the_queue_takes_the_place_back() -> None:
    stuck = go(training(), seconds=900, jobs=[child()], pods=[pod(told=True)])
    assert (stuck.status.phase, reason(stuck), told(stuck)) == ("Running", "PodStuck", ["PodStuck"])


# -- its owner's wishes ----------------------------------------------------------------------------------------


def edited(body: Body, **spec: Any) -> Body:
    changed = copy.deepcopy(body)
    for field, value in spec.items():
        changed["spec"][field] = value
    changed["metadata"]["generation"] += 1
    return changed


def test_a_job_that_is_to_rest_leaves_its_queue() -> None:
    body, _ = queued()
    body = edited(body, runPolicy={"suspend": True})
    stop = go(body, jobs=[child()])
    assert stop.delete_jobs == ["tune-train-1"]
    held = go(later(body, stop))
    assert held.status.phase == "Suspended"
    again = go(edited(later(body, held), runPolicy={"suspend": False}), seconds=900)
    assert (made(again), again.status.phase) == (["tune-train-2"], "Queued")


@pytest.mark.parametrize("queue", ["other", None])
def test_an_attempt_that_waits_moves_when_its_queue_is_edited(queue: str | None) -> None:
    body, _ = queued()
    body = edited(body, scheduling={"queueName": queue} if queue else {})
    stop = go(body, seconds=60, jobs=[child()])
    assert (stop.delete_jobs, stop.status.phase, reason(stop)) == (["tune-train-1"], "Queued", "Moving")
    body = later(body, stop)
    again = go(body, seconds=61)
    assert (made(again), again.status.attempt, again.status.failed_attempts) == (["tune-train-2"], 2, None)
    (job,) = [item for item in again.apply if item["kind"] == "Job"]
    assert job["metadata"]["labels"].get(QUEUE_LABEL) == queue
    assert job["spec"].get("suspend") == (True if queue else None)


def test_an_attempt_that_runs_stays_where_it_is() -> None:
    body = edited(training(), scheduling={"queueName": "other"})
    decision = go(body, seconds=100, jobs=[child(held=False)], pods=[pod()])
    assert (decision.delete_jobs, decision.status.phase) == ([], "Running")
    failed = failed_attempt(at_second=100)
    body = later(body, go(body, seconds=120, **failed))
    again = go(body, seconds=200, **failed)
    (job,) = [item for item in again.apply if item["kind"] == "Job"]
    assert job["metadata"]["labels"][QUEUE_LABEL] == "other", "the next one goes there"


def test_a_queue_that_a_webhook_chose_is_no_move() -> None:
    """Kueue gives Jobs of a namespace with a default LocalQueue its name."""
    body = job_body()
    body = later(body, go(body))
    job, ended = prepared_pod()
    body = later(body, go(body, jobs=[job], pods=[ended]))
    defaulted = child(queue="default")
    defaulted["metadata"]["annotations"][names.QUEUE_ANNOTATION] = ""
    decision = go(body, seconds=60, jobs=[defaulted])
    assert (decision.delete_jobs, reason(decision)) == ([], "Queued")
    assert "the LocalQueue default" in said(decision)


def test_a_prepare_step_waits_in_a_queue_too() -> None:
    job = batch_job("prepare")
    job["spec"] = {"suspend": True}
    decision = go(preparing(), seconds=900, jobs=[job])
    assert (decision.status.phase, reason(decision), decision.requeue_after) == ("Preparing", "Queued", 15)
    assert "spec.suspend" in said(decision)
    job["spec"]["suspend"] = False
    runs = go(
        later(preparing(), decision), seconds=910, jobs=[job], pods=[pod_of(job, phase="Running", state=running())]
    )
    assert said(runs) == PREPARING


# -- the queue's words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workloads", "words"),
    [
        (None, "LocalQueue team."),
        ([], "Kueue is not installed, or does not manage batch/v1 Jobs"),
        ([workload()], "LocalQueue team."),
        (
            [workload(is_so("QuotaReserved", "False", "LocalQueue team doesn't exist"))],
            "LocalQueue team doesn't exist.",
        ),
        ([workload(is_so("QuotaReserved", "True", "reserved"))], "admission checks have yet to agree"),
        (
            [workload(is_so("Evicted", "True", "The workload is deactivated"), active=False)],
            "deactivated (spec.active)",
        ),
        ([workload(is_so("Evicted", "False", "of long ago"))], "LocalQueue team."),
    ],
)
def test_why_a_job_waits(workloads: list[Body] | None, words: str) -> None:
    assert why_held(child(), workloads, at(60)).endswith(words) or words in why_held(child(), workloads, at(60))
    assert "of long ago" not in why_held(child(), workloads, at(60))


def test_kueue_has_a_moment_to_take_a_job_up() -> None:
    assert why_held(child(), [], at(5)) == "It waits for its place in the LocalQueue team."


def test_workloads_are_read_of_jobs_that_wait_alone() -> None:
    ended = child(2, ended="Failed")
    assert held_jobs([child(), child(3, held=False), ended, batch_job(attempt=4)]) == ["job-tune-train-1"]
