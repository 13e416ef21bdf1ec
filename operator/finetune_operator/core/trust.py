"""Which decisions may rest on what the watches told, and which need a look at the API server first.

Watches of three kinds come late, each by its own measure: a Job may be heard to be complete before its pod is, and a
pod that was just made may not have been heard of at all. What depends on that is decided anew from what is read at
that moment. The rest is safe: a status is written only if it is still the one that was read, and a Job is created
only once under its name.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.core import names
from finetune_operator.core.children import Body, Observed, labels
from finetune_operator.core.decision import Decision


def may_rest_on_watches(body: Body, observed: Observed, decision: Decision) -> bool:
    """Whether ``decision``, made from what was heard of the FineTuneJob ``body``, may be carried out as it is."""
    before, after = body.get("status") or {}, decision.status
    phase, uid = before.get("phase"), body["metadata"]["uid"]
    if decision.delete_jobs or decision.delete_self or after.phase == "Failed":
        return False
    if after.phase == "Suspended" != phase:
        return False
    counted = (before.get("failedAttempts") or 0, before.get("disruptions") or 0, bool(before.get("failure")))
    if counted != (after.failed_attempts or 0, after.disruptions or 0, after.failure is not None):
        return False
    conditions = {c["type"]: c["status"] for c in before.get("conditions") or ()}
    first = not before.get("attempt") and "Suspended" not in conditions
    for item in decision.apply:
        if item["kind"] == "Job":
            prepares = labels(item)[names.COMPONENT_LABEL] == names.PREPARE
            if not first or (prepares and phase not in (None, "Pending")):
                return False
    prepared = any(c.type == "Prepared" and c.status == "True" for c in after.conditions)
    if prepared and conditions.get("Prepared") != "True" and not _have_ended(observed, uid, names.PREPARE, None):
        return False
    return after.phase != "Succeeded" or _have_ended(observed, uid, names.TRAIN, str(after.attempt))


def _have_ended(observed: Observed, uid: str, component: str, attempt: str | None) -> bool:
    """Whether the pods that a complete Job stands for have all been heard to end: their last word counts."""

    def those(bodies: Sequence[Body]) -> list[Body]:
        wanted = {names.UID_LABEL: uid, names.COMPONENT_LABEL: component, names.ATTEMPT_LABEL: attempt}
        return [body for body in bodies if all(labels(body).get(key) == value for key, value in wanted.items())]

    ended = [pod for pod in those(observed.pods) if pod.get("status", {}).get("phase") == "Succeeded"]
    return len(ended) >= max(
        ((job.get("spec") or {}).get("completions") or 1 for job in those(observed.jobs)), default=1
    )
