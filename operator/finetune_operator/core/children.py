"""Reading Jobs and pods as the API server sends them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from finetune_api.profile import TrainingProfileSpec
from finetune_api.reports import ProgressReport, TerminationReport

from finetune_operator.core import names, times

Body = dict[str, Any]
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"
OVERDUE = 60.0
"""Seconds beyond its grace that a kubelet may take to end a pod and say so."""


@dataclass(frozen=True)
class Observed:
    """The cluster as it was read, just now, for one FineTuneJob."""

    jobs: Sequence[Body] = ()
    """Jobs that carry the job's label, as far as they were heard of or have one of its names; also those of an earlier
    FineTuneJob of the same name."""
    pods: Sequence[Body] = ()
    """Pods likewise; ones that are gone by now may be among them, as last seen."""
    events: Sequence[Body] = ()
    """Events of pods and Jobs that do not get on; see :func:`finetune_operator.core.waiting.wants_events`."""
    profile: TrainingProfileSpec | None = None
    """The TrainingProfile that the spec names; None where there is none or where it was not needed."""
    chat_template: Body | None = None
    """The ChatTemplate that the spec names, as the API server holds it; None likewise."""
    progress: ProgressReport | None = None
    """Newest progress that rank 0 posted and that is not in the status yet."""
    workloads: Sequence[Body] | None = None
    """Kueue's Workloads of Jobs that are suspended; None where there is none or where we may not read them."""


@dataclass(frozen=True)
class Children:
    """Jobs and pods of one FineTuneJob, sorted."""

    prepare: Body | None
    attempts: dict[int, Body]
    """Train Job by attempt."""
    strangers: frozenset[str]
    """Names of Jobs that an earlier FineTuneJob of the same name left behind."""
    pods: Sequence[Body] = field(default=())

    def pods_of(self, job: Body) -> list[Body]:
        """Pods of ``job``."""
        name = job["metadata"]["name"]
        return [pod for pod in self.pods if labels(pod).get(JOB_NAME_LABEL) == name]

    def pods_of_attempt(self, attempt: int) -> list[Body]:
        """Training pods of one attempt, whose Job may be gone. Of each rank the newest: a queue may have stopped the
        attempt and started it again."""
        pods = [pod for pod in self.pods if labels(pod).get(names.ATTEMPT_LABEL) == str(attempt)]
        return list({rank_of(pod): pod for pod in sorted(pods, key=_newness)}.values())

    def living(self, component: str | None = None) -> list[Body]:
        """Pods that have not ended, of one step or of both."""
        return [
            pod
            for pod in self.pods
            if component in (None, labels(pod).get(names.COMPONENT_LABEL))
            and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        ]

    @property
    def jobs(self) -> list[Body]:
        """All Jobs."""
        return [*([self.prepare] if self.prepare else []), *self.attempts.values()]


def sort_children(observed: Observed, name: str, uid: str) -> Children:
    """Pick out what belongs to the FineTuneJob ``name`` of ``uid``: Jobs by their names, since whoever copies a Job
    copies its labels."""
    own = [job for job in observed.jobs if belongs_to(job, uid)]
    return Children(
        prepare=next((job for job in own if name_of(job) == names.prepare_job(name)), None),
        attempts={number: job for job in own if (number := attempt_of(job, name))},
        strangers=frozenset(name_of(job) for job in observed.jobs if not belongs_to(job, uid)),
        pods=[pod for pod in observed.pods if belongs_to(pod, uid)],
    )


def belongs_to(body: Body, uid: str) -> bool:
    """Whether ``body`` says that it is of the FineTuneJob of ``uid``."""
    return labels(body).get(names.UID_LABEL) == uid


def attempt_of(job: Body, name: str) -> int:
    """Number of the attempt of the FineTuneJob ``name`` that ``job`` is; 0 where it is none, or not called so."""
    number = labels(job).get(names.ATTEMPT_LABEL, "")
    return int(number) if number.isdecimal() and name_of(job) == names.train_job(name, int(number)) else 0


def labels(body: Body) -> dict[str, str]:
    """Labels of ``body``."""
    found: dict[str, str] = body.get("metadata", {}).get("labels") or {}
    return found


def is_complete(job: Body) -> bool:
    """Whether all pods of ``job`` succeeded."""
    return _condition(job, "Complete") is not None


def failed_condition(job: Body) -> Body | None:
    """The condition by which ``job`` ended in failure; None where it did not."""
    return _condition(job, "Failed")


def is_active(job: Body) -> bool:
    """Whether ``job`` has yet to end. A Job that is being deleted is no longer ours to count on."""
    return not (is_complete(job) or failed_condition(job) or is_deleted(job))


def is_deleted(body: Body) -> bool:
    """Whether ``body`` is on its way out."""
    return "deletionTimestamp" in body.get("metadata", {})


def is_overdue(pod: Body, now: datetime) -> bool:
    """Whether ``pod`` should have ended: its ``deletionTimestamp`` is when its grace is over."""
    due = times.parse(pod["metadata"].get("deletionTimestamp"))
    return due is not None and (now - due).total_seconds() > OVERDUE


def name_of(body: Body) -> str:
    """Name of ``body``."""
    name: str = body["metadata"]["name"]
    return name


def finished_at(job: Body) -> datetime | None:
    """When ``job`` ended."""
    condition = _condition(job, "Complete") or _condition(job, "Failed")
    return times.parse(condition.get("lastTransitionTime")) if condition else None


def _condition(body: Body, kind: str) -> Body | None:
    for condition in body.get("status", {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == "True":
            found: Body = condition
            return found
    return None


def pod_condition(pod: Body, kind: str, status: str = "True") -> Body | None:
    """Condition ``kind`` of ``pod`` where it has this ``status``."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition.get("type") == kind and condition.get("status") == status:
            found: Body = condition
            return found
    return None


def container_state(pod: Body, kind: str) -> Body | None:
    """The ``waiting``, ``running`` or ``terminated`` state of the pod's container; None where it is in another."""
    for status in pod.get("status", {}).get("containerStatuses") or ():
        state: Body | None = (status.get("state") or {}).get(kind)
        if state is not None:
            return state
    return None


def is_running(pod: Body) -> bool:
    """Whether the pod's container runs."""
    return container_state(pod, "running") is not None


def has_failed(pod: Body) -> bool:
    """Whether ``pod`` ended, and not well."""
    terminated = container_state(pod, "terminated")
    return pod.get("status", {}).get("phase") == "Failed" or bool(terminated and terminated.get("exitCode"))


def report_of(pods: Iterable[Body], *, succeeded: bool = True) -> TerminationReport | None:
    """The report of the first pod, by completion index, that wrote one and ended as asked for."""
    for pod in sorted(pods, key=rank_of):
        terminated = container_state(pod, "terminated")
        if terminated and succeeded == (terminated.get("exitCode") == 0):
            report = TerminationReport.decode(terminated.get("message"))
            if report is not None:
                return report
    return None


def _newness(pod: Body) -> tuple[str, bool]:
    return pod["metadata"].get("creationTimestamp") or "", not is_deleted(pod)


def rank_of(pod: Body) -> int:
    """The pod's completion index: with one process a pod, its rank."""
    annotations = pod.get("metadata", {}).get("annotations") or {}
    return int(annotations.get(INDEX_ANNOTATION, 0))
