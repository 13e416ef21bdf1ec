"""runPolicy's rules of time: resting, how long attempts may run, what counts as a failure, and the end of the resource.

What has to outlive a restart is in the status; each function that changes it takes a status and gives the next one.
Running time is that of training attempts: from the first start of a trainer until the attempt ended or was told to
end. Preparing, waiting for a node, back-off and suspension are no part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from finetune_api.failures import REASONS, FailureReason
from finetune_api.status import Failure, FineTuneJobStatus, Phase

from finetune_operator.core import times
from finetune_operator.core.children import Body, container_state, is_deleted

FINAL: tuple[Phase, ...] = ("Succeeded", "Failed")


def wants_suspension(body: Body) -> bool:
    """Whether the FineTuneJob ``body`` is to rest. Read before the spec is parsed: a job that rests need not be
    one that could run."""
    return _run_policy(body).get("suspend") is True


def expires_in(body: Body, status: FineTuneJobStatus, now: datetime) -> float | None:
    """Seconds until a finished job is deleted, none or fewer when it is due; None where it stays."""
    time_to_live = _run_policy(body).get("ttlSecondsAfterFinished")
    finished = times.parse(status.completion_time)
    if status.phase not in FINAL or time_to_live is None or finished is None:
        return None
    return float(time_to_live) - (now - finished).total_seconds()


def running_seconds(status: FineTuneJobStatus, now: datetime) -> float:
    """Seconds that attempts have run in all."""
    since = times.parse(status.running_since)
    return (status.running_seconds or 0) + (max(0.0, (now - since).total_seconds()) if since else 0.0)


def quiet_seconds(status: FineTuneJobStatus, now: datetime) -> float:
    """Seconds since the present attempt began or was last heard of; 0 where none runs."""
    since = times.parse(status.running_since)
    if since is None:
        return 0.0
    heard = times.parse(status.progress.updated_at) if status.progress else None
    return max(0.0, (now - max(since, heard or since)).total_seconds())


def with_run_begun(status: FineTuneJobStatus, pods: Sequence[Body], now: datetime) -> FineTuneJobStatus:
    """An attempt runs from the moment at which the first of its ``pods`` started. That is by the clock of its node,
    which may be wrong: no pod started before it was made, nor later than now."""
    if status.running_since is not None:
        return status
    starts = []
    for pod in pods:
        if is_deleted(pod):
            continue  # of the time before a queue started the attempt again
        state = container_state(pod, "running") or container_state(pod, "terminated")
        if state is not None:
            started = times.parse(state.get("startedAt")) or now
            made = times.parse(pod["metadata"].get("creationTimestamp")) or started
            starts.append(min(max(started, made), now))
    return status.model_copy(update={"running_since": times.stamp(min(starts))}) if starts else status


def with_run_ended(status: FineTuneJobStatus, at: datetime) -> FineTuneJobStatus:
    """The attempt that ran ran until ``at``."""
    if status.running_since is None:
        return status
    return status.model_copy(
        update={"running_seconds": int(running_seconds(status, at)), "running_since": None},
    )


def counts(failure: Failure) -> bool:
    """Whether ``failure`` counts against ``backoffLimit``: not where the cluster took the pod away."""
    return REASONS[FailureReason(failure.reason)].counts


def with_failure(status: FineTuneJobStatus, failure: Failure) -> FineTuneJobStatus:
    """An attempt failed: it is recorded and counted. To be done once for each attempt."""
    tally = "failed_attempts" if counts(failure) else "disruptions"
    return status.model_copy(update={"failure": failure, tally: (getattr(status, tally) or 0) + 1})


def books(status: FineTuneJobStatus) -> tuple[Any, ...]:
    """What must be written down before the next attempt is made: with its Job there, nobody would look at the last
    one any more."""
    return (status.failed_attempts, status.disruptions, status.running_seconds, status.running_since)


def _run_policy(body: Body) -> Body:
    found: Body = (body.get("spec") or {}).get("runPolicy") or {}
    return found
