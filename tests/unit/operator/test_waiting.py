"""Why a pod does not start, for how long that is borne, and what to do about it."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_operator.core.settings import CoreSettings
from finetune_operator.core.waiting import Trouble, find_trouble, wants_events
from operator_bodies import NOW, at, batch_job, event_of, job_body, plan_of, pod_of, running, waiting

Body = dict[str, Any]
SETTINGS = CoreSettings(
    trainer_image="i", progress_url="u", start_grace=60, image_pull_grace=300, unschedulable_timeout=900
)
SOURCES = [{"uri": "configmap://rows/a.jsonl"}, {"uri": "pvc://data/b.jsonl", "secretRef": {"name": "s", "key": "k"}}]
PLAN = plan_of(
    job_body(
        model={"source": "hf://org/m", "secretRef": {"name": "hub", "key": "token"}},
        dataset={"sources": SOURCES},
        output={"claim": {"name": "results"}},
    )
)
JOB = batch_job()


def held(reason: str, message: str) -> list[Body]:
    return [pod_of(JOB, state=waiting(reason, message))]


def unscheduled(message: str) -> list[Body]:
    pod = pod_of(JOB)
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": message}]
    return [pod]


def trouble(pods: list[Body], events: list[Body] | None = None, settings: CoreSettings = SETTINGS) -> Trouble:
    found = find_trouble(PLAN, JOB, pods, events or [], settings, now=NOW)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("pods", "reason", "grace", "words"),
    [
        (held("InvalidImageName", "bad"), "ImagePullFailed", 60, "The image registry/trainer:1 cannot be pulled"),
        (held("ErrImagePull", "denied"), "ImagePullFailed", 300, "image.pullSecrets"),
        (held("ImagePullBackOff", "back-off"), "ImagePullFailed", 300, "back-off"),
        (held("ErrImageNeverPull", "absent"), "ImagePullFailed", 300, "absent"),
        (
            held("CreateContainerConfigError", 'secret "hub" not found'),
            "SecretNotFound",
            60,
            "The Secret hub that spec.model.secretRef names does not exist",
        ),
        (
            held("CreateContainerConfigError", "couldn't find key k in Secret team/s"),
            "SecretNotFound",
            60,
            "The Secret s that spec.dataset.sources[1].secretRef names has no key k",
        ),
        (held("CreateContainerError", "no such device"), "ContainerCannotStart", 60, "no such device"),
        (
            unscheduled('0/3 nodes are available: persistentvolumeclaim "data" not found.'),
            "VolumeNotBound",
            60,
            "PersistentVolumeClaim data that spec.dataset.sources[1].uri names does not exist",
        ),
        (
            unscheduled('persistentvolumeclaim "results" not found'),
            "VolumeNotBound",
            60,
            "results that spec.output.claim.name names",
        ),
        (
            unscheduled("pod has unbound immediate PersistentVolumeClaims"),
            "VolumeNotBound",
            900,
            "storage class",
        ),
        (unscheduled("0/3 nodes are available: 3 Insufficient cpu."), "Unschedulable", 900, "3 Insufficient cpu."),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_trouble_is_named_and_has_its_grace(pods: list[Body], reason: str, grace: float, words: str) -> None:
    found = trouble(pods)
    assert (found.reason.value, found.deadline) == (reason, at(grace))
    assert words in found.message


@pytest.mark.parametrize(
    ("kind", "message", "reason", "grace", "words"),
    [
        ("FailedMount", 'configmap "rows" not found', "ConfigMapNotFound", 60, "spec.dataset.sources[0].uri"),
        (
            "FailedMount",
            "configmap references non-existent config key: a.jsonl",
            "ConfigMapNotFound",
            60,
            "The ConfigMap rows has no key a.jsonl",
        ),
        ("FailedMount", 'secret "hub" not found', "SecretNotFound", 60, "spec.model.secretRef"),
        ("FailedAttachVolume", "is attached elsewhere", "VolumeNotBound", 900, "is attached elsewhere"),
    ],
)
def test_events_tell_of_volumes(kind: str, message: str, reason: str, grace: float, words: str) -> None:
    pods = held("ContainerCreating", "")
    found = trouble(pods, [event_of(pods[0], kind, message)])
    assert (found.reason.value, found.deadline) == (reason, at(grace))
    assert words in found.message


def test_a_pod_that_is_not_admitted_is_told_by_the_jobs_event() -> None:
    found = trouble([], [event_of(JOB, "FailedCreate", "exceeded quota: gpus")])
    assert (found.reason.value, found.deadline) == ("Unschedulable", at(900))
    assert "exceeded quota" in found.message


def test_no_time_out_means_for_ever() -> None:
    patient = CoreSettings(trainer_image="i", progress_url="u")
    assert trouble(unscheduled("0/3 nodes"), settings=patient).deadline is None


@pytest.mark.parametrize(
    "pods",
    [
        [],
        [pod_of(JOB)],
        held("ContainerCreating", ""),
        held("PodInitializing", ""),
        [pod_of(JOB, phase="Running", state=running())],
    ],
    ids=["no pod", "new pod", "creating", "initializing", "running"],
)
def test_what_gets_on_is_no_trouble(pods: list[Body]) -> None:
    assert find_trouble(PLAN, JOB, pods, [], SETTINGS, now=NOW) is None


def test_a_scheduler_that_nobody_runs_is_named() -> None:
    """Such a pod has no condition and no event."""
    plan = plan_of(job_body(scheduling={"schedulerName": "volcano"}))
    pod = pod_of(JOB)
    pod["status"]["conditions"] = []
    found = find_trouble(plan, JOB, [pod], [], SETTINGS, now=at(11))
    assert found is not None
    assert (found.reason.value, found.deadline) == ("Unschedulable", at(900))
    assert "No scheduler volcano" in found.message
    assert find_trouble(plan, JOB, [pod], [], SETTINGS, now=at(9)) is None, "most look sooner"
    assert find_trouble(PLAN, JOB, [pod], [], SETTINGS, now=at(99)) is None, "the cluster's own is busy"


def test_a_pod_that_is_being_deleted_is_no_trouble() -> None:
    pods = held("ErrImagePull", "denied")
    pods[0]["metadata"]["deletionTimestamp"] = "2026-05-01T12:00:00Z"
    assert find_trouble(PLAN, JOB, pods, [], SETTINGS, now=NOW) is None


def test_events_are_read_for_what_is_slow_and_unclear_alone() -> None:
    quiet = batch_job(attempt=2)
    quiet["status"] = {}
    slow, clear = pod_of(JOB, state=waiting("ContainerCreating")), pod_of(JOB, state=waiting("ErrImagePull"))
    assert wants_events([JOB], [slow], at(5)) == [], "most start sooner"
    assert wants_events([JOB], [slow], at(11)) == [slow["metadata"]["uid"]]
    assert wants_events([JOB], [clear], at(11)) == []
    assert wants_events([quiet], [], at(11)) == [quiet["metadata"]["uid"]]
    assert wants_events([batch_job(ended="Failed")], [], at(11)) == []
    assert wants_events([JOB], [pod_of(JOB, phase="Running", state=running())], at(999)) == []


def test_the_grace_of_a_pull_counts_from_the_node_and_not_from_the_queue() -> None:
    pods = held("ErrImagePull", "denied")
    pods[0]["status"]["conditions"][0]["lastTransitionTime"] = "2026-05-01T13:00:00Z"
    found = trouble(pods).deadline
    assert found is not None
    assert (found - NOW).total_seconds() == 3600 + 300
