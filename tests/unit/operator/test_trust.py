"""What watches alone may decide, and what is read anew first."""

from __future__ import annotations

from typing import Any

import pytest
from decisions import go, later, made
from finetune_operator.core.children import Observed
from finetune_operator.core.decision import Decision
from finetune_operator.core.trust import may_rest_on_watches
from operator_bodies import batch_job, job_body, pod_of, report, running, terminated

Body = dict[str, Any]


def trusted(body: Body, decision: Decision, **observed: Any) -> bool:
    return may_rest_on_watches(body, Observed(**observed), decision)


def ended(job: Body, step: str = "train") -> Body:
    return pod_of(job, phase="Succeeded", state=terminated(0, report(step)))


def preparing() -> Body:
    body = job_body()
    return later(body, go(body))


def queued() -> Body:
    job = batch_job("prepare", ended="Complete")
    body = preparing()
    return later(body, go(body, jobs=[job], pods=[ended(job, "prepare")]))


def test_a_new_job_s_first_step_needs_no_look_and_the_same_step_again_does() -> None:
    body = job_body()
    first = go(body)
    assert made(first) == ["tune-prepare"]
    assert trusted(body, first)
    again = go(preparing())
    assert made(again) == ["tune-prepare"], "its Job was not heard of yet, or somebody deleted it"
    assert not trusted(preparing(), again)


@pytest.mark.parametrize("heard", [True, False])
def test_training_begins_on_what_was_heard_where_the_prepare_pod_s_last_word_was(heard: bool) -> None:
    job, body = batch_job("prepare", ended="Complete"), preparing()
    observed: Body = {"jobs": [job], "pods": [ended(job, "prepare")] if heard else []}
    decision = go(body, **observed)
    assert made(decision) == ["tune-train-1"]
    assert trusted(body, decision, **observed) is heard


@pytest.mark.parametrize("heard", [True, False])
def test_success_rests_on_what_was_heard_where_the_pods_last_word_was(heard: bool) -> None:
    job, body = batch_job(ended="Complete"), queued()
    observed: Body = {"jobs": [job], "pods": [ended(job)] if heard else []}
    decision = go(body, **observed)
    assert decision.status.phase == "Succeeded"
    assert trusted(body, decision, **observed) is heard


def test_of_two_pods_both_must_have_been_heard_to_end() -> None:
    job, body = batch_job(ended="Complete"), queued()
    job["spec"] = {"completions": 2}
    observed: Body = {"jobs": [job], "pods": [ended(job)]}
    assert not trusted(body, go(body, **observed), **observed)


def test_that_a_pod_runs_may_be_said_at_once() -> None:
    job, body = batch_job(), queued()
    observed: Body = {"jobs": [job], "pods": [pod_of(job, phase="Running", state=running())]}
    decision = go(body, **observed)
    assert decision.status.phase == "Running"
    assert trusted(body, decision, **observed)


def test_an_end_in_failure_a_next_attempt_and_a_rest_are_looked_at() -> None:
    body = queued()
    failed = batch_job(ended="Failed")
    crash: Body = {"jobs": [failed], "pods": [pod_of(failed, phase="Failed", state=terminated(1, None))]}
    retry = go(body, **crash)
    assert retry.status.failed_attempts == 1
    assert not trusted(body, retry, **crash)
    counted = later(body, retry)
    second = go(counted, seconds=900, **crash)
    assert made(second) == ["tune-train-2"]
    assert not trusted(counted, second, **crash)
    fatal: Body = {
        "jobs": [failed],
        "pods": [pod_of(failed, phase="Failed", state=terminated(23, report("train", 23)))],
    }
    assert not trusted(body, go(body, **fatal), **fatal)
    lost = go(body)
    assert lost.status.failure is not None
    assert not trusted(body, lost), "the attempt's Job may only not have been heard of yet"
    resting = job_body(runPolicy={"suspend": True})
    assert not trusted(resting, go(resting))
