"""``finetune logs``: the log of a job's newest pod, or of the one that is asked for."""

from __future__ import annotations

import subprocess
from typing import Any

from finetune_cli.console import note, out
from finetune_cli.errors import CliError
from finetune_cli.kubectl import ATTEMPT_LABEL, COMPONENT_LABEL, JOB_UID_LABEL, Kubectl

PREPARE, TRAIN = "prepare", "train"
CONTAINER = "trainer"


def logs(kubectl: Kubectl, name: str, *, step: str | None, attempt: int | None, follow: bool) -> int:
    """Pass a pod's log on; the exit code.

    Args:
        kubectl: the cluster.
        name: the FineTuneJob's.
        step: ``prepare`` or ``train``; None for the later one that has a pod.
        attempt: training attempt, counted from 1; None for the last.
        follow: go on until the container ends.

    Raises:
        CliError: there is no such job or pod, or the cluster does not answer.
    """
    job = kubectl.job(name)
    selector = f"{JOB_UID_LABEL}={job.metadata.uid}"
    step = step or (TRAIN if attempt is not None else None)
    if step:
        selector += f",{COMPONENT_LABEL}={step}"
    if attempt is not None:
        selector += f",{ATTEMPT_LABEL}={attempt}"
    pods = kubectl.items("pods", "-l", selector)
    if not pods:
        failure = job.status.failure
        if failure and failure.log_tail and attempt in (None, failure.attempt):
            note("the pod is gone; the status keeps the end of its log:")
            out.print(failure.log_tail.rstrip(), markup=False)
            return 0
        wanted = " ".join(filter(None, [step, f"of attempt {attempt}" if attempt is not None else ""]))
        phase = job.status.phase or "Pending"
        raise CliError(f"FineTuneJob {name} ({phase}) has no {f'{wanted} ' if wanted else ''}pod; its Job may be gone")
    pod = max(pods, key=_order)["metadata"]["name"]
    if follow:
        _await_start(kubectl, pod)
    command = kubectl.command("logs", pod, "--container", CONTAINER, *(["--follow"] if follow else []))
    return subprocess.run(command, check=False).returncode


def _order(pod: dict[str, Any]) -> tuple[int, str]:
    meta = pod["metadata"]
    return int(meta.get("labels", {}).get(ATTEMPT_LABEL, 0)), str(meta.get("creationTimestamp", ""))


def _await_start(kubectl: Kubectl, pod: str) -> None:
    """Return when the container of ``pod`` has started, or has ended without."""
    told = ""
    while True:
        with kubectl.watch("pod", pod) as stream:
            for kind, body in stream.events():
                if kind == "DELETED":
                    raise CliError(f"pod {pod} was deleted before it started")
                state = _state(body)
                if "waiting" not in state and body.get("status", {}).get("phase") != "Pending":
                    return
                reason = (state.get("waiting") or {}).get("reason") or "not scheduled yet"
                if reason != told:
                    note(f"pod {pod}: {reason}")
                    told = reason
            error = stream.error()
        if error:
            raise error


def _state(pod: dict[str, Any]) -> dict[str, Any]:
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    found: dict[str, Any] = statuses[0].get("state") or {}
    return found
