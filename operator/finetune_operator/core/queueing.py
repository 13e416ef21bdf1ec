"""A place in a queue: Jobs that somebody else starts and stops, by their ``spec.suspend``.

Kueue (kueue.sigs.k8s.io, "Run A Kubernetes Job") holds every Job that carries the name of a LocalQueue until it admits
the Job's Workload, and suspends it again where another one takes its place. We make such a Job suspended, as Kueue's
webhook would, so that no pod starts where that webhook is late or missing, and never touch ``suspend`` afterwards. What
is decided here goes by ``suspend`` alone: it holds for any queue that works by it, and for a person.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_operator.core import names, times
from finetune_operator.core.children import Body, is_active, labels

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"
"""Label of a Workload: uid of the Job that it was made for."""
TAKEN_UP_WITHIN = 10.0
"""Seconds in which Kueue makes a Workload where all is well."""


def is_held(job: Body) -> bool:
    """Whether ``job`` is suspended: its pods end, and none starts."""
    return job.get("spec", {}).get("suspend") is True


def held_jobs(jobs: Sequence[Body]) -> list[str]:
    """Uids of Jobs whose Workloads would say why they wait."""
    return [job["metadata"]["uid"] for job in jobs if is_held(job) and is_active(job)]


def is_moved(job: Body, queue: str | None) -> bool:
    """Whether ``job`` was made for another queue than ``queue``. Its label does not tell: a webhook may have set it."""
    annotations = job["metadata"].get("annotations") or {}
    made_for = annotations.get(names.QUEUE_ANNOTATION)
    return made_for is not None and made_for != (queue or "")


def why_held(job: Body, workloads: Sequence[Body] | None, now: datetime) -> str:
    """Why ``job`` waits, in the queue's own words where they can be read.

    Args:
        job: a Job that is held.
        workloads: Kueue's Workloads of such Jobs; None where we may not read them.
        now: the time.
    """
    queue = labels(job).get(QUEUE_LABEL)
    if queue is None:
        return "Its Job is suspended (spec.suspend), by a queue or by hand, until that is taken back."
    where = f"It waits for its place in the LocalQueue {queue}."
    uid = job["metadata"]["uid"]
    workload = next((one for one in workloads or () if labels(one).get(JOB_UID_LABEL) == uid), None)
    if workload is not None:
        return " ".join([where, *_said(workload)])
    created = times.parse(job["metadata"].get("creationTimestamp")) or now
    if workloads is not None and (now - created).total_seconds() > TAKEN_UP_WITHIN:
        return f"{where} Nobody has taken it up: Kueue is not installed, or does not manage batch/v1 Jobs here."
    return where


def _said(workload: Body) -> list[str]:
    """What Kueue says of a Workload that is not admitted: why it lost its place, and why it has none yet."""
    conditions = {one["type"]: one for one in workload.get("status", {}).get("conditions") or ()}
    said = []
    if workload.get("spec", {}).get("active") is False:
        said.append(f"Its Workload {workload['metadata']['name']} is deactivated (spec.active).")
    for kind, status in (("Evicted", "True"), ("QuotaReserved", "False")):
        condition = conditions.get(kind, {})
        if condition.get("status") == status and condition.get("message"):
            said.append(condition["message"].rstrip(".") + ".")
    if conditions.get("QuotaReserved", {}).get("status") == "True":
        said.append("Its quota is reserved; admission checks have yet to agree.")
    return list(dict.fromkeys(said))
