"""Training: one Job for each attempt, the next one after a failure that a retry can mend."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api.failures import REASONS, FailureReason
from finetune_api.reports import TerminationReport
from finetune_api.status import Failure

from finetune_operator.core import conditions as states
from finetune_operator.core import failures, lifecycle, manifests, names, reports, times
from finetune_operator.core.children import (
    Body,
    container_state,
    failed_condition,
    finished_at,
    has_failed,
    is_active,
    is_complete,
    is_deleted,
    is_running,
    name_of,
    report_of,
)
from finetune_operator.core.effects import CLEARING, LOOK_AGAIN, Effects
from finetune_operator.core.plan import Plan
from finetune_operator.core.queueing import is_held, is_moved, why_held
from finetune_operator.core.settings import retry_delay
from finetune_operator.core.waiting import find_trouble

R = FailureReason
_SAVING = "The running time is over; training is told to end and saves a checkpoint first."


class Attempts(Effects):
    """The part of a job's life that begins when model and data are ready."""

    def train(self, plan: Plan) -> None:
        attempt = max([self.before.attempt or 0, *self.children.attempts])
        if attempt == 0:
            if self.suspends:
                self.rest("Model and data are ready; training begins when runPolicy.suspend is false.")
            else:
                self.launch_attempt(plan, 1)
            return
        suspended = self.before.suspended_attempt
        self.update(attempt=attempt, suspended_attempt=suspended if suspended == attempt else None)
        job = self.children.attempts.get(attempt)
        pods = self.children.pods_of_attempt(attempt)
        held = job is not None and is_held(job)
        rests = self.before.phase == "Suspended" or (held and self.before.phase == "Queued")
        if not rests:  # what comes late is older than the pods' last word
            self.status = reports.with_progress(self.status, self.observed.progress, self.now)
        told_to_end = suspended == attempt or self.ended_by_us(attempt) is not None
        if not (told_to_end or held) and self.recorded(attempt) is None:
            self.status = lifecycle.with_run_begun(self.status, pods, self.now)
        if job is not None and is_complete(job):
            self.succeed(plan, job, report_of(pods))
        elif told_to_end:
            self.stopped(plan, job, pods, attempt)
        elif job is None:
            name = names.train_job(plan.name, attempt)
            self.attempt_failed(plan, failures.gone(f"Job {name} was deleted.", attempt=attempt), None, None)
        elif failed_condition(job):
            report = report_of(pods, succeeded=False)
            self.attempt_failed(plan, failures.of_job(job, pods, attempt=attempt), report, finished_at(job))
        elif self.suspends:
            self.update(suspended_attempt=attempt)
            self.stop(job)
            self.come_to_rest("Training is told to end; it saves a checkpoint first.")
        elif is_deleted(job):
            self.wait("Pending", "Clearing", f"Job {job['metadata']['name']} is being deleted.", CLEARING)
        elif self.before.phase == "Queued" and not any(is_running(pod) for pod in pods) and self.is_moved(plan, job):
            self.update(suspended_attempt=attempt)
            self.stop(job)
            self.wait("Queued", "Moving", "The attempt leaves the queue that it was in.", CLEARING)
        elif held:
            self.held(job, pods)
        else:
            self.training(plan, job, pods, attempt)

    def is_moved(self, plan: Plan, job: Body) -> bool:
        return is_moved(job, plan.job.spec.scheduling.queue_name)

    def held(self, job: Body, pods: list[Body]) -> None:
        """A queue has yet to start the attempt, or took its place back: then its pods save a checkpoint and go, and the
        same Job goes on from it when the queue starts it again. Neither is a failure."""
        why = why_held(job, self.observed.workloads, self.now)
        self.status = lifecycle.with_run_ended(self.status, self.now)
        if self.before.phase == "Running":
            living = self.children.living(names.TRAIN)
            if living:
                ends = f"The queue takes the place back; pod {name_of(living[0])} saves a checkpoint and ends. {why}"
                self.wait("Running", *self.unless_stuck("Requeued", ends), CLEARING)
                return
            self.status = reports.with_report(self.status, report_of(pods, succeeded=False), self.now)
            self.note("Requeued", f"The queue took the place back. {why} Then training goes on from {self.saved()}.")
        self.wait("Queued", "Queued", why, LOOK_AGAIN)

    def training(self, plan: Plan, job: Body, pods: list[Body], attempt: int) -> None:
        again = self.before.phase == "Running" and self.before.attempt == attempt
        started = [
            pod for pod in pods if not is_deleted(pod) and (is_running(pod) or container_state(pod, "terminated"))
        ]
        begun = len(started) >= plan.job.spec.distributed.nodes  # they wait for each other
        suffix = "" if attempt == 1 else f", attempt {attempt}"
        if not (begun or again):
            self.pending(plan, job, pods, "Queued", f"{_wait_for_nodes(plan)}{suffix}.")
            return
        left = self.seconds_left(plan)
        if left is not None and left <= 0:
            self.update(failure=self.deadline_exceeded(plan, attempt))
            self.stop(job)
            self.wait("Running", R.DEADLINE_EXCEEDED, _SAVING, CLEARING)
            return
        patience = self.patience_left(plan)
        if patience is not None and patience <= 0:
            self.stalled(job, attempt)
            return
        left = min((seconds for seconds in (left, patience) if seconds is not None), default=None)
        trouble = find_trouble(plan, job, pods, self.observed.events, self.settings, now=self.now)
        if self.restores(plan, trouble, "Running"):
            return  # its pod was replaced, as a queue does
        if not begun:
            self.come_again(LOOK_AGAIN)
        ending = next((pod for pod in pods if is_deleted(pod) and container_state(pod, "terminated") is None), None)
        if ending is not None:  # perhaps for long: nobody knows what a pod on a lost node does, and it may still write
            said = f"A pod is told to end. {failures.cluster_said(ending)}"
            self.wait("Running", *self.unless_stuck("Ending", said), left)
            self.come_again(LOOK_AGAIN)
            return
        self.wait("Running", "Training", f"Training{suffix}.", left)

    def launch_attempt(self, plan: Plan, attempt: int) -> None:
        left = self.seconds_left(plan)
        if left is not None and left <= 0:
            self.fail(self.deadline_exceeded(plan, attempt - 1))
            return
        body = manifests.train_job(
            plan, attempt=attempt, config=self.config_name(plan), progress_url=self.settings.progress_url
        )
        if self.blocked(body):
            return
        suffix = "" if attempt == 1 else f", attempt {attempt}"
        if lifecycle.books(self.status) != lifecycle.books(self.before):
            self.wait("Pending", "Starting", f"Training starts{suffix}.", 0.0)
            return
        # Where the prepare step has just run, all that both need was there a moment ago.
        if attempt > 1 or self.was_prepared():
            self.apply_shared(plan)
        if plan.job.spec.distributed.nodes > 1:  # they find each other by it
            self.applied.append(manifests.service(plan))
        self.applied.append(body)
        self.update(attempt=attempt, suspended_attempt=None)
        self.wait("Queued", "Queued", f"{_waits(plan)}{suffix}.", LOOK_AGAIN)

    def was_prepared(self) -> bool:
        """Whether the status said so before this reconcile."""
        return any(c.type == "Prepared" and c.status == "True" for c in self.before.conditions)

    def attempt_failed(
        self, plan: Plan, failure: Failure, report: TerminationReport | None, ended: datetime | None
    ) -> None:
        attempt = failure.attempt or 0
        recorded = self.recorded(attempt)
        self.status = reports.with_report(self.status, report, self.now)
        if recorded is None:
            self.status = lifecycle.with_run_ended(self.status, ended or self.now)
            self.status = lifecycle.with_failure(self.status, failure)
        else:
            failure = recorded  # the pod that told it may be gone by now
        limit = plan.job.spec.run_policy.backoff_limit
        failed = self.status.failed_attempts or 0
        if not failure.retryable or failed > limit:
            self.fail(failure)
            return
        delay = retry_delay(max(1, failed + (self.status.disruptions or 0)), self.settings)
        due = (ended or self.now) + timedelta(seconds=delay)
        if ended is None and recorded is not None:
            due = self.now  # nobody knows any more when it ended
        told = f"Attempt {attempt} failed by {failure.reason}: {failure.message}"
        if recorded is None:
            tally = f"retry {failed} of {limit}" if lifecycle.counts(failure) else "which does not count as a retry"
            self.note("Retrying", f"{told} Attempt {attempt + 1} follows, {tally}.", warning=True)
        if self.suspends:
            self.rest(f"{told} Attempt {attempt + 1} follows when runPolicy.suspend is false.")
        elif self.now >= due:
            self.launch_attempt(plan, attempt + 1)
        else:
            message = f"{told} Attempt {attempt + 1} starts at {times.stamp(due)}."
            self.wait("Pending", "BackOff", message, (due - self.now).total_seconds())

    def recorded(self, attempt: int) -> Failure | None:
        """Why ``attempt`` failed, where that is in the status and counted already."""
        failure = self.before.failure
        return failure if failure is not None and failure.attempt == attempt else None

    # -- told to end by us -------------------------------------------------------------------------------------

    def stop(self, job: Body) -> None:
        """End an attempt, after the status says why. It ran until now, since nobody may see when its pods end."""
        self.status = lifecycle.with_run_ended(self.status, self.now)
        self.deleted.append(job["metadata"]["name"])

    def stopped(self, plan: Plan, job: Body | None, pods: list[Body], attempt: int) -> None:
        """An attempt that was told to end: wait for its pods and their last word, then rest, fail or go on."""
        if job is not None and is_active(job):  # the operator that told it was ended before it could
            self.deleted.append(job["metadata"]["name"])
        by_us = self.ended_by_us(attempt)
        living = self.children.living(names.TRAIN)
        if living or (job is not None and not failed_condition(job)):
            what = "Its Job is being deleted."
            if living:
                what = f"Pod {name_of(living[0])} saves a checkpoint and ends."
            if by_us is not None:
                self.wait("Running", *self.unless_stuck(by_us.reason, what), CLEARING)
            elif self.suspends:
                self.come_to_rest(what)
            else:
                self.wait(self.before.phase or "Pending", *self.unless_stuck("Clearing", what), CLEARING)
            return
        if self.before.phase != "Suspended":
            self.status = reports.with_report(self.status, report_of(pods, succeeded=False), self.now)
        words = [failures.of_pod(pod, attempt=attempt) for pod in pods if has_failed(pod)]
        final = next((failure for failure in (by_us, *words) if failure and not failure.retryable), None)
        if final is not None:
            self.fail(final)
        elif by_us is not None:
            self.attempt_failed(plan, by_us, None, None)
        elif self.suspends:
            self.rest(f"Attempt {attempt} was stopped; the next one goes on from {self.saved()}.")
        else:
            self.launch_attempt(plan, attempt + 1)

    def saved(self) -> str:
        saved = self.status.checkpoint
        return f"its checkpoint of step {saved.step}" if saved else "the beginning: no checkpoint was saved yet"

    def ended_by_us(self, attempt: int) -> Failure | None:
        """Why ``attempt`` was told to end: its running time was over, or it stood still. None where it was not."""
        failure = self.recorded(attempt)
        return failure if failure is not None and failure.reason in (R.DEADLINE_EXCEEDED, R.STALLED) else None

    def stalled(self, job: Body, attempt: int) -> None:
        """End an attempt that takes no more steps; it counts as one that failed by itself."""
        step = self.status.progress.step if self.status.progress else 0
        quiet = times.spoken(lifecycle.quiet_seconds(self.status, self.now))
        what = f"Nothing was heard of a step for {quiet}; the last one was {step}. {REASONS[R.STALLED].advice}"
        failure = failures.failure(R.STALLED, what, attempt=attempt)
        self.stop(job)
        self.status = lifecycle.with_failure(self.status, failure)
        self.note("Retrying", f"Attempt {attempt} stands still: {what}", warning=True)
        self.wait("Running", R.STALLED, "Training stands still and is told to end.", CLEARING)

    def patience_left(self, plan: Plan) -> float | None:
        """Seconds until an attempt that is not heard of counts as stalled; None where it never does."""
        limit = plan.job.spec.run_policy.stall_timeout_seconds
        return None if limit is None else limit - lifecycle.quiet_seconds(self.status, self.now)

    def seconds_left(self, plan: Plan) -> float | None:
        """Of the running time of all attempts; None where it has no bound."""
        limit = plan.job.spec.run_policy.active_deadline_seconds
        return None if limit is None else limit - lifecycle.running_seconds(self.status, self.now)

    def deadline_exceeded(self, plan: Plan, attempt: int) -> Failure:
        ran, limit = (
            times.spoken(seconds)
            for seconds in (
                lifecycle.running_seconds(self.status, self.now),
                plan.job.spec.run_policy.active_deadline_seconds or 0,
            )
        )
        message = f"Training ran for {ran}; runPolicy.activeDeadlineSeconds allows {limit}. Raise it in a new job."
        return failures.failure(R.DEADLINE_EXCEEDED, message, attempt=attempt)

    # -- success -----------------------------------------------------------------------------------------------

    def succeed(self, plan: Plan, job: Body, report: TerminationReport | None) -> None:
        self.status = reports.with_report(self.status, report, self.now)
        self.status = lifecycle.with_run_ended(self.status, finished_at(job) or self.now)
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


def _waits(plan: Plan) -> str:
    queue = plan.job.spec.scheduling.queue_name
    if queue is not None:
        return f"Training waits for its place in the LocalQueue {queue}"
    return _wait_for_nodes(plan)


def _wait_for_nodes(plan: Plan) -> str:
    nodes = plan.job.spec.distributed.nodes
    return "The training pod waits for a node" if nodes == 1 else f"The {nodes} training pods wait for nodes"
