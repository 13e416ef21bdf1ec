"""Conditions, reports, patches and names: the parts that a status is made of."""

from __future__ import annotations

import copy
import json
from datetime import timedelta
from typing import Any

import pytest
from fake_cluster import merged
from finetune_api.failures import FailureReason
from finetune_api.profile import TrainingProfileSpec
from finetune_api.reports import ProgressReport, TerminationReport
from finetune_api.status import Condition, FineTuneJobStatus, Progress
from finetune_operator.core import children, conditions, names, reports, times
from finetune_operator.core.acceptance import SNAPSHOT_CHARACTERS, parse_job, snapshot_of
from finetune_operator.core.children import Observed, sort_children
from finetune_operator.core.patches import status_patch
from finetune_operator.core.plan import Refused
from finetune_operator.core.reconcile import decide
from hypothesis import given
from hypothesis import strategies as st
from operator_bodies import NOW, SETTINGS, UID, at, batch_job, job_body, plan_of, pod_of, report, terminated

Body = dict[str, Any]


# -- conditions ------------------------------------------------------------------------------------------------


def changed(previous: list[Condition], seconds: float = 60) -> conditions.Conditions:
    return conditions.Conditions(previous, generation=2, now=at(seconds))


def one(found: conditions.Conditions, kind: str) -> Condition:
    return next(condition for condition in found.listed() if condition.type == kind)


def test_the_time_of_a_condition_moves_with_its_status_alone() -> None:
    first = conditions.Conditions([], generation=1, now=NOW)
    conditions.progress_to_kstatus(first, reason="Queued", message="waits")
    again = changed(first.listed())
    conditions.progress_to_kstatus(again, reason="Training", message="runs")
    assert one(again, "Ready").last_transition_time == times.stamp(NOW)
    assert (one(again, "Ready").reason, one(again, "Ready").observed_generation) == ("Training", 2)
    conditions.succeeded(again, "done")
    assert one(again, "Ready").last_transition_time == times.stamp(at(60))
    assert one(again, "Stalled").last_transition_time == times.stamp(NOW)


def kstatus(found: conditions.Conditions) -> tuple[str, str, str]:
    return one(found, "Ready").status, one(found, "Reconciling").status, one(found, "Stalled").status


def test_gitops_tools_read_the_state_from_three_conditions() -> None:
    found = changed([])
    conditions.progress_to_kstatus(found, reason="Queued", message="")
    assert kstatus(found) == ("False", "True", "False")
    conditions.succeeded(found, "")
    assert kstatus(found) == ("True", "False", "False")
    conditions.failed(found, "OOMKilled", "m")
    assert kstatus(found) == ("False", "False", "True")
    assert one(found, "Failed").reason == "OOMKilled"


def test_there_is_one_condition_a_type_and_messages_fit() -> None:
    found = changed([])
    for _ in range(3):
        found.set("Accepted", holds=None, reason="R", message="x" * 9999)
    (only,) = found.listed()
    assert (only.status, len(only.message)) == ("Unknown", 4096)


# -- patches ---------------------------------------------------------------------------------------------------

PROGRESS = st.builds(
    Progress,
    step=st.integers(0, 9),
    total_steps=st.integers(0, 9),
    loss=st.none() | st.floats(0, 5, allow_nan=False),
    eval_loss=st.none() | st.floats(0, 5, allow_nan=False),
)
STATUSES = st.builds(
    FineTuneJobStatus,
    phase=st.sampled_from([None, "Pending", "Running"]),
    attempt=st.none() | st.integers(0, 3),
    progress=st.none() | PROGRESS,
    profile=st.none() | st.sampled_from(["{}", '{"a":1}']),
)


@given(STATUSES, STATUSES)
def test_the_patch_turns_one_status_into_the_other_and_touches_nothing_else(
    before: FineTuneJobStatus, after: FineTuneJobStatus
) -> None:
    stored = before.to_dict() | {"ofANewerOperator": {"x": 1}}
    patch = status_patch(stored, after)
    result = stored if patch is None else merged(stored, patch)
    assert result == after.to_dict() | {"ofANewerOperator": {"x": 1}}
    assert status_patch(result, after) is None, "the second time there is nothing to write"


def test_the_patch_holds_what_changed_alone() -> None:
    before = FineTuneJobStatus(phase="Running", attempt=1, progress=Progress(step=1, total_steps=9, loss=2.0))
    after = before.model_copy(update={"attempt": None, "progress": Progress(step=2, total_steps=9, loss=2.0)})
    assert status_patch(before.to_dict(), after) == {"attempt": None, "progress": {"step": 2}}


def test_numbers_that_the_server_writes_without_a_point_are_no_change() -> None:
    status = FineTuneJobStatus(progress=Progress(step=1, total_steps=2, loss=2.0))
    stored = json.loads(json.dumps(status.to_dict()).replace("2.0", "2"))
    assert status_patch(stored, FineTuneJobStatus.model_validate(stored)) is None


# -- reports ---------------------------------------------------------------------------------------------------


def termination(**parts: Any) -> TerminationReport:
    found = TerminationReport.decode(report("train", **parts))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("progress", "display", "eta", "percent"),
    [
        ({"step": 0, "total_steps": 60}, "0/60 0%", None, 0),
        ({"step": 59, "total_steps": 60, "eta_seconds": 45}, "59/60 98%", "45s", 98),
        ({"step": 61, "total_steps": 60, "eta_seconds": 3700}, "61/60 100%", "1h01m", 100),
        ({"step": 0, "total_steps": 0}, "0%", None, 0),
        ({"step": 0, "total_steps": 0, "percent": 37, "eta_seconds": 90061}, "37%", "1d01h", 37),
        ({"step": 5, "total_steps": 10, "percent": 49}, "5/10 49%", None, 49),
    ],
)
def test_columns_show_progress_as_a_person_reads_it(
    progress: Body, display: str, eta: str | None, percent: int
) -> None:
    found = reports.shown(Progress(**progress), NOW)
    assert (found.display, found.eta, found.percent, found.updated_at) == (display, eta, percent, times.stamp(NOW))


def test_a_number_that_is_none_is_left_out() -> None:
    found = reports.shown(Progress(step=1, total_steps=2, loss=float("nan"), grad_norm=float("inf")), NOW)
    assert (found.loss, found.grad_norm) == (None, None)


def test_sizes_of_real_models_fit() -> None:
    big = 70 * 10**9
    found = termination(
        model={"parameters": big},
        memory={"measured": big, "estimate": {"weights": big, "total": big}},
        progress={"step": 1, "totalSteps": 2, "tokens": 15 * 10**12, "peakMemoryBytes": big},
    )
    status = reports.with_report(FineTuneJobStatus(), found, NOW)
    assert status.model is not None
    assert status.model.parameters == big
    assert status.progress is not None
    assert status.progress.peak_memory_bytes == big


def test_train_measures_what_prepare_estimated() -> None:
    prepared = termination(memory={"estimate": {"total": 5}}, model={"parameters": 7, "digest": "d"})
    trained = termination(memory={"measured": 6}, model={"trainableParameters": 2})
    status = reports.with_report(reports.with_report(FineTuneJobStatus(), prepared, NOW), trained, NOW)
    assert status.memory is not None
    assert status.memory.estimate is not None
    assert (status.memory.estimate.total, status.memory.measured) == (5, 6)
    assert status.model is not None
    assert (status.model.parameters, status.model.trainable_parameters, status.model.digest) == (7, 2, "d")


def test_the_last_report_adds_to_progress_and_takes_nothing_away() -> None:
    held = Progress(step=5, total_steps=9, initial_eval_loss=3.0, peak_memory_bytes=9, loss=1.0)
    last = termination(progress={"step": 9, "totalSteps": 9, "evalLoss": 2.0})
    found = reports.with_report(FineTuneJobStatus(progress=held), last, NOW).progress
    assert found is not None
    assert (found.step, found.eval_loss, found.initial_eval_loss, found.loss) == (9, 2.0, 3.0, 1.0)
    assert found.peak_memory_bytes == 9


def test_a_bare_percentage_keeps_the_steps_that_are_known() -> None:
    status = FineTuneJobStatus(attempt=1, progress=Progress(step=247, total_steps=250, loss=1.0))
    bare = ProgressReport(attempt=1, progress=Progress(step=0, total_steps=0, percent=100, eta_seconds=0))
    found = reports.with_progress(status, bare, NOW).progress
    assert found is not None
    assert (found.display, found.step, found.loss, found.eta) == ("250/250 100%", 250, 1.0, "0s")


@pytest.mark.parametrize(
    ("output", "uri"),
    [
        (None, "pvc://tune-output/tune-0f9d1c2e"),
        ({"path": "adapter", "digest": "d"}, "pvc://tune-output/tune-0f9d1c2e/adapter"),
        ({"path": "./model/", "digest": "d"}, "pvc://tune-output/tune-0f9d1c2e/model"),
    ],
)
def test_the_result_is_named_by_its_claim(output: Body | None, uri: str) -> None:
    told = None if output is None else termination(output=output)
    assert reports.finished(FineTuneJobStatus(), plan_of(), told).uri == uri


# -- children --------------------------------------------------------------------------------------------------


def test_children_are_sorted_by_uid_and_attempt() -> None:
    mine = [batch_job("prepare"), batch_job(attempt=1), batch_job(attempt=2)]
    other = batch_job(attempt=3, uid="another")
    copied = batch_job(attempt=2)
    copied["metadata"]["name"] = "a-copy-of-it"
    found = sort_children(Observed(jobs=[*mine, other, copied], pods=[pod_of(mine[1]), pod_of(other)]), "tune", UID)
    assert found.prepare is mine[0]
    assert found.attempts == {1: mine[1], 2: mine[2]}
    assert found.strangers == {"tune-train-3"}
    assert [pod["metadata"]["name"] for pod in found.pods] == ["tune-train-1-0-abcde"]
    assert found.pods_of(mine[1]) == list(found.pods)
    assert found.pods_of(mine[2]) == []


def test_the_report_is_that_of_the_first_rank_which_ended_as_asked() -> None:
    job = batch_job()
    pods = []
    for rank, code in ((2, 0), (1, 0), (0, 1)):
        pod = pod_of(job, phase="Succeeded", state=terminated(code, report("train", code, message=f"rank {rank}")))
        pod["metadata"]["annotations"][children.INDEX_ANNOTATION] = str(rank)
        pods.append(pod)
    good, bad = children.report_of(pods), children.report_of(pods, succeeded=False)
    assert good is not None
    assert bad is not None
    assert (good.message, bad.message) == ("rank 1", "rank 0")


def test_a_job_that_is_told_to_end_does_not_count_as_active() -> None:
    job = batch_job()
    assert children.is_active(job)
    job["metadata"]["deletionTimestamp"] = times.stamp(NOW)
    assert not children.is_active(job)


# -- acceptance and names --------------------------------------------------------------------------------------


def test_every_finding_is_told_at_once() -> None:
    body = job_body(method={"lora": {"rank": -1}}, resources={"cpu": 2})
    with pytest.raises(Refused) as refused:
        parse_job(body, rules=True)
    assert refused.value.reason is FailureReason.SPEC_INVALID
    assert "spec.method.lora.rank" in refused.value.message
    assert "spec.resources.cpu" in refused.value.message


def test_a_profile_that_fits_no_status_is_refused() -> None:
    body = {key: value for key, value in job_body().items() if key != "status"}
    big = TrainingProfileSpec(environment={f"V{i}": "x" * 256 for i in range(64)})
    assert len(big.model_dump_json()) > SNAPSHOT_CHARACTERS
    with pytest.raises(Refused, match="shorten it"):
        snapshot_of(parse_job(body, rules=False), big)


def test_a_service_begins_with_a_letter_and_is_nobody_elses() -> None:
    assert names.service("tune") == "tune-train"
    assert names.service("1a") != names.service("ftj-1a")
    assert names.service("1a")[0].isalpha()


def test_an_unfit_child_is_nobodys() -> None:
    assert names.job_of({}) is None
    assert names.job_of({"metadata": {"namespace": "n", "labels": {"app": "x"}}}) is None


def test_times_are_those_of_kubernetes() -> None:
    assert times.stamp(NOW) == "2026-05-01T12:00:00Z"
    assert times.parse("2026-05-01T14:00:00+02:00") == NOW
    assert times.parse(times.stamp(NOW + timedelta(days=1))) == NOW + timedelta(days=1)
    assert times.parse(None) is None


def test_deciding_changes_nothing_of_what_was_read() -> None:
    body, job = job_body(status={"phase": "Preparing"}), batch_job("prepare", ended="Complete")
    kept = copy.deepcopy((body, job))
    decide(body, Observed(jobs=[job]), NOW, SETTINGS)
    assert (body, job) == kept
