"""What one reconcile gathers: the next status with its conditions, objects to apply, Jobs to delete, events to tell.

The walk through a job's life is in :mod:`finetune_operator.core.reconcile`; here is how each of its steps is put down.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_api.reports import TerminationReport
from finetune_api.status import Failure, FineTuneJobStatus, Phase

from finetune_operator.core import conditions as states
from finetune_operator.core import failures, lifecycle, manifests, names, reports, times
from finetune_operator.core.children import (
    Body,
    Observed,
    is_active,
    is_overdue,
    is_running,
    labels,
    name_of,
    sort_children,
)
from finetune_operator.core.decision import Decision, Note
from finetune_operator.core.plan import Plan
from finetune_operator.core.settings import CoreSettings
from finetune_operator.core.waiting import Trouble, find_trouble

LOOK_AGAIN, LOOK_AT_LEAST_EVERY = 15.0, 300.0
"""Seconds between two looks at a pod that does not run yet: what holds it up may send no event of its own. Rarer the
longer it waits, since thousands may wait for days."""
CLEARING = 5.0
"""Seconds between two looks at what is on its way out."""


STUCK = "PodStuck"
"""Reason of a wait for a pod that should have ended."""


class Effects:
    """The status that was read, the one that is to be written, and all else that one reconcile results in."""

    def __init__(self, body: Body, observed: Observed, now: datetime, settings: CoreSettings | None) -> None:
        self.body, self.observed, self.now = body, observed, now
        self._settings = settings
        self.before = FineTuneJobStatus.model_validate(body.get("status") or {})
        self.generation: int | None = body["metadata"].get("generation")
        self.status = self.before.model_copy(update={"observed_generation": self.generation})
        self.conditions = states.Conditions(self.before.conditions, generation=self.generation, now=now)
        self.children = sort_children(observed, body["metadata"]["name"], body["metadata"]["uid"])
        self.applied: list[Body] = []
        self.deleted: list[str] = []
        self.notes: list[Note] = []
        self.requeue: float | None = None
        self.expired = False

    @property
    def settings(self) -> CoreSettings:
        if self._settings is None:
            raise AssertionError("a refusal decides nothing that depends on settings")
        return self._settings

    def decision(self) -> Decision:
        if self.status.phase in lifecycle.FINAL and self.conditions.get("Suspended") is not None:
            self.conditions.set("Suspended", holds=False, reason="Finished")
        self.update(conditions=self.conditions.listed())
        saved = self.status.checkpoint
        if saved is not None and saved != self.before.checkpoint:
            self.notes.insert(0, Note("CheckpointSaved", f"Checkpoint of step {saved.step}: {saved.path}"))
        self.expire()
        return Decision(
            status=self.status,
            apply=self.applied,
            delete_jobs=self.deleted,
            delete_self=self.expired,
            notes=self.notes,
            requeue_after=self.requeue,
        )

    @property
    def suspends(self) -> bool:
        return lifecycle.wants_suspension(self.body)

    # -- ends --------------------------------------------------------------------------------------------------

    def fail(self, failure: Failure, report: TerminationReport | None = None) -> None:
        self.status = reports.with_report(self.status, report, self.now)
        self.status = lifecycle.with_run_ended(self.status, self.now)
        self.update(
            phase="Failed",
            start_time=self.before.start_time or times.stamp(self.now),
            completion_time=times.stamp(self.now),
            failure=failure,
        )
        if not self.conditions.holds("Prepared"):
            self.conditions.set("Prepared", holds=False, reason=failure.reason, message=failure.message)
        states.failed(self.conditions, failure.reason, failure.message)
        self.note("Failed", f"{failure.reason}: {failure.message}", warning=True)
        self.stop_children()

    def stop_children(self) -> None:
        """Free what a finished job still holds; finished Jobs stay for their logs."""
        self.deleted += [job["metadata"]["name"] for job in self.children.jobs if is_active(job)]

    def expire(self) -> None:
        """Delete a finished job when its time to live is over: not before its end was written and told."""
        left = lifecycle.expires_in(self.body, self.status, self.now)
        if left is None:
            return
        self.expired = left <= 0 and self.before.phase in lifecycle.FINAL
        if not self.expired:
            self.come_again(max(0.0, left))

    # -- rest --------------------------------------------------------------------------------------------------

    def rest(self, message: str) -> None:
        """Suspended, once no pod lives any more."""
        living = self.children.living()
        if living:
            self.come_to_rest(f"Pod {name_of(living[0])} has been told to end.")
            return
        if not self.conditions.holds("Prepared"):
            self.conditions.set("Prepared", holds=False, reason="Suspended", message=message)
        if not self.conditions.holds("Suspended"):
            self.note("Suspended", message)
        states.suspended(self.conditions, message)
        self.update(phase="Suspended")

    def come_to_rest(self, message: str) -> None:
        """On the way there: what runs still ends."""
        reason, message = self.unless_stuck("Suspending", message)
        self.conditions.set("Suspended", holds=False, reason=reason, message=message)
        self.wait(self.before.phase or "Pending", reason, message, CLEARING)

    def resume(self) -> None:
        """Nobody wants the job to rest, or no longer."""
        suspended = self.conditions.get("Suspended")
        if suspended is None:
            return
        if suspended.status == "True":
            self.note("Resumed", "runPolicy.suspend is false again")
        self.conditions.set("Suspended", holds=False, reason="Resumed")

    # -- waits -------------------------------------------------------------------------------------------------

    def is_over(self, trouble: Trouble) -> bool:
        return trouble.deadline is not None and self.now >= trouble.deadline

    def bear(self, trouble: Trouble, phase: Phase, patience: float = LOOK_AGAIN) -> None:
        """Say what is the matter and until when that is borne."""
        message = trouble.message
        if trouble.deadline is not None:
            message += f" The job fails at {times.stamp(trouble.deadline)} if this lasts."
            patience = min(patience, max(1.0, (trouble.deadline - self.now).total_seconds()))
        self.wait(phase, trouble.reason, message, patience)

    def wait(self, phase: Phase, reason: str, message: str, seconds: float | None) -> None:
        self.update(phase=phase)
        if phase == "Preparing":
            self.conditions.set("Prepared", holds=False, reason=reason, message=message)
        states.progress_to_kstatus(self.conditions, reason=reason, message=message)
        self.come_again(seconds)

    def come_again(self, seconds: float | None) -> None:
        if seconds is not None:
            self.requeue = seconds if self.requeue is None else min(self.requeue, seconds)

    # -- children ----------------------------------------------------------------------------------------------

    def pending(self, plan: Plan, job: Body, pods: list[Body], phase: Phase, message: str) -> None:
        """A Job is there and its pod may not run yet: say why, and end it when its time of grace is over."""
        trouble = find_trouble(plan, job, pods, self.observed.events, self.settings, now=self.now)
        if self.restores(plan, trouble, phase):
            return
        if trouble is None:
            waits = not any(is_running(pod) for pod in pods)
            self.wait(phase, phase, message, self.patience(job) if waits else None)
            return
        if self.is_over(trouble):
            attempt = int(labels(job).get(names.ATTEMPT_LABEL, 0))
            self.fail(failures.failure(trouble.reason, trouble.message, attempt=attempt))
            return
        self.bear(trouble, phase, self.patience(job))

    def patience(self, job: Body) -> float:
        """Seconds until the next look at ``job``, whose pods do not run yet."""
        made = times.parse(job["metadata"].get("creationTimestamp")) or self.now
        return min(LOOK_AT_LEAST_EVERY, max(LOOK_AGAIN, (self.now - made).total_seconds() / 4))

    def restores(self, plan: Plan, trouble: Trouble | None, phase: Phase) -> bool:
        """Whether a pod waits for a ConfigMap that we made and somebody deleted; then it is made anew."""
        if trouble is None or trouble.config_map != self.config_name(plan):
            return False
        # The events go on saying so until the kubelet tries anew; to apply it once more changes nothing.
        self.apply_shared(plan)
        said = f"The ConfigMap {trouble.config_map} was deleted; it is made anew, and the pod waits to see it."
        self.wait(phase, "Restoring", said, LOOK_AGAIN)
        return True

    def blocked(self, body: Body) -> bool:
        """Whether ``body`` must wait: for a Job that an earlier FineTuneJob of this name left, or for a pod of the
        same step that still lives, since two attempts must never write to one output."""
        name = body["metadata"]["name"]
        if name in self.children.strangers:
            message = f"Job {name} of an earlier FineTuneJob of this name is still being deleted."
            self.wait("Pending", "Clearing", message, CLEARING)
            return True
        living = self.children.living(labels(body)[names.COMPONENT_LABEL])
        if living:
            message = f"Pod {name_of(living[0])} of the last attempt has not ended yet; the next one waits for it."
            self.wait("Pending", *self.unless_stuck("Clearing", message), CLEARING)
            return True
        return False

    def unless_stuck(self, reason: str, message: str) -> tuple[str, str]:
        """``reason`` and ``message`` of a wait for pods that were told to end; others where one does not, long after
        its time: nobody but a person knows what a pod on a lost node does, and it may still write."""
        pod = next((pod for pod in self.children.living() if is_overdue(pod, self.now)), None)
        if pod is None:
            return reason, message
        name, node = name_of(pod), pod.get("spec", {}).get("nodeName", "unknown")
        told = (
            f"Pod {name} was to end by {pod['metadata']['deletionTimestamp']}, and node {node} does not confirm it. "
            "Most likely the node is gone, and the pod may still write. Once it is certain that it runs no more, taint "
            f"the node node.kubernetes.io/out-of-service, or: kubectl delete pod {name} --force"
        )
        ready = next((found for found in self.before.conditions if found.type == "Ready"), None)
        if ready is None or ready.reason != STUCK:
            self.note(STUCK, told, warning=True)
        return STUCK, told

    def apply_shared(self, plan: Plan) -> None:
        """What both steps need. The configuration that was taken up first stays, whatever this operator would
        make of the same spec."""
        self.applied += manifests.claims(plan)
        if plan.config.digest() == self.status.config_hash:
            self.applied.append(manifests.config_map(plan, name=self.config_name(plan)))

    def config_name(self, plan: Plan) -> str:
        return names.config_map(plan.name, self.status.config_hash or plan.config.digest())

    # -- what is put down --------------------------------------------------------------------------------------

    def update(self, **values: Any) -> None:
        self.status = self.status.model_copy(update=values)

    def note(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.notes.append(Note(reason, message, "Warning" if warning else "Normal"))
