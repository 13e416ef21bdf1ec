"""Why an attempt ended: one reason out of pod status, exit code, termination report and conditions.

Order of trust: the trainer's own exit code and report; the kernel's OOM killer; what the cluster did to the pod
(preemption, eviction, loss of the node, deletion); the container runtime; and last, a crash with its log's end.
"""

from __future__ import annotations

from typing import Any

from finetune_api.failures import REASONS, ExitCode, FailureReason, reason_of_exit_code
from finetune_api.reports import TerminationReport
from finetune_api.status import Failure

from finetune_operator.core import times
from finetune_operator.core.children import container_state, failed_condition, has_failed, is_deleted, rank_of
from finetune_operator.core.children import pod_condition as _condition_of
from finetune_operator.core.pods import CONTAINER

Body = dict[str, Any]
R = FailureReason
LOG_CHARACTERS = 2048
MESSAGE_CHARACTERS = 4000
_SIGKILL = 137

_DISRUPTIONS: dict[str, FailureReason] = {
    "PreemptionByScheduler": R.PREEMPTED,
    "PreemptionByKubeScheduler": R.PREEMPTED,  # 1.26 and before
    "EvictionByEvictionAPI": R.EVICTED,
    "TerminationByKubelet": R.EVICTED,
    "DeletionByTaintManager": R.NODE_LOST,
    "DeletionByPodGC": R.NODE_LOST,
}
_POD_REASONS: dict[str, FailureReason] = {
    "Evicted": R.EVICTED,
    "Preempting": R.PREEMPTED,
    "NodeLost": R.NODE_LOST,
    "NodeShutdown": R.NODE_LOST,
    "Terminated": R.NODE_LOST,  # the kubelet's word for a graceful shutdown of its node
    "Shutdown": R.NODE_LOST,
    "DeadlineExceeded": R.DEADLINE_EXCEEDED,
    "NodeAffinity": R.EVICTED,
    "UnexpectedAdmissionError": R.EVICTED,
}
_CONSEQUENCES = (ExitCode.COLLECTIVE_TIMEOUT, ExitCode.INTERRUPTED)
_CANNOT_START = frozenset({"StartError", "ContainerCannotRun", "RunContainerError"})


def failure(
    reason: FailureReason,
    message: str,
    *,
    attempt: int,
    report: TerminationReport | None = None,
    exit_code: int | None = None,
    rank: int | None = None,
    log_tail: str | None = None,
) -> Failure:
    """A failure with what is known of its reason in general."""
    tail = (report.log_tail if report else None) or log_tail
    return Failure(
        reason=reason.value,
        message=message if len(message) <= MESSAGE_CHARACTERS else message[: MESSAGE_CHARACTERS - 1] + "…",
        rank=report.rank if report and report.rank is not None else rank,
        exit_code=exit_code,
        retryable=REASONS[reason].retryable,
        attempt=attempt,
        log_tail=tail[-LOG_CHARACTERS:] if tail else None,
    )


def of_job(job: Body, pods: list[Body], *, attempt: int) -> Failure:
    """Why ``job`` failed. ``attempt`` is 0 for the prepare step."""
    failed = [pod for pod in pods if has_failed(pod)]
    condition = failed_condition(job) or {}
    if condition.get("reason") == "DeadlineExceeded":
        return failure(R.DEADLINE_EXCEEDED, _advise(R.DEADLINE_EXCEEDED, "The time ran out."), attempt=attempt)
    if not failed:
        what = condition.get("message") or "Its pod is gone and left no word."
        if condition.get("reason") == "PodFailurePolicy" and "DisruptionTarget" in what:
            # Its controller saw what became of the pod; by preemption or eviction, it does not say.
            return failure(R.EVICTED, _advise(R.EVICTED, f"{job['metadata']['name']}: {what}"), attempt=attempt)
        return gone(f"{job['metadata']['name']}: {what}", attempt=attempt)
    if not attempt:
        return of_pod(max(failed, key=_ended), attempt=attempt)
    first_end = min(_ended(pod) for pod in failed)
    first = of_pod(min(failed, key=lambda pod: (_follows(pod, first_end), _ended(pod))), attempt=attempt)
    if first.retryable:
        # The ranks that lost a peer may notice sooner than its node is given up: the cluster's doing is the cause.
        disrupted = [pod for pod in failed if _condition_of(pod, "DisruptionTarget") is not None]
        if disrupted:
            return of_pod(min(disrupted, key=_ended), attempt=attempt)
        removed = _removed_before(failed, first_end)
        return of_pod(removed, attempt=attempt) if removed else first
    return first


def _removed_before(failed: list[Body], first_end: float) -> Body | None:
    """The pod that somebody deleted while all ranks ran; None where there is none. The Job's controller deletes pods
    too, but only when one has failed: by then a rank has ended."""
    removed = [pod for pod in failed if is_deleted(pod) and _told_to_end(pod) < first_end]
    return min(removed, key=_told_to_end) if removed else None


def _follows(pod: Body, first_end: float) -> bool:
    """Whether ``pod`` of several most likely ended because another had, at ``first_end`` (Unix time): it waited for its
    peers in vain, or was told to end with its Job. Times alone do not tell: they have whole seconds."""
    if _condition_of(pod, "DisruptionTarget") is not None:
        return False
    told_after = is_deleted(pod) and _told_to_end(pod) >= first_end
    code = (container_state(pod, "terminated") or {}).get("exitCode")
    return code in _CONSEQUENCES or (told_after and _ended(pod) > first_end)


def gone(what: str, *, attempt: int) -> Failure:
    """The failure of an attempt whose Job or pod somebody removed."""
    return failure(R.POD_DELETED, _advise(R.POD_DELETED, what), attempt=attempt)


def of_pod(pod: Body, *, attempt: int) -> Failure:
    """Why ``pod`` failed."""
    terminated = container_state(pod, "terminated") or {}
    text = terminated.get("message")
    report = TerminationReport.decode(text)
    code = terminated.get("exitCode")
    known: dict[str, Any] = {
        "attempt": attempt,
        "report": report,
        "exit_code": code,
        "rank": rank_of(pod) if attempt else None,
        "log_tail": None if report else text,
    }
    disruption = _disruption(pod)
    said = report.message if report else None
    if code is not None and _in_contract(code):
        reason = reason_of_exit_code(code)
        if reason is R.INTERRUPTED:
            return failure(disruption or R.INTERRUPTED, _interrupted(pod, disruption, report), **known)
        return failure(reason, said or _advise(reason, f"The trainer exited with {code}."), **known)
    if terminated.get("reason") == "OOMKilled":
        return failure(R.OOM_KILLED, _out_of_memory(pod, attempt), **known)
    if disruption is not None:
        return failure(disruption, _advise(disruption, cluster_said(pod)), **known)
    if terminated.get("reason") in _CANNOT_START:
        what = f"The container cannot start: {text or terminated.get('reason')}."
        return failure(R.CONTAINER_CANNOT_START, _advise(R.CONTAINER_CANNOT_START, what), **known)
    if code == _SIGKILL:
        what = "The trainer was killed (SIGKILL), as the kernel does to a process when the node is short of memory."
        return failure(R.TRAINER_CRASH, _advise(R.TRAINER_CRASH, said or what), **known)
    what = said or (f"The trainer exited with {code}." if code is not None else cluster_said(pod))
    return failure(R.TRAINER_CRASH, _advise(R.TRAINER_CRASH, what), **known)


def _in_contract(code: int) -> bool:
    return code != ExitCode.TRAINER_CRASH and code in {int(c) for c in ExitCode} - {0}


def _disruption(pod: Body) -> FailureReason | None:
    """What the cluster or a person did to ``pod``; None where it ended by itself."""
    target = _condition_of(pod, "DisruptionTarget")
    if target is not None:
        return _DISRUPTIONS.get(target.get("reason", ""), R.EVICTED)
    why = pod.get("status", {}).get("reason") or ""
    if why in _POD_REASONS:
        return _POD_REASONS[why]
    if why.startswith("OutOf"):  # the kubelet found no room after the scheduler had
        return R.EVICTED
    return R.POD_DELETED if is_deleted(pod) else None


def cluster_said(pod: Body) -> str:
    """What the cluster says of ``pod``: of a disruption, or in its status."""
    target = _condition_of(pod, "DisruptionTarget") or {}
    status = pod.get("status", {})
    what = target.get("message") or status.get("message") or status.get("reason") or "no cause is given"
    node = pod.get("spec", {}).get("nodeName")
    return f"Pod {pod['metadata']['name']}{f' on node {node}' if node else ''}: {what.rstrip('.')}."


def _interrupted(pod: Body, disruption: FailureReason | None, report: TerminationReport | None) -> str:
    saved = f" A checkpoint was saved at step {report.checkpoint.step}." if report and report.checkpoint else ""
    if disruption is None or disruption is R.POD_DELETED:
        return _advise(disruption or R.INTERRUPTED, f"Pod {pod['metadata']['name']} was told to end.{saved}")
    return _advise(disruption, cluster_said(pod) + saved)


def _out_of_memory(pod: Body, attempt: int) -> str:
    limit = next(
        (
            container.get("resources", {}).get("limits", {}).get("memory")
            for container in pod.get("spec", {}).get("containers", [])
            if container.get("name") == CONTAINER
        ),
        None,
    )
    field = "spec.resources.memory" if attempt else "prepare.memory in the TrainingProfile"
    step = "training" if attempt else "the prepare step"
    of_limit = f" of {limit}" if limit else ""
    return f"The kernel ended {step}, since it used more than its memory limit{of_limit}. Raise {field}."


def _ended(pod: Body) -> float:
    """When the pod ended (Unix time): what fails first among the ranks is the cause, the rest follows from it."""
    terminated = container_state(pod, "terminated") or {}
    moment = times.parse(terminated.get("finishedAt") or pod.get("metadata", {}).get("deletionTimestamp"))
    return moment.timestamp() if moment else float("inf")


def _told_to_end(pod: Body) -> float:
    """When a pod that is being deleted was told to end (Unix time): its ``deletionTimestamp`` ends its grace."""
    meta = pod["metadata"]
    moment = times.parse(meta["deletionTimestamp"])
    return moment.timestamp() - float(meta.get("deletionGracePeriodSeconds") or 0) if moment else float("inf")


def _advise(reason: FailureReason, what: str) -> str:
    advice = REASONS[reason].advice
    if advice in what:
        return what
    said = what.rstrip()
    return f"{said if said.endswith(('.', '!', '?')) else f'{said}.'} {advice}"
