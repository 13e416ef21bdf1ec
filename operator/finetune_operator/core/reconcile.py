"""decide(): where a job is in its life, and what is to be done next.

One pure function of what the API server holds and the time. It keeps no state: killed between any two of its
effects, the operator decides the same again from what is there. Four rules make that safe:

* children have names that follow from the job, so that creating one twice is creating it once;
* a Job of attempt n is created before ``status.attempt`` says n, and the next attempt is one more than the greatest
  of what the status and the Jobs say, so that no number is used twice;
* why an attempt is stopped, how it ended and how long it ran are in the status before its Job is deleted or the next
  one made, so that nothing is counted twice or not at all;
* ``Succeeded`` and ``Failed`` are final, whatever becomes of the children afterwards.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api.failures import FailureReason
from finetune_api.reports import TerminationReport

from finetune_operator.core import failures, manifests, reports, times
from finetune_operator.core.acceptance import parse_job, profile_of, snapshot_of, template_of, template_snapshot
from finetune_operator.core.attempts import Attempts
from finetune_operator.core.children import (
    Body,
    Observed,
    failed_condition,
    has_failed,
    is_complete,
    is_deleted,
    report_of,
)
from finetune_operator.core.decision import Decision
from finetune_operator.core.effects import CLEARING, LOOK_AGAIN
from finetune_operator.core.lifecycle import FINAL
from finetune_operator.core.plan import Plan, Refused, make_plan
from finetune_operator.core.queueing import is_held, why_held
from finetune_operator.core.settings import CoreSettings
from finetune_operator.core.waiting import Trouble

R = FailureReason
PREPARING = "The prepare step fetches and checks model and data."


def needs_profile(body: Body) -> bool:
    """Whether the TrainingProfile has to be read: only until a copy of it is in the status."""
    status = body.get("status") or {}
    return not status.get("profile") and status.get("phase") not in FINAL


def needs_template(body: Body) -> str | None:
    """Name of the ChatTemplate that has to be read: only until a copy of it is in the status."""
    status = body.get("status") or {}
    if status.get("chatTemplate") or status.get("phase") in FINAL:
        return None
    name: str | None = ((body.get("spec") or {}).get("template") or {}).get("ref")
    return name


def decide(body: Body, observed: Observed, now: datetime, settings: CoreSettings) -> Decision:
    """What to do about the FineTuneJob ``body``.

    Raises:
        pydantic.ValidationError: the status is not one that an operator wrote; without it nothing is safe to do.
    """
    return _Reconciliation(body, observed, now, settings).decide()


def refuse(body: Body, message: str, now: datetime, *, final: bool) -> Decision:
    """Where the API server will not have what we apply: an end where the spec is to blame, else a wait that says
    what stands in the way, such as a quota."""
    run = _Reconciliation(body, Observed(), now, None)
    if final:
        run.fail(
            failures.failure(R.SPEC_INVALID, f"The API server refuses what the spec asks for: {message}", attempt=0)
        )
    else:
        run.wait(run.before.phase or "Pending", "Refused", f"The API server refuses: {message}", None)
    return run.decision()


class _Reconciliation(Attempts):
    """One run of :func:`decide`: gathers effects while it walks through the job's life."""

    def decide(self) -> Decision:
        if is_deleted(self.body):
            return Decision(status=self.before)
        self.conditions.touch()
        if self.before.phase in FINAL:
            self.stop_children()
            return self.decision()
        if not self.suspends:
            self.resume()
        try:
            plan = self.accept()
        except Refused as refused:
            self.refused(refused)
        else:
            if self.conditions.holds("Prepared"):
                self.train(plan)
            else:
                self.prepare(plan)
        return self.decision()

    # -- taking up ---------------------------------------------------------------------------------------------

    def accept(self) -> Plan:
        accepted = self.conditions.holds("Accepted")
        job = parse_job(self.body, rules=not accepted)
        profile = profile_of(job, self.before, self.observed.profile, self.settings)
        snapshot = snapshot_of(job, profile)
        template = template_of(job, self.before, self.observed.chat_template)
        kept_template = self.before.chat_template or template_snapshot(job, template)
        plan = make_plan(job, profile, template)
        if not accepted:
            self.conditions.set("Accepted", holds=True, reason="Accepted", message="The manifest is valid.")
        self.conditions.set(
            "Prepared",
            holds=self.conditions.holds("Prepared"),
            reason="Prepared" if self.conditions.holds("Prepared") else "Preparing",
            message=self._message_of("Prepared") if self.conditions.holds("Prepared") else "",
        )
        self.update(
            start_time=self.before.start_time or times.stamp(self.now),
            method=job.spec.method_name,
            gpus=job.spec.distributed.nodes * job.spec.distributed.gpus_per_node,
            profile=self.before.profile or snapshot,
            chat_template=kept_template,
            config_hash=self.before.config_hash or plan.config.digest(),
        )
        return plan

    def refused(self, refused: Refused) -> None:
        """An end; but for what may be applied a moment after the job there is a time of grace, and a job that rests
        does without it."""
        trouble = None
        if refused.reason in (R.PROFILE_NOT_FOUND, R.CHAT_TEMPLATE_NOT_FOUND):
            deadline = self.wanted_since() + timedelta(seconds=self.settings.start_grace)
            trouble = Trouble(refused.reason, refused.message, deadline)
        if trouble is not None and (self.suspends or not self.is_over(trouble)):
            self.conditions.set("Accepted", holds=None, reason=refused.reason, message=refused.message)
            if self.suspends:
                self.rest(f"Before it can run: {refused.message}")
            else:
                self.bear(trouble, "Pending")
            return
        if not self.conditions.holds("Accepted"):
            self.conditions.set("Accepted", holds=False, reason=refused.reason, message=refused.message)
        self.fail(failures.failure(refused.reason, refused.message, attempt=0))

    def wanted_since(self) -> datetime:
        """When the job was created, or resumed."""
        created = times.parse(self.body["metadata"].get("creationTimestamp")) or self.now
        resumed = self.conditions.get("Suspended")
        return max(created, times.parse(resumed.last_transition_time) or created) if resumed else created

    # -- prepare -----------------------------------------------------------------------------------------------

    def prepare(self, plan: Plan) -> None:
        job = self.children.prepare
        if job is None:
            if self.suspends:
                self.rest("Model and data are prepared when runPolicy.suspend is false.")
            else:
                self.launch_prepare(plan)
            return
        pods = self.children.pods_of(job)
        if is_complete(job):
            self.prepared(report_of(pods))
            self.train(plan)
            return
        if failed_condition(job):
            self.fail(failures.of_job(job, pods, attempt=0), report_of(pods, succeeded=False))
            return
        if is_deleted(job):
            if self.suspends:
                self.come_to_rest("The prepare Job is being deleted.")
                return
            self.wait("Preparing", "Clearing", "The prepare Job is being deleted; it is made anew.", CLEARING)
            return
        known = [failures.of_pod(pod, attempt=0) for pod in pods if has_failed(pod)]
        hopeless = (failure for failure in known if not failure.retryable)
        # Where the exit code tells, the Job fails by its own policy and its pod stays for whoever reads the log.
        final = next((failure for failure in hopeless if failure.exit_code not in manifests.FINAL_EXIT_CODES), None)
        if final is not None:  # the Job's controller would try again in vain
            self.fail(final)
            return
        if self.suspends:  # what it has written stays in the cache, and its Job is made anew
            self.deleted.append(job["metadata"]["name"])
            self.come_to_rest("The prepare step is told to end.")
            return
        if is_held(job):
            self.wait("Preparing", "Queued", why_held(job, self.observed.workloads, self.now), LOOK_AGAIN)
            return
        message = PREPARING
        if known:
            message = f"The prepare step is tried again after {known[-1].reason}: {known[-1].message}"
        self.pending(plan, job, pods, "Preparing", message)

    def launch_prepare(self, plan: Plan) -> None:
        body = manifests.prepare_job(plan, config=self.config_name(plan), progress_url=self.settings.progress_url)
        if self.blocked(body):
            return
        self.apply_shared(plan)
        self.applied.append(body)
        self.wait("Preparing", "Preparing", PREPARING, LOOK_AGAIN)

    def prepared(self, report: TerminationReport | None) -> None:
        self.status = reports.with_report(self.status, report, self.now)
        data = self.status.dataset
        message = "Model and data are ready."
        if data is not None:
            message = f"{data.samples} samples with {data.supervised_tokens} supervised tokens are ready."
        self.conditions.set("Prepared", holds=True, reason="Prepared", message=message)

    def _message_of(self, kind: str) -> str:
        return next((condition.message for condition in self.before.conditions if condition.type == kind), "")
