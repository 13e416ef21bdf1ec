"""``finetune watch``: follow one job until it has ended, over watches that break."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

from finetune_api.job import FineTuneJob
from finetune_api.status import CheckpointStatus, Condition

from finetune_cli.console import out
from finetune_cli.errors import CliError
from finetune_cli.kubectl import RESOURCE, Kubectl, KubectlError, parse_job
from finetune_cli.progress_view import ProgressView
from finetune_cli.results import held_out, show_failure

FINAL = ("Succeeded", "Failed")
SHORTEST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 15.0
"""Seconds between two watches; doubled while the API server does not answer."""
_MILESTONES = frozenset({"Accepted", "Prepared", "Suspended"})
"""Conditions that are told when they come to hold or cease to. How it ended is told at the end; the message of
Reconciling is what goes on now; the others are for GitOps tools."""


@dataclass
class Follower:
    """Tells what changed from one version of a job to the next."""

    view: ProgressView
    uid: str | None = None
    checkpoint: CheckpointStatus | None = None
    conditions: dict[str, str] = field(default_factory=dict)
    going_on: str = ""
    attempt: int = 0

    def show(self, job: FineTuneJob) -> None:
        """Show ``job`` as it is now."""
        if self.uid not in (None, job.metadata.uid):
            raise CliError(f"FineTuneJob {job.metadata.name} was deleted and made anew; watch it again")
        self.uid = job.metadata.uid
        status = job.status
        self._tell(status.conditions)
        if status.attempt and status.attempt != self.attempt:
            if status.attempt > 1:
                self.view.say(f"attempt {status.attempt}")
            self.attempt = status.attempt
        self.view.phase(status.phase or "Pending")
        if status.checkpoint and status.checkpoint != self.checkpoint:
            self.view.say(f"checkpoint at step {status.checkpoint.step}", "dim")
            self.checkpoint = status.checkpoint
        if status.progress:
            self.view.progress(status.progress)

    def _tell(self, conditions: list[Condition]) -> None:
        for condition in conditions:
            before, self.conditions[condition.type] = self.conditions.get(condition.type), condition.status
            if condition.type in _MILESTONES and condition.status != before and "True" in (before, condition.status):
                ceased = "" if condition.status == "True" else " no longer"
                self.view.say(": ".join(filter(None, [f"{condition.type}{ceased}", condition.message])), "dim")
            elif condition.type == "Reconciling" and condition.message not in ("", self.going_on):
                self.going_on = condition.message
                self.view.say(condition.message, "dim")


def watch(kubectl: Kubectl, name: str) -> bool:
    """Follow the job ``name``; whether it succeeded.

    Raises:
        CliError: there is no such job, it was deleted meanwhile, or the cluster could not be reached at all.
    """
    job = kubectl.job(name)
    with ProgressView(name) as view:
        follower = Follower(view)
        follower.show(job)
        wait = SHORTEST_WAIT
        while job.status.phase not in FINAL:
            seen, job = _one_watch(kubectl, name, follower, job)
            if job.status.phase in FINAL:
                break
            time.sleep(wait)  # lest a watch that ends at once be asked for in a circle
            again = _read_again(kubectl, name, view)
            wait = SHORTEST_WAIT if seen and again else min(wait * 2, LONGEST_WAIT)
            if again:
                job = again
                follower.show(job)
    return conclude(job)


def conclude(job: FineTuneJob) -> bool:
    """Print how ``job`` ended; whether it succeeded."""
    status = job.status
    if status.phase == "Failed":
        if status.failure:
            show_failure(status.failure)
        else:
            failed = next((c for c in status.conditions if c.type == "Failed"), None)
            out.print(f"Failed: {failed.message if failed else 'the status does not say why'}")
        return False
    out.print(f"Succeeded: {status.output.uri if status.output else 'the status does not say where the result is'}")
    if loss := held_out(status.progress):
        out.print(f"held-out loss: {loss}")
    return True


def _one_watch(kubectl: Kubectl, name: str, follower: Follower, job: FineTuneJob) -> tuple[bool, FineTuneJob]:
    """Follow one watch to its end: whether anything was heard, and the job as last seen."""
    seen = False
    with kubectl.watch(RESOURCE, name) as stream:
        for kind, body in stream.events():
            if kind == "DELETED":
                raise CliError(f"FineTuneJob {name} was deleted; what it wrote is in its claim still")
            if kind == "ERROR":  # such as 410: the server has forgotten where we were
                return seen, job
            seen = True
            job = parse_job(body)
            follower.show(job)
            if job.status.phase in FINAL:
                return seen, job
        error = stream.error()
    if error:
        follower.view.say(f"the watch broke: {error}", "yellow")
    return seen, job


def _read_again(kubectl: Kubectl, name: str, view: ProgressView) -> FineTuneJob | None:
    """The job after a watch ended; None while the server does not answer."""
    try:
        return kubectl.job(name)
    except KubectlError as error:
        view.say(f"{error}; trying again", "yellow")
        return None
