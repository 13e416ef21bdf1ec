"""Training: one Job for each attempt, the next one after a failure that a retry can mend."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api.reports import TerminationReport
from finetune_api.status import Failure

from finetune_operator.core import conditions as states
from finetune_operator.core import failures, manifests, names, reports, times
from finetune_operator.core.children import (
    Body,
    container_state,
    failed_condition,
    finished_at,
    is_complete,
    is_deleted,
    is_running,
    report_of,
)
from finetune_operator.core.effects import CLEARING, LOOK_AGAIN, Effects
from finetune_operator.core.plan import Plan
from finetune_operator.core.settings import retry_delay


class Attempts(Effects):
    """The part of a job's life that begins when model and data are ready."""

    def train(self, plan: Plan) -> None:
        attempt = max([self.before.attempt or 0, *self.children.attempts])
        if attempt == 0:
            self.launch_attempt(plan, 1)
            return
        self.update(attempt=attempt)
        self.status = reports.with_progress(self.status, self.observed.progress, self.now)
        job = self.children.attempts.get(attempt)
        if job is None:
            name = names.train_job(plan.name, attempt)
            self.attempt_failed(plan, failures.gone(f"Job {name} was deleted.", attempt=attempt), None, None)
            return
        pods = self.children.pods_of(job)
        if is_complete(job):
            self.succeed(plan, job, report_of(pods))
        elif failed_condition(job):
            report = report_of(pods, succeeded=False)
            self.attempt_failed(plan, failures.of_job(job, pods, attempt=attempt), report, finished_at(job))
        elif is_deleted(job):
            self.wait("Pending", "Clearing", f"Job {job['metadata']['name']} is being deleted.", CLEARING)
        else:
            self.training(plan, job, pods, attempt)

    def training(self, plan: Plan, job: Body, pods: list[Body], attempt: int) -> None:
        again = self.before.phase == "Running" and self.before.attempt == attempt
        begun = any(is_running(pod) or container_state(pod, "terminated") for pod in pods)
        suffix = "" if attempt == 1 else f", attempt {attempt}"
        if not (begun or again):
            self.pending(plan, job, pods, "Queued", f"The training pod waits for a node{suffix}.")
            return
        if not again:
            at = next((pod.get("spec", {}).get("nodeName") for pod in pods if is_running(pod)), None)
            self.note("Started", f"Training runs{f' on {at}' if at else ''}, attempt {attempt}")
        ending = next((pod for pod in pods if is_deleted(pod) and container_state(pod, "terminated") is None), None)
        if ending is not None:  # perhaps for long: nobody knows what a pod on a lost node does, and it may still write
            self.wait("Running", "Ending", f"A pod is told to end. {failures.cluster_said(ending)}", None)
            return
        self.wait("Running", "Training", f"Training{suffix}.", None)

    def launch_attempt(self, plan: Plan, attempt: int) -> None:
        body = manifests.train_job(
            plan, attempt=attempt, config=self.config_name(plan), progress_url=self.settings.progress_url
        )
        if self.blocked(body):
            return
        self.apply_shared(plan)
        self.applied += [manifests.service(plan), body]
        self.update(attempt=attempt)
        suffix = "" if attempt == 1 else f", attempt {attempt}"
        self.wait("Queued", "Queued", f"The training pod waits for a node{suffix}.", LOOK_AGAIN)

    def attempt_failed(
        self, plan: Plan, failure: Failure, report: TerminationReport | None, ended: datetime | None
    ) -> None:
        attempt = failure.attempt or 0
        recorded = self.before.failure
        if recorded is not None and recorded.attempt == attempt:
            failure = recorded  # the pod that told it may be gone by now
        self.status = reports.with_report(self.status, report, self.now)
        limit = plan.job.spec.run_policy.backoff_limit
        if not failure.retryable or attempt > limit:
            self.fail(failure)
            return
        self.update(failure=failure)
        due = (ended or self.now) + timedelta(seconds=retry_delay(attempt, self.settings))
        if ended is None and failure is recorded:
            due = self.now  # nobody knows any more when it ended
        told = f"Attempt {attempt} failed by {failure.reason}: {failure.message}"
        if failure is not recorded:
            self.note("Retrying", f"{told} Attempt {attempt + 1} of {limit + 1} follows.", warning=True)
        if self.now >= due:
            self.launch_attempt(plan, attempt + 1)
            return
        message = f"{told} Attempt {attempt + 1} of {limit + 1} starts at {times.stamp(due)}."
        self.wait("Pending", "BackOff", message, (due - self.now).total_seconds())

    def succeed(self, plan: Plan, job: Body, report: TerminationReport | None) -> None:
        self.status = reports.with_report(self.status, report, self.now)
        output = reports.finished(self.status, plan, report)
        message = f"The result is at {output.uri}"
        self.update(
            phase="Succeeded",
            completion_time=times.stamp(finished_at(job) or self.now),
            output=output,
            failure=None,
        )
        states.succeeded(self.conditions, message)
        self.note("Succeeded", message)
