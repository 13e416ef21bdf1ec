"""Rest, bounds and ends: what runPolicy asks for, decided from what the API server holds and the time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from decisions import (
    failed_attempt,
    go,
    kinds,
    later,
    made,
    prepared_pod,
    preparing,
    queued,
    reason,
    said,
    state,
    told,
    training,
)
from finetune_api.profile import TrainingProfileSpec
from finetune_api.reports import ProgressReport
from finetune_api.status import FineTuneJobStatus, Progress
from finetune_operator.core import lifecycle
from finetune_operator.core.decision import Decision
from finetune_operator.core.times import stamp
from operator_bodies import NOW, at, batch_job, job_body, pod_of, report, running, terminated

Body = dict[str, Any]
SAVED = {"step": 40, "path": "checkpoints/checkpoint-40", "time": stamp(NOW)}


def with_policy(body: Body, **policy: Any) -> Body:
    """``body`` once its owner has edited runPolicy."""
    changed = copy.deepcopy(body)
    changed["spec"].setdefault("runPolicy", {}).update(policy)
    changed["metadata"]["generation"] += 1
    return changed


def resting(body: Body) -> Body:
    return with_policy(body, suspend=True)


def resumed(body: Body) -> Body:
    return with_policy(body, suspend=False)


def live_pod(attempt: int = 1, *, ending: bool = False, due: float = 200) -> Body:
    """A pod that runs; one that was told to end has until ``due``, in seconds after NOW."""
    pod = pod_of(batch_job(attempt=attempt), phase="Running", state=running())
    if ending:
        pod["metadata"]["deletionTimestamp"] = stamp(at(due))
    return pod


def ended_pod(code: int = 40, attempt: int = 1, **parts: Any) -> Body:
    """A pod whose Job was deleted: what its trainer said last is remembered."""
    said = report("train", code, message="told to end", **parts)
    pod = pod_of(batch_job(attempt=attempt), phase="Failed", state=terminated(code, said))
    pod["metadata"]["deletionTimestamp"] = stamp(NOW)
    return pod


def stopping() -> Body:
    """A job that was told to rest while it trained; its Job is deleted by now."""
    body = resting(training())
    return later(body, go(body, seconds=100, jobs=[batch_job()], pods=[live_pod()]))


def at_rest() -> Body:
    body = stopping()
    return later(body, go(body, seconds=110, pods=[ended_pod(checkpoint=SAVED)]))


def run_of(decision: Decision) -> tuple[int | None, str | None]:
    return decision.status.running_seconds, decision.status.running_since


# -- suspension before training --------------------------------------------------------------------------------


def test_a_job_that_is_created_at_rest_is_judged_and_makes_nothing() -> None:
    decision = go(job_body(runPolicy={"suspend": True}))
    assert (kinds(decision), decision.delete_jobs, decision.status.phase) == ([], [], "Suspended")
    assert state(decision) == {
        "Accepted": "True",
        "Prepared": "False",
        "Suspended": "True",
        "Complete": "False",
        "Failed": "False",
        "Ready": "False",
        "Reconciling": "False",
        "Stalled": "False",
    }
    assert told(decision) == ["Suspended"]
    again = go(later(job_body(runPolicy={"suspend": True}), decision), seconds=9999)
    assert (again.status, told(again), again.requeue_after) == (decision.status, [], None)


def test_a_job_that_is_created_at_rest_and_breaks_a_rule_fails_at_once() -> None:
    decision = go(job_body(method={"lora": {}, "full": {}}, runPolicy={"suspend": True}))
    assert (decision.status.phase, reason(decision, "Failed")) == ("Failed", "SpecInvalid")


def test_a_job_that_never_began_begins_when_it_is_resumed() -> None:
    body = job_body(runPolicy={"suspend": True})
    begun = go(resumed(later(body, go(body))), seconds=500)
    assert (made(begun), begun.status.phase) == (["tune-prepare"], "Preparing")
    assert told(begun) == ["Resumed"]
    assert (state(begun)["Suspended"], reason(begun, "Suspended")) == ("False", "Resumed")


def test_a_profile_that_is_missing_is_no_failure_of_a_job_at_rest_and_has_its_grace_after() -> None:
    body = job_body(scheduling={"profile": "gold"}, runPolicy={"suspend": True})
    held = go(body, seconds=5000)
    assert (held.status.phase, state(held)["Accepted"]) == ("Suspended", "Unknown")
    assert "'gold'" in said(held)
    body = resumed(later(body, held))
    waits = go(body, seconds=6000)
    assert (waits.status.phase, reason(waits)) == ("Pending", "ProfileNotFound")
    assert go(later(body, waits), seconds=6061).status.phase == "Failed"
    assert made(go(later(body, waits), seconds=6030, profile=TrainingProfileSpec())) == ["tune-prepare"]


def test_a_prepare_step_is_stopped_and_made_anew() -> None:
    job = batch_job("prepare")
    pod = pod_of(job, phase="Running", state=running())
    body = resting(preparing())
    stop = go(body, jobs=[job], pods=[pod])
    assert (stop.delete_jobs, stop.status.phase, reason(stop, "Suspended")) == (
        ["tune-prepare"],
        "Preparing",
        "Suspending",
    )
    body = later(body, stop)
    ending = go(body, pods=[pod])
    assert (ending.delete_jobs, reason(ending), ending.requeue_after) == ([], "Suspending", 5)
    assert pod["metadata"]["name"] in said(ending)
    body = later(body, ending)
    held = go(body)
    assert (held.status.phase, reason(held, "Prepared"), told(held)) == ("Suspended", "Suspended", ["Suspended"])
    again = go(resumed(later(body, held)), seconds=60)
    assert (made(again), again.status.phase) == (["tune-prepare"], "Preparing")
    hasty = go(resumed(body), pods=[pod])
    assert (made(hasty), reason(hasty)) == ([], "Clearing"), "no two pods of a step at a time"


def test_a_prepare_job_that_is_being_deleted_is_waited_for_on_the_way_to_rest() -> None:
    job = batch_job("prepare")
    job["metadata"]["deletionTimestamp"] = stamp(NOW)
    decision = go(resting(preparing()), jobs=[job])
    assert (decision.delete_jobs, reason(decision, "Suspended")) == ([], "Suspending")


def test_what_is_prepared_when_rest_is_asked_for_is_kept() -> None:
    job, pod = prepared_pod()
    body = resting(preparing())
    held = go(body, jobs=[job], pods=[pod])
    assert (made(held), held.status.phase, state(held)["Prepared"]) == ([], "Suspended", "True")
    begun = go(resumed(later(body, held)), jobs=[job], pods=[pod])
    assert (made(begun), begun.status.attempt) == (["tune-train-1"], 1)


# -- suspension of training ------------------------------------------------------------------------------------


def test_training_that_is_to_rest_is_told_to_end_and_its_pods_are_waited_for() -> None:
    body = resting(training())
    stop = go(body, seconds=100, jobs=[batch_job()], pods=[live_pod()])
    assert (stop.delete_jobs, stop.status.phase, stop.status.suspended_attempt) == (["tune-train-1"], "Running", 1)
    assert (state(stop)["Suspended"], reason(stop, "Suspended"), told(stop)) == ("False", "Suspending", [])
    assert run_of(stop) == (100, None)
    body = later(body, stop)
    for jobs in ([], [batch_job() | {"metadata": batch_job()["metadata"] | {"deletionTimestamp": stamp(NOW)}}]):
        ending = go(body, seconds=105, jobs=jobs, pods=[live_pod(ending=True)])
        assert (ending.delete_jobs, ending.status.phase, reason(ending)) == ([], "Running", "Suspending")
        assert ending.requeue_after == 5


def test_rest_comes_when_the_pods_are_gone_and_says_where_training_goes_on() -> None:
    body = stopping()
    held = go(body, seconds=110, pods=[ended_pod(checkpoint=SAVED, progress={"step": 40, "totalSteps": 60})])
    assert (held.status.phase, state(held)["Suspended"], state(held)["Reconciling"]) == ("Suspended", "True", "False")
    assert "goes on from its checkpoint of step 40" in said(held, "Suspended")
    assert told(held) == ["CheckpointSaved", "Suspended"]
    assert held.status.progress is not None
    assert held.status.progress.display == "40/60 66%"
    assert (held.status.failure, held.status.failed_attempts, run_of(held)) == (None, None, (100, None))
    again = go(
        later(body, held), seconds=9999, pods=[ended_pod(checkpoint=SAVED, progress={"step": 40, "totalSteps": 60})]
    )
    assert (again.status, told(again), again.requeue_after) == (held.status, [], None)


def test_progress_that_comes_late_does_not_undo_the_last_word() -> None:
    body = at_rest()
    late = ProgressReport.model_validate({"attempt": 1, "progress": {"step": 30, "totalSteps": 60}})
    assert go(body, seconds=120, progress=late).status.to_dict() == body["status"]


def test_rest_before_the_first_checkpoint_says_so() -> None:
    assert "no checkpoint was saved yet" in said(go(stopping(), seconds=110), "Suspended")


def test_a_resumed_job_begins_its_next_attempt_and_nothing_is_counted() -> None:
    body = resumed(at_rest())
    again = go(body, seconds=5000)
    assert (made(again), again.status.attempt, again.status.phase) == (["tune-train-2"], 2, "Queued")
    assert (again.status.failed_attempts, again.status.disruptions) == (None, None)
    assert (again.status.suspended_attempt, told(again)) == (None, ["Resumed"])
    killed = go(body, seconds=5010, jobs=[batch_job(attempt=2)], pods=[live_pod(2)])
    assert (made(killed), killed.status.attempt, killed.status.phase) == ([], 2, "Running")
    assert killed.delete_jobs == [], "an operator that died before it wrote finds its attempt and keeps it"


def test_a_job_that_is_resumed_while_it_stops_waits_for_its_pods_and_goes_on() -> None:
    body = resumed(stopping())
    waits = go(body, seconds=105, pods=[live_pod(ending=True)])
    assert (made(waits), reason(waits), waits.requeue_after) == ([], "Clearing", 5)
    assert state(waits)["Suspended"] == "False"
    again = go(later(body, waits), seconds=110, pods=[ended_pod()])
    assert (made(again), again.status.failure) == (["tune-train-2"], None)


def test_an_operator_that_died_before_it_stopped_the_job_does_it_at_its_next_start() -> None:
    for body in (stopping(), resumed(stopping())):
        decision = go(body, seconds=300, jobs=[batch_job()], pods=[live_pod()])
        assert (decision.delete_jobs, made(decision)) == (["tune-train-1"], [])


def test_a_queued_attempt_is_taken_back() -> None:
    body = resting(queued())
    stop = go(body, jobs=[batch_job()], pods=[pod_of(batch_job())])
    assert (stop.delete_jobs, stop.status.phase, run_of(stop)) == (["tune-train-1"], "Queued", (None, None))
    held = go(later(body, stop))
    assert held.status.phase == "Suspended"


def test_training_that_ends_well_while_it_is_told_to_end_has_succeeded() -> None:
    body = stopping()
    decision = go(body, seconds=105, jobs=[batch_job(ended="Complete", ended_at=101)])
    assert (decision.status.phase, reason(decision, "Suspended")) == ("Succeeded", "Finished")
    assert state(decision)["Suspended"] == "False"


def test_a_job_that_rests_while_it_waits_to_try_again_tries_again_when_it_is_resumed() -> None:
    body = training()
    body = later(body, go(body, seconds=101, **failed_attempt(at_second=100)))
    body = resting(body)
    held = go(body, seconds=500, **failed_attempt(at_second=100))
    assert (made(held), held.status.phase, told(held)) == ([], "Suspended", ["Suspended"])
    assert "TrainerCrash" in said(held)
    again = go(resumed(later(body, held)), seconds=600, **failed_attempt(at_second=100))
    assert (made(again), again.status.failed_attempts) == (["tune-train-2"], 1)


def test_a_failure_while_rest_is_asked_for_is_counted_once() -> None:
    body = resting(training())
    failed = go(body, seconds=101, **failed_attempt(at_second=100))
    assert (failed.status.phase, failed.status.failed_attempts) == ("Suspended", 1)
    assert told(failed) == ["Retrying", "Suspended"]
    assert go(later(body, failed), seconds=101, **failed_attempt(at_second=100)).status.failed_attempts == 1


def test_a_checkpoint_that_does_not_fit_the_volume_fails_the_job_that_was_to_rest() -> None:
    decision = go(stopping(), seconds=110, pods=[ended_pod(20)])
    assert (decision.status.phase, reason(decision, "Failed")) == ("Failed", "VolumeFull")


def test_a_job_that_is_finished_does_not_come_to_rest() -> None:
    body = resting(training())
    body["status"]["phase"] = "Failed"
    decision = go(body, jobs=[batch_job(ended="Failed")])
    assert (decision.status.phase, decision.delete_jobs, told(decision)) == ("Failed", [], [])


# -- running time ----------------------------------------------------------------------------------------------


def test_the_running_time_begins_with_the_trainer_and_ends_with_its_job() -> None:
    body = queued()
    pod = pod_of(batch_job(), phase="Running", state={"running": {"startedAt": stamp(at(50))}})
    begun = go(body, seconds=80, jobs=[batch_job()], pods=[pod])
    assert run_of(begun) == (None, stamp(at(50)))
    failed = go(later(body, begun), seconds=500, **failed_attempt(at_second=110))
    assert run_of(failed) == (60, None)


@pytest.mark.parametrize(("node", "counted"), [(-300, 0), (300, 80)], ids=["behind", "ahead"])
def test_a_node_whose_clock_is_minutes_off_adds_no_minutes(node: float, counted: float) -> None:
    """Its kubelet says that the trainer started before its pod was made, or later than now."""
    body = with_policy(queued(), activeDeadlineSeconds=120)
    pod = pod_of(batch_job(), phase="Running", state={"running": {"startedAt": stamp(at(50 + node))}})
    begun = go(body, seconds=80, jobs=[batch_job()], pods=[pod])
    assert run_of(begun) == (None, stamp(at(counted)))
    assert begun.status.phase == "Running"


def test_an_attempt_that_came_and_went_while_nobody_looked_is_counted() -> None:
    observed = failed_attempt(at_second=90)
    observed["pods"][0]["status"]["containerStatuses"][0]["state"]["terminated"]["startedAt"] = stamp(at(60))
    assert run_of(go(queued(), seconds=400, **observed)) == (30, None)


def test_the_books_are_written_before_the_next_attempt_is_made() -> None:
    """Else a crash between the two would forget that the last one failed, and how long it ran."""
    body = training()
    first = go(body, seconds=900, **failed_attempt(at_second=100))
    assert (made(first), first.requeue_after, first.status.failed_attempts) == ([], 0, 1)
    second = go(later(body, first), seconds=900, **failed_attempt(at_second=100))
    assert (made(second), second.status.failed_attempts, run_of(second)) == (["tune-train-2"], 1, (100, None))


def bounded(seconds: int, **status: Any) -> Body:
    body = with_policy(training(), activeDeadlineSeconds=seconds)
    body["status"] |= status
    return body


def test_the_operator_looks_again_when_the_running_time_is_over() -> None:
    decision = go(bounded(300, runningSeconds=120), seconds=30, jobs=[batch_job()], pods=[live_pod()])
    assert (decision.status.phase, decision.requeue_after) == ("Running", 150)


def test_a_job_without_a_bound_runs_on() -> None:
    decision = go(training(), seconds=1e7, jobs=[batch_job()], pods=[live_pod()])
    assert (decision.status.phase, decision.requeue_after) == ("Running", None)


def over_time() -> tuple[Body, Decision]:
    body = bounded(300, runningSeconds=120)
    return body, go(body, seconds=180, jobs=[batch_job()], pods=[live_pod()])


def test_training_whose_time_is_over_saves_a_checkpoint_and_then_the_job_fails() -> None:
    body, stop = over_time()
    assert (stop.delete_jobs, stop.status.phase, reason(stop)) == (["tune-train-1"], "Running", "DeadlineExceeded")
    assert run_of(stop) == (300, None)
    body = later(body, stop)
    ending = go(body, seconds=185, pods=[live_pod(ending=True)])
    assert (ending.status.phase, ending.requeue_after, told(ending)) == ("Running", 5, [])
    failed = go(later(body, ending), seconds=200, pods=[ended_pod(checkpoint=SAVED)])
    assert (failed.status.phase, reason(failed, "Failed")) == ("Failed", "DeadlineExceeded")
    assert "runPolicy.activeDeadlineSeconds allows 5m00s" in said(failed, "Failed")
    assert failed.status.checkpoint is not None
    assert told(failed) == ["CheckpointSaved", "Failed"]


def test_an_operator_that_died_before_it_ended_the_job_does_it_at_its_next_start() -> None:
    body, stop = over_time()
    again = go(later(body, stop), seconds=400, jobs=[batch_job()], pods=[live_pod()])
    assert (again.delete_jobs, again.status.phase, again.status.failure) == (
        ["tune-train-1"],
        "Running",
        stop.status.failure,
    )


def test_training_that_ends_well_within_its_last_grace_has_succeeded() -> None:
    body, stop = over_time()
    decision = go(later(body, stop), seconds=185, jobs=[batch_job(ended="Complete", ended_at=182)])
    assert (decision.status.phase, decision.status.failure) == ("Succeeded", None)


def stalling(**more: Any) -> tuple[Body, Decision]:
    """A job whose training was last heard of after 30 seconds, and what is decided 100 seconds later."""
    body = with_policy(training(), stallTimeoutSeconds=100, **more)
    heard = ProgressReport(attempt=1, progress=Progress(step=7, total_steps=50, updated_at="2001-01-01T00:00:00Z"))
    body = later(body, go(body, seconds=30, jobs=[batch_job()], pods=[live_pod()], progress=heard))
    return body, go(body, seconds=130, jobs=[batch_job()], pods=[live_pod()])


class TestStall:
    """Training that takes no more steps."""

    def test_is_told_to_end_and_counts_as_a_failure(self) -> None:
        body, stop = stalling()
        assert go(body, seconds=129, jobs=[batch_job()], pods=[live_pod()]).requeue_after == 1
        assert (stop.delete_jobs, stop.status.phase, reason(stop)) == (["tune-train-1"], "Running", "Stalled")
        assert (stop.status.failed_attempts, told(stop)) == (1, ["Retrying"])
        assert stop.status.failure is not None
        assert "for 1m40s; the last one was 7" in stop.status.failure.message

    def test_is_followed_by_the_next_attempt_when_its_pods_are_gone(self) -> None:
        body, stop = stalling()
        body = later(body, stop)
        ending = go(body, seconds=140, jobs=[batch_job()], pods=[live_pod(ending=True)])
        assert (made(ending), reason(ending), told(ending)) == ([], "Stalled", [])
        again = go(later(body, ending), seconds=190, pods=[ended_pod(137)])
        assert (made(again), again.status.failed_attempts) == (["tune-train-2"], 1)

    def test_that_comes_again_and_again_ends_the_job(self) -> None:
        body, stop = stalling(backoffLimit=0)
        over = go(later(body, stop), seconds=190)
        assert (over.status.phase, reason(over, "Failed")) == ("Failed", "Stalled")

    def test_of_a_job_that_is_to_rest_is_no_obstacle(self) -> None:
        body, stop = stalling()
        rests = go(resting(later(body, stop)), seconds=190)
        assert (rests.status.phase, made(rests)) == ("Suspended", [])

    def test_is_none_where_the_operator_died_and_the_pods_are_heard_of_since(self) -> None:
        body, _ = stalling()
        heard = ProgressReport(attempt=1, progress=Progress(step=8, total_steps=50))
        goes_on = go(body, seconds=400, jobs=[batch_job()], pods=[live_pod()], progress=heard)
        assert (goes_on.delete_jobs, goes_on.status.phase) == ([], "Running")


def test_time_at_rest_in_queues_and_between_attempts_does_not_count() -> None:
    body = with_policy(at_rest(), activeDeadlineSeconds=150)
    assert go(body, seconds=1e6).status.phase == "Suspended"
    body = resumed(body)
    again = go(body, seconds=1e6)
    assert made(again) == ["tune-train-2"]
    body = later(body, again)
    waits = go(body, seconds=2e6, jobs=[batch_job(attempt=2)], pods=[pod_of(batch_job(attempt=2))])
    assert waits.status.phase == "Queued"
    pod = live_pod(2)
    pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] = stamp(at(2e6))
    runs = go(later(body, waits), seconds=2e6, jobs=[batch_job(attempt=2)], pods=[pod])
    assert (runs.status.phase, runs.requeue_after) == ("Running", 50)


def test_no_attempt_begins_when_the_time_is_used_up() -> None:
    body = with_policy(at_rest(), activeDeadlineSeconds=100, suspend=False)
    decision = go(body, seconds=500)
    assert (made(decision), decision.status.phase, reason(decision, "Failed")) == ([], "Failed", "DeadlineExceeded")


def test_a_bound_that_is_set_or_lifted_meanwhile_holds_at_once() -> None:
    body = bounded(5000)
    assert go(body, seconds=600, jobs=[batch_job()], pods=[live_pod()]).status.failure is None
    lowered = go(with_policy(body, activeDeadlineSeconds=500), seconds=600, jobs=[batch_job()], pods=[live_pod()])
    assert lowered.status.failure is not None
    assert lowered.status.failure.reason == "DeadlineExceeded"


# -- what counts -----------------------------------------------------------------------------------------------


def disrupted(attempt: int, why: str) -> Body:
    observed = failed_attempt(attempt, code=40)
    target = {"type": "DisruptionTarget", "status": "True", "reason": why, "message": "m"}
    observed["pods"][0]["status"]["conditions"].append(target)
    return observed


@pytest.mark.parametrize(
    "why", ["PreemptionByScheduler", "EvictionByEvictionAPI", "TerminationByKubelet", "DeletionByTaintManager"]
)
def test_what_the_cluster_did_is_retried_and_does_not_count(why: str) -> None:
    body = training(7)
    body["spec"]["runPolicy"] = {"backoffLimit": 0}
    body["status"]["disruptions"] = 6
    waits = go(body, seconds=101, **disrupted(7, why))
    assert (waits.status.phase, reason(waits), told(waits)) == ("Pending", "BackOff", ["Retrying"])
    assert (waits.status.failed_attempts, waits.status.disruptions) == (None, 7)
    assert "does not count as a retry" in waits.notes[0].message
    again = go(later(body, waits), seconds=1000, **disrupted(7, why))
    assert (made(again), again.status.disruptions) == (["tune-train-8"], 7)


def test_a_disruption_whose_pod_is_gone_is_known_from_its_job() -> None:
    body = training()
    body["spec"]["runPolicy"] = {"backoffLimit": 0}
    job = batch_job(ended="Failed", ended_at=100, reason="PodFailurePolicy")
    job["status"]["conditions"][0]["message"] = (
        "Pod team/tune-train-1-0-abcde has condition DisruptionTarget matching FailJob rule at index 0"
    )
    decision = go(body, seconds=101, jobs=[job])
    assert decision.status.failure is not None
    assert (decision.status.failure.reason, decision.status.phase) == ("Evicted", "Pending")


def test_a_pod_that_somebody_deleted_is_no_failure_of_the_job() -> None:
    observed = failed_attempt(code=40)
    observed["pods"][0]["metadata"]["deletionTimestamp"] = stamp(NOW)
    decision = go(with_policy(training(), backoffLimit=0), seconds=101, **observed)
    assert decision.status.failure is not None
    assert (decision.status.failure.reason, decision.status.phase) == ("PodDeleted", "Pending")
    assert (decision.status.failed_attempts, decision.status.disruptions) == (None, 1)


class TestAPodThatDoesNotEnd:
    """Its node is gone, and nobody says what it does."""

    def test_is_named_after_a_time_with_what_to_do(self) -> None:
        body = stopping()
        patient = go(body, seconds=259, pods=[live_pod(ending=True)])
        assert (reason(patient, "Suspended"), told(patient)) == ("Suspending", [])
        stuck = go(later(body, patient), seconds=261, pods=[live_pod(ending=True)])
        assert (stuck.status.phase, reason(stuck), reason(stuck, "Suspended")) == ("Running", "PodStuck", "PodStuck")
        assert "node node-1 does not confirm it" in said(stuck)
        assert "kubectl delete pod tune-train-1-0-abcde --force" in said(stuck)
        assert told(stuck) == ["PodStuck"]
        again = go(later(body, stuck), seconds=900, pods=[live_pod(ending=True)])
        assert (again.status, told(again), again.requeue_after) == (stuck.status, [], 5)

    def test_holds_up_the_next_attempt_too(self) -> None:
        observed = failed_attempt(at_second=100)
        observed["pods"].append(live_pod(ending=True))
        stuck = go(training(), seconds=400, **observed)
        assert (made(stuck), stuck.status.phase, reason(stuck)) == ([], "Pending", "PodStuck")

    def test_is_looked_at_again_while_training_runs(self) -> None:
        body = training()
        ending = go(body, seconds=100, jobs=[batch_job()], pods=[live_pod(ending=True)])
        assert (reason(ending), ending.requeue_after) == ("Ending", 15)
        stuck = go(later(body, ending), seconds=300, jobs=[batch_job()], pods=[live_pod(ending=True)])
        assert (stuck.status.phase, reason(stuck), told(stuck)) == ("Running", "PodStuck", ["PodStuck"])

    def test_is_no_matter_once_it_has(self) -> None:
        body = stopping()
        body = later(body, go(body, seconds=300, pods=[live_pod(ending=True)]))
        assert go(body, seconds=301, pods=[ended_pod()]).status.phase == "Suspended"


# -- deletion --------------------------------------------------------------------------------------------------


def backing_off() -> Body:
    body = training()
    return later(body, go(body, seconds=101, **failed_attempt(at_second=100)))


@pytest.mark.parametrize(
    "station", [preparing, queued, training, backing_off, stopping, at_rest], ids=lambda station: station.__name__
)
def test_a_job_that_is_deleted_is_left_to_the_garbage_collector_at_every_station(station: Callable[[], Body]) -> None:
    """Nothing is made any more; what is there is owned by the job, but for its claims."""
    body = station()
    body["metadata"]["deletionTimestamp"] = stamp(NOW)
    for job in ([], [batch_job(ended="Failed")]):
        decision = go(body, seconds=5000, jobs=job)
        assert (kinds(decision), decision.delete_jobs, told(decision), decision.requeue_after) == ([], (), [], None)
        assert decision.status.to_dict() == body["status"]


# -- the end of the resource -----------------------------------------------------------------------------------


def finished(phase: str = "Succeeded", **policy: Any) -> Body:
    status = {"phase": phase, "completionTime": stamp(at(100)), "conditions": []}
    return job_body(status=status, runPolicy=policy)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_job_is_deleted_when_its_time_to_live_is_over(phase: str) -> None:
    body = finished(phase, ttlSecondsAfterFinished=60)
    early = go(body, seconds=130)
    assert (early.delete_self, early.requeue_after) == (False, 30)
    for seconds in (160, 1e8):
        due = go(body, seconds=seconds)
        assert (due.delete_self, due.delete_jobs, kinds(due)) == (True, [], [])


def test_a_job_without_a_time_to_live_stays() -> None:
    decision = go(finished(), seconds=1e9)
    assert (decision.delete_self, decision.requeue_after) == (False, None)


def test_an_end_is_written_and_told_before_the_job_is_deleted() -> None:
    body = with_policy(training(), ttlSecondsAfterFinished=0)
    done = batch_job(ended="Complete", ended_at=10)
    end = go(body, seconds=5000, jobs=[done])
    assert (end.status.phase, end.delete_self, end.requeue_after) == ("Succeeded", False, 0)
    assert go(later(body, end), seconds=5000, jobs=[done]).delete_self


def test_a_job_that_is_not_finished_does_not_expire() -> None:
    body = with_policy(training(), ttlSecondsAfterFinished=0)
    decision = go(body, seconds=1e9, jobs=[batch_job()], pods=[live_pod()])
    assert (decision.delete_self, decision.requeue_after) == (False, None)


def test_a_time_to_live_beyond_all_calendars_is_no_error() -> None:
    body = finished(ttlSecondsAfterFinished=2**62)
    assert lifecycle.expires_in(body, FineTuneJobStatus.model_validate(body["status"]), NOW) == pytest.approx(2**62)
