"""A job's life, decided from nothing but what the API server holds."""

from __future__ import annotations

import json
from dataclasses import replace
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
from finetune_api.status import Progress
from finetune_operator.core.decision import Decision
from finetune_operator.core.effects import LOOK_AGAIN
from finetune_operator.core.reconcile import needs_profile, needs_template, refuse
from finetune_operator.core.settings import retry_delay
from finetune_operator.core.times import stamp
from operator_bodies import (
    NOW,
    SETTINGS,
    at,
    batch_job,
    event_of,
    job_body,
    pod_of,
    report,
    running,
    terminated,
    waiting,
)
from template_cases import chat_template

Body = dict[str, Any]


# -- taking up -------------------------------------------------------------------------------------------------


def test_a_new_job_is_accepted_and_its_prepare_job_made_last_of_all() -> None:
    decision = go(job_body())
    assert [kind.split()[0] for kind in kinds(decision)] == [
        "PersistentVolumeClaim",
        "PersistentVolumeClaim",
        "ConfigMap",
        "Job",
    ]
    assert made(decision) == ["tune-prepare"]
    assert decision.status.phase == "Preparing"
    assert told(decision) == []
    assert state(decision) == {
        "Accepted": "True",
        "Prepared": "False",
        "Complete": "False",
        "Failed": "False",
        "Ready": "False",
        "Reconciling": "True",
        "Stalled": "False",
    }
    assert (decision.status.method, decision.status.gpus, decision.status.observed_generation) == ("lora", 0, 1)
    assert decision.status.start_time == stamp(NOW)
    assert decision.status.attempt is None


def test_a_job_that_breaks_a_rule_fails_at_once_and_makes_nothing() -> None:
    decision = go(job_body(method={"lora": {}, "full": {}}))
    assert kinds(decision) == []
    assert decision.status.phase == "Failed"
    assert decision.status.failure is not None
    assert decision.status.failure.reason == "SpecInvalid"
    assert "spec.method" in decision.status.failure.message
    assert state(decision)["Accepted"] == "False"
    assert state(decision)["Stalled"] == "True"
    assert told(decision) == ["Failed"]


def test_a_rule_that_came_later_does_not_end_a_job_that_was_taken_up() -> None:
    body = training()
    body["spec"]["method"] = {"lora": {"dora": True}}  # refused at acceptance: not supported yet
    job = batch_job()
    decision = go(body, jobs=[job], pods=[pod_of(job, phase="Running", state=running())])
    assert decision.status.phase == "Running"


def test_a_missing_profile_has_a_time_of_grace_and_then_ends_the_job() -> None:
    body = job_body(scheduling={"profile": "gold"})
    waits = go(body, seconds=5)
    assert (waits.status.phase, reason(waits), state(waits)["Accepted"]) == ("Pending", "ProfileNotFound", "Unknown")
    assert waits.requeue_after == 15
    assert kinds(waits) == []
    body = later(body, waits)
    assert needs_profile(body)
    over = go(body, seconds=60)
    assert over.status.failure is not None
    assert over.status.failure.reason == "ProfileNotFound"
    assert "'gold'" in over.status.failure.message
    assert state(over)["Accepted"] == "False"
    assert kinds(go(body, seconds=30, profile=TrainingProfileSpec())) != []


class TestUnsloth:
    """A job that wants it."""

    body = job_body(acceleration={"unsloth": True}, distributed={"gpusPerNode": 1})
    settings = replace(SETTINGS, unsloth_image="registry/trainer-unsloth:1")

    @staticmethod
    def image(decision: Decision) -> str:
        job = next(item for item in decision.apply if item["kind"] == "Job")
        image: str = job["spec"]["template"]["spec"]["containers"][0]["image"]
        return image

    def test_runs_the_image_that_has_it(self) -> None:
        assert self.image(go(self.body, settings=self.settings)) == "registry/trainer-unsloth:1"
        assert self.image(go(job_body(), settings=self.settings)) == "registry/trainer:1"

    def test_runs_the_image_of_its_profile(self) -> None:
        profile = TrainingProfileSpec.model_validate({"image": {"repository": "registry/own:1"}})
        assert self.image(go(self.body, settings=self.settings, profile=profile)) == "registry/own:1"
        assert self.image(go(self.body, profile=profile)) == "registry/own:1"

    def test_is_refused_with_what_to_do_where_there_is_no_such_image(self) -> None:
        decision = go(self.body)
        assert decision.status.failure is not None
        assert decision.status.failure.reason == "AccelerationUnavailable"
        for named in ("spec.acceleration.unsloth", "trainer.unslothImage", "TrainingProfile", "docs/unsloth.md"):
            assert named in decision.status.failure.message
        assert kinds(decision) == []

    def test_keeps_its_image_when_the_setting_goes(self) -> None:
        body = later(self.body, go(self.body, settings=self.settings))
        assert self.image(go(body)) == "registry/trainer-unsloth:1"


class TestChatTemplate:
    """A job that names one."""

    body = job_body(template={"ref": "mine"})

    def test_that_is_missing_has_a_time_of_grace(self) -> None:
        waits = go(self.body, seconds=5)
        assert (waits.status.phase, reason(waits)) == ("Pending", "ChatTemplateNotFound")
        assert needs_template(later(self.body, waits)) == "mine"
        over = go(later(self.body, waits), seconds=60)
        assert over.status.failure is not None
        assert over.status.failure.reason == "ChatTemplateNotFound"
        assert "no ChatTemplate 'mine' in the namespace 'team'" in over.status.failure.message

    def test_is_copied_and_a_later_edit_changes_nothing(self) -> None:
        first = go(self.body, chat_template=chat_template())
        body = later(self.body, first)
        assert needs_template(body) is None
        again = go(body, chat_template=chat_template(stopWords=["</s>"], formatAssistant=["{{content}}</s>"]))
        assert again.status.config_hash == first.status.config_hash
        (config,) = [item for item in again.apply if item["kind"] == "ConfigMap" and "config.json" in item["data"]]
        assert json.loads(config["data"]["config.json"])["chatTemplate"]["stopWords"] == ["<|end|>"]

    def test_that_cannot_work_ends_the_job_by_field(self) -> None:
        over = go(self.body, chat_template=chat_template(thoughtWords=["<think>"]))
        assert over.status.failure is not None
        assert over.status.failure.reason == "TemplateInvalid"
        assert "'mine': spec.thoughtWords: must be two" in over.status.failure.message

    def test_that_fits_no_status_is_refused(self) -> None:
        over = go(self.body, chat_template=chat_template(formatPrefix=["x" * 16000, "y" * 1000]))
        assert over.status.failure is not None
        assert over.status.failure.reason == "NotAllowed"


def test_what_the_profile_forbids_is_refused_without_grace() -> None:
    decision = go(job_body(model={"source": "hf://org/m", "trustRemoteCode": True}))
    assert decision.status.failure is not None
    assert decision.status.failure.reason == "NotAllowed"


def test_the_profile_is_copied_and_a_later_edit_changes_nothing() -> None:
    body = job_body()
    first = go(body, profile=TrainingProfileSpec.model_validate({"environment": {"A": "1"}}))
    body = later(body, first)
    assert not needs_profile(body)
    again = go(body, profile=TrainingProfileSpec.model_validate({"environment": {"A": "2"}}))
    (job,) = [item for item in again.apply if item["kind"] == "Job"]
    assert {"name": "A", "value": "1"} in job["spec"]["template"]["spec"]["containers"][0]["env"]
    assert again.status.config_hash == first.status.config_hash


def test_nothing_is_done_for_a_job_that_is_being_deleted() -> None:
    body = training()
    body["metadata"]["deletionTimestamp"] = stamp(NOW)
    decision = go(body)
    assert (kinds(decision), decision.delete_jobs, told(decision)) == ([], (), [])
    assert decision.status.to_dict() == body["status"]


def test_a_job_of_an_earlier_finetunejob_of_that_name_is_waited_for() -> None:
    decision = go(job_body(), jobs=[batch_job("prepare", uid="other")])
    assert made(decision) == []
    assert (decision.status.phase, reason(decision)) == ("Pending", "Clearing")
    assert decision.requeue_after == 5
    assert told(decision) == []


# -- prepare ---------------------------------------------------------------------------------------------------


def test_a_prepare_job_that_is_there_is_not_made_again() -> None:
    job = batch_job("prepare")
    decision = go(preparing(), jobs=[job], pods=[pod_of(job, phase="Running", state=running())])
    assert kinds(decision) == []
    assert decision.status.phase == "Preparing"
    assert told(decision) == []


def test_a_retry_of_the_prepare_step_is_told_in_the_condition() -> None:
    job = batch_job("prepare")
    gone = pod_of(job, phase="Failed", state=terminated(25, report("prepare", 25, message="the hub is away")))
    decision = go(preparing(), jobs=[job], pods=[gone])
    assert decision.status.phase == "Preparing"
    assert "tried again after HubUnreachable: the hub is away" in said(decision, "Prepared")


def test_a_prepare_job_that_failed_ends_the_job_and_no_training_pod_was_made() -> None:
    job = batch_job("prepare", ended="Failed", reason="PodFailurePolicy")
    text = report("prepare", 15, message="rows.jsonl:3: no answer", rank=0, logTail="Traceback")
    decision = go(preparing(), jobs=[job], pods=[pod_of(job, phase="Failed", state=terminated(15, text))])
    failure = decision.status.failure
    assert failure is not None
    assert (decision.status.phase, failure.reason, failure.attempt) == ("Failed", "DatasetInvalid", 0)
    assert (failure.message, failure.exit_code, failure.log_tail) == ("rows.jsonl:3: no answer", 15, "Traceback")
    assert (state(decision)["Failed"], reason(decision, "Failed")) == ("True", "DatasetInvalid")
    assert (made(decision), decision.delete_jobs) == ([], [])


def test_a_prepare_job_that_fails_by_its_own_policy_keeps_its_pod_for_the_log() -> None:
    job = batch_job("prepare")
    decision = go(preparing(), jobs=[job], pods=[pod_of(job, phase="Failed", state=terminated(15))])
    assert (decision.status.phase, decision.delete_jobs) == ("Preparing", [])


def test_a_prepare_pod_that_no_retry_can_mend_is_stopped() -> None:
    job = batch_job("prepare")
    dead = pod_of(job, phase="Failed", state=terminated(137, reason="OOMKilled"))
    decision = go(preparing(), jobs=[job], pods=[dead])
    assert decision.status.failure is not None
    assert decision.status.failure.reason == "OOMKilled"
    assert decision.delete_jobs == ["tune-prepare"]


def test_a_prepare_job_that_is_deleted_by_hand_is_made_anew() -> None:
    job = batch_job("prepare")
    job["metadata"]["deletionTimestamp"] = stamp(NOW)
    going = go(preparing(), jobs=[job])
    assert (kinds(going), reason(going)) == ([], "Clearing")
    gone = go(later(preparing(), going))
    assert made(gone) == ["tune-prepare"]
    assert told(gone) == []


def test_a_secret_that_is_missing_is_borne_for_a_while() -> None:
    body = job_body(model={"source": "hf://org/m", "secretRef": {"name": "hub", "key": "t"}})
    body = later(body, go(body))
    job = batch_job("prepare")
    held = waiting("CreateContainerConfigError", 'secret "hub" not found')
    pods = [pod_of(job, state=held)]
    waits = go(body, seconds=30, jobs=[job], pods=pods)
    assert (waits.status.phase, reason(waits)) == ("Preparing", "SecretNotFound")
    assert f"fails at {stamp(at(60))}" in said(waits)
    over = go(body, seconds=60, jobs=[job], pods=pods)
    assert over.status.failure is not None
    assert over.status.failure.message.startswith("The Secret hub that spec.model.secretRef names")
    assert over.delete_jobs == ["tune-prepare"], "nothing may go on running for a job that failed"


# -- training --------------------------------------------------------------------------------------------------


def test_training_begins_when_prepare_is_complete() -> None:
    job, pod = prepared_pod()
    decision = go(preparing(), jobs=[job], pods=[pod])
    assert kinds(decision) == ["Job tune-train-1"], "what the prepare step had is there, and one pod seeks no other"
    assert (decision.status.phase, decision.status.attempt) == ("Queued", 1)
    assert decision.status.dataset is not None
    assert decision.status.dataset.samples == 12
    assert state(decision)["Prepared"] == "True"
    assert "12 samples" in said(decision, "Prepared")
    assert told(decision) == []


def test_a_lost_report_of_prepare_stops_nothing() -> None:
    decision = go(preparing(), jobs=[batch_job("prepare", ended="Complete")])
    assert made(decision) == ["tune-train-1"]


def test_a_waiting_training_pod_says_why() -> None:
    job = batch_job()
    pod = pod_of(job)
    pod["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available."}
    ]
    decision = go(queued(), jobs=[job], pods=[pod])
    assert (decision.status.phase, reason(decision), decision.requeue_after) == ("Queued", "Unschedulable", 15)
    assert "0/1 nodes are available." in said(decision)


def test_events_of_a_pod_are_part_of_the_reason() -> None:
    job = batch_job()
    pod = pod_of(job, state=waiting("ContainerCreating"))
    events = [event_of(pod, "FailedMount", "timed out waiting for the condition")]
    decision = go(queued(), seconds=30, jobs=[job], pods=[pod], events=events)
    assert reason(decision) == "VolumeNotBound"


def test_a_running_pod_is_told_once() -> None:
    job = batch_job()
    observed: Body = {"jobs": [job], "pods": [pod_of(job, phase="Running", state=running())]}
    first = go(queued(), **observed)
    assert (first.status.phase, told(first), first.requeue_after) == ("Running", [], None)
    second = go(later(queued(), first), seconds=50, **observed)
    assert told(second) == []
    assert second.status == first.status, "nothing changed, so nothing is written"


def test_a_pod_so_quick_that_nobody_saw_it_run_counts_as_started() -> None:
    job = batch_job()
    decision = go(queued(), jobs=[job], pods=[pod_of(job, phase="Succeeded", state=terminated(0))])
    assert decision.status.phase == "Running"


def test_a_pod_that_is_told_to_end_is_waited_for() -> None:
    job = batch_job()
    pod = pod_of(job, phase="Running", state=running())
    pod["metadata"]["deletionTimestamp"] = stamp(NOW)
    decision = go(training(), jobs=[job], pods=[pod])
    assert (decision.status.phase, reason(decision)) == ("Running", "Ending")
    assert made(decision) == []


def test_progress_and_a_new_checkpoint_reach_the_status() -> None:
    body = training()
    job = batch_job()
    observed: Body = {"jobs": [job], "pods": [pod_of(job, phase="Running", state=running())]}
    saved = {"step": 10, "path": "checkpoints/step-10", "time": stamp(NOW)}
    body_of = {"step": 12, "totalSteps": 60, "loss": 1.5, "etaSeconds": 80}
    progress = ProgressReport.model_validate({"attempt": 1, "progress": body_of, "checkpoint": saved})
    decision = go(body, progress=progress, **observed)
    shown = decision.status.progress
    assert shown is not None
    assert (shown.display, shown.eta, shown.percent) == ("12/60 20%", "1m20s", 20)
    assert told(decision) == ["CheckpointSaved"]
    assert told(go(later(body, decision), progress=progress, **observed)) == [], "the same checkpoint is no news"


def test_progress_of_an_attempt_that_is_over_is_dropped() -> None:
    job = batch_job(attempt=2)
    stale = ProgressReport(attempt=1, progress=Progress(step=9, total_steps=10))
    observed: Body = {"jobs": [job], "pods": [pod_of(job, phase="Running", state=running())]}
    assert go(training(2), progress=stale, **observed).status.progress is None


# -- retries ---------------------------------------------------------------------------------------------------


def test_a_failed_attempt_waits_its_back_off_and_then_the_next_is_made() -> None:
    body = training()
    early = go(body, seconds=104, **failed_attempt(at_second=100))
    assert (early.status.phase, reason(early), made(early)) == ("Pending", "BackOff", [])
    assert early.requeue_after == pytest.approx(6)
    assert told(early) == ["Retrying"]
    assert early.status.failure is not None
    assert early.status.failure.reason == "TrainerCrash"
    assert f"Attempt 2 starts at {stamp(at(110))}" in said(early)
    assert "Attempt 2 follows, retry 1 of 3." in early.notes[0].message
    assert early.status.failed_attempts == 1
    body = later(body, early)
    again = go(body, seconds=105, **failed_attempt(at_second=100))
    assert (told(again), again.status.conditions) == ([], early.status.conditions)
    due = go(body, seconds=110, **failed_attempt(at_second=100))
    assert (due.status.phase, due.status.attempt, made(due), told(due)) == ("Queued", 2, ["tune-train-2"], [])


def test_the_back_off_doubles_up_to_its_cap() -> None:
    assert [retry_delay(n, SETTINGS) for n in (1, 2, 3, 6, 7, 100)] == [10, 20, 40, 320, 360, 360]


def test_a_cause_that_no_retry_mends_ends_the_job_at_the_first_attempt() -> None:
    decision = go(training(), **failed_attempt(code=22, message=report("train", 22, message="needs 20 GiB")))
    assert decision.status.failure is not None
    assert (decision.status.phase, decision.status.failure.reason) == ("Failed", "CudaOutOfMemory")
    assert decision.status.completion_time is not None
    assert told(decision) == ["Failed"]


@pytest.mark.parametrize(("limit", "attempt", "phase"), [(0, 1, "Failed"), (1, 1, "Pending"), (1, 2, "Failed")])
def test_attempts_are_limited(limit: int, attempt: int, phase: str) -> None:
    body = training(attempt)
    body["status"]["failedAttempts"] = attempt - 1
    body["spec"]["runPolicy"] = {"backoffLimit": limit}
    assert go(body, seconds=100, **failed_attempt(attempt, at_second=100)).status.phase == phase


def test_no_attempt_begins_while_a_pod_of_the_last_may_still_write() -> None:
    observed = failed_attempt(at_second=0)
    hung = pod_of(batch_job(attempt=1), phase="Running", state=running())
    observed["pods"].append(hung)
    decision = go(training(), seconds=500, **observed)
    assert (made(decision), reason(decision), decision.requeue_after) == ([], "Clearing", 5)
    assert hung["metadata"]["name"] in said(decision)


def test_a_train_job_deleted_by_hand_costs_one_attempt() -> None:
    body = training()
    first = go(body, seconds=100)
    assert first.status.failure is not None
    assert (first.status.failure.reason, reason(first)) == ("PodDeleted", "BackOff")
    second = go(later(body, first), seconds=111)
    assert (made(second), second.status.attempt) == (["tune-train-2"], 2)


def test_a_train_job_that_is_being_deleted_is_waited_for() -> None:
    job = batch_job()
    job["metadata"]["deletionTimestamp"] = stamp(NOW)
    decision = go(training(), jobs=[job])
    assert (made(decision), reason(decision)) == ([], "Clearing")


def test_the_number_of_an_attempt_that_the_status_does_not_know_is_not_used_again() -> None:
    body = training(1)
    job = batch_job(attempt=2)
    observed: Body = {"jobs": [batch_job(attempt=1, ended="Failed"), job]}
    decision = go(body, seconds=900, pods=[pod_of(job, phase="Running", state=running())], **observed)
    assert (decision.status.attempt, decision.status.phase, made(decision)) == (2, "Running", [])


def test_what_was_recorded_of_a_failure_stays_when_its_pod_is_gone() -> None:
    body = training()
    first = go(body, seconds=101, **failed_attempt(code=25, message=report("train", 25, message="hub away")))
    bare = failed_attempt()["jobs"]
    second = go(later(body, first), seconds=102, jobs=bare)
    assert second.status.failure == first.status.failure


def test_the_last_progress_is_kept_when_an_attempt_ends_without_a_word() -> None:
    job = batch_job(ended="Failed", ended_at=100)
    dead = pod_of(job, phase="Failed", state=terminated(137, reason="OOMKilled"))
    progress = ProgressReport(attempt=1, progress=Progress(step=7, total_steps=10, loss=1.0))
    decision = go(training(), seconds=101, jobs=[job], pods=[dead], progress=progress)
    assert decision.status.phase == "Failed"
    assert decision.status.progress is not None
    assert decision.status.progress.display == "7/10 70%"


# -- ends ------------------------------------------------------------------------------------------------------


def succeeded(**report_parts: Any) -> tuple[Body, Decision]:
    body = training()
    body["status"]["progress"] = {"step": 50, "totalSteps": 60, "percent": 83, "initialEvalLoss": 2.5, "display": "x"}
    job = batch_job(ended="Complete", ended_at=100)
    parts = {"progress": {"step": 60, "totalSteps": 60, "loss": 0.4, "evalLoss": 0.6}, **report_parts}
    text = report("train", output={"path": "adapter", "digest": "sha256:ab"}, **parts)
    decision = go(body, seconds=200, jobs=[job], pods=[pod_of(job, phase="Succeeded", state=terminated(0, text))])
    return body, decision


def test_success_says_where_the_result_is_and_keeps_progress() -> None:
    _, decision = succeeded(samples=[{"prompt": "p", "before": "b", "after": "a"}])
    status = decision.status
    assert (status.phase, status.completion_time, status.failure) == ("Succeeded", stamp(at(100)), None)
    assert status.output is not None
    assert status.output.uri == "pvc://tune-output/tune-0f9d1c2e/adapter"
    assert status.output.digest == "sha256:ab"
    assert status.progress is not None
    assert (status.progress.display, status.progress.eval_loss) == ("60/60 100%", 0.6)
    assert status.progress.initial_eval_loss == 2.5, "measured once at the start, and still known at the end"
    assert [sample.after for sample in status.samples] == ["a"]
    assert told(decision) == ["Succeeded"]
    assert state(decision) == {
        "Accepted": "True",
        "Prepared": "True",
        "Complete": "True",
        "Failed": "False",
        "Ready": "True",
        "Reconciling": "False",
        "Stalled": "False",
    }


def test_success_clears_the_failure_of_an_earlier_attempt() -> None:
    body = training(2)
    body["status"]["failure"] = {"reason": "NodeLost", "message": "m", "attempt": 1, "retryable": True}
    decision = go(body, jobs=[batch_job(attempt=2, ended="Complete")])
    assert (decision.status.phase, decision.status.failure) == ("Succeeded", None)
    assert decision.status.output is not None
    assert decision.status.output.uri == "pvc://tune-output/tune-0f9d1c2e", "no report: the job's own directory"


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
@pytest.mark.parametrize(
    "observed",
    [
        {},
        {"jobs": [batch_job(ended="Failed")]},
        {"jobs": [batch_job(attempt=3)]},
        {"jobs": [batch_job("prepare", ended="Complete")]},
    ],
    ids=["children gone", "failed child", "running child", "prepare alone"],
)
def test_an_end_is_final_whatever_becomes_of_the_children(phase: str, observed: Body) -> None:
    body, decision = succeeded()
    body = later(body, decision, phase=phase)
    after = go(body, seconds=9999, **observed)
    assert (kinds(after), told(after)) == ([], [])
    assert after.status.to_dict() == body["status"]
    assert after.delete_jobs == (
        ["tune-train-3"] if any("active" in j["status"] for j in observed.get("jobs", ())) else []
    )


def test_a_new_generation_is_noted_on_a_finished_job() -> None:
    body, decision = succeeded()
    body = later(body, decision)
    body["metadata"]["generation"] = 2
    after = go(body).status
    assert after.observed_generation == 2
    assert {condition.observed_generation for condition in after.conditions} == {2}


def test_all_conditions_are_of_the_present_generation() -> None:
    body = training()
    body["metadata"]["generation"] = 3
    job = batch_job()
    decision = go(body, jobs=[job], pods=[pod_of(job, phase="Running", state=running())])
    assert {condition.observed_generation for condition in decision.status.conditions} == {3}


def test_a_spec_that_the_server_refuses_ends_the_job_and_is_told() -> None:
    decision = refuse(job_body(), "Job.batch is invalid: spec.nodeSelector", NOW, final=True)
    assert decision.status.failure is not None
    assert (decision.status.phase, decision.status.failure.reason) == ("Failed", "SpecInvalid")
    assert told(decision) == ["Failed"]


def test_a_quota_is_waited_for_and_said() -> None:
    decision = refuse(job_body(), "exceeded quota", NOW, final=False)
    assert (decision.status.phase, reason(decision), told(decision)) == ("Pending", "Refused", [])
    assert "exceeded quota" in said(decision)


def test_an_operator_with_other_defaults_keeps_the_configuration_that_was_taken_up() -> None:
    body = training()
    body["status"]["configHash"] = "0123456789"
    body = later(body, go(body, seconds=1, **failed_attempt(at_second=0)))
    decision = go(body, seconds=500, **failed_attempt(at_second=0))
    assert not [kind for kind in kinds(decision) if kind.startswith("ConfigMap tune-config")]
    (job,) = [item for item in decision.apply if item["kind"] == "Job"]
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": "tune-config-0123456789"}} in volumes


@pytest.mark.parametrize("stage", [preparing, queued, training], ids=["preparing", "queued", "training"])
def test_our_own_config_map_that_somebody_deleted_is_made_anew(stage: Any) -> None:
    """However long the kubelet takes to see it: that is no mistake of the job's."""
    body = stage()
    job = batch_job("prepare" if stage is preparing else "train")
    pod = pod_of(job)  # a new one, while the attempt lasts: a queue stops and starts a Job
    config = f"tune-config-{body['status']['configHash']}"
    event = event_of(pod, "FailedMount", f'MountVolume.SetUp failed for volume "v" : configmap "{config}" not found')
    decision = go(body, seconds=3600, jobs=[job], pods=[pod], events=[event])
    assert decision.status.phase == body["status"]["phase"]
    assert config in {item["metadata"]["name"] for item in decision.apply}
    assert decision.delete_jobs == []
    assert decision.requeue_after == LOOK_AGAIN, "no event of the pod's own tells that it mounts at last"
    assert f"The ConfigMap {config} was deleted; it is made anew" in said(decision)
    rows = event_of(pod, "FailedMount", 'configmap "rows" not found')
    if stage is not training:
        failed = go(body, seconds=3600, jobs=[job], pods=[pod], events=[rows])
        assert failed.status.failure is not None
        assert failed.status.failure.reason == "ConfigMapNotFound", "which its owner names and has to create"
