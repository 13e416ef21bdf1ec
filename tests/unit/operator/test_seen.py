"""What the watches told is kept small, and only the newest of it."""

from __future__ import annotations

import copy
from typing import Any

from finetune_operator.core import names
from finetune_operator.seen import Seen, trimmed
from operator_bodies import batch_job, job_body, pod_of, report, running, terminated

Body = dict[str, Any]
KEY = ("team", "tune")


def versioned(body: Body, version: int) -> Body:
    changed = copy.deepcopy(body)
    changed["metadata"]["resourceVersion"] = str(version)
    return changed


def test_of_a_job_the_newest_is_kept_without_what_managers_wrote_down() -> None:
    seen = Seen()
    seen.note(KEY, versioned(job_body(status={"phase": "Running"}), 7))
    seen.note(KEY, versioned(job_body(status={"phase": "Queued"}), 6))
    kept = seen.job(KEY)
    assert kept is not None
    assert kept["status"] == {"phase": "Running"}
    assert "managedFields" not in kept["metadata"]
    assert kept["spec"] == job_body()["spec"]
    seen.forget(KEY)
    assert seen.job(KEY) is None


def test_a_child_is_news_when_something_changed_that_a_decision_reads() -> None:
    seen, job = Seen(), versioned(batch_job(), 1)
    assert seen.note_child(KEY, job)
    job["status"] |= {"ready": 1, "uncountedTerminatedPods": {"succeeded": ["uid"]}}
    job["metadata"]["managedFields"] = [{"manager": "kube-controller-manager"}]
    assert not seen.note_child(KEY, versioned(job, 2))
    job["status"]["conditions"] = [{"type": "Complete", "status": "True"}]
    assert seen.note_child(KEY, versioned(job, 3))
    assert not seen.note_child(KEY, versioned(batch_job(), 2)), "it was heard of late"
    jobs, _ = seen.children(KEY)
    assert [found["status"]["conditions"][0]["type"] for found in jobs] == ["Complete"]


def test_a_child_that_is_deleted_is_gone_and_news() -> None:
    seen = Seen()
    pod = {"kind": "Pod", **versioned(pod_of(batch_job(), phase="Running", state=running()), 4)}
    assert seen.note_child(KEY, pod)
    assert not seen.note_child(KEY, versioned(pod, 3), deleted=True), "older than what is there"
    assert seen.note_child(KEY, versioned(pod, 5), deleted=True)
    assert seen.children(KEY) == ([], [])


def test_a_pod_keeps_its_last_word_and_what_names_it() -> None:
    text = report("train", 23, message="loss is nan at step 3")
    pod = {"kind": "Pod", **pod_of(batch_job(), phase="Failed", state=terminated(23, text))}
    kept = trimmed(pod)
    assert kept["status"]["containerStatuses"] == pod["status"]["containerStatuses"]
    assert kept["metadata"]["labels"] == pod["metadata"]["labels"]
    assert names.job_of(kept) == KEY
    assert [container["image"] for container in kept["spec"]["containers"]] == [
        container["image"] for container in pod["spec"]["containers"]
    ]
