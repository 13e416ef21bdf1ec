"""decide(): where a job is in its life, and what is to be done next.

One pure function of what the API server holds and the time. It keeps no state: killed between any two of its
effects, the operator decides the same again from what is there. Three rules make that safe:

* children have names that follow from the job, so that creating one twice is creating it once;
* a Job of attempt n is created before ``status.attempt`` says n, and the next attempt is one more than the greatest
  of what the status and the Jobs say, so that no number is used twice;
* ``Succeeded`` and ``Failed`` are final, whatever becomes of the children afterwards.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from finetune_api.failures import FailureReason
from finetune_api.reports import TerminationReport
from finetune_api.status import Failure, FineTuneJobStatus, Phase

from finetune_operator.core import conditions as states
from finetune_operator.core import failures, manifests, names, reports, times
from finetune_operator.core.acceptance import parse_job, profile_of, snapshot_of, template_of, template_snapshot
from finetune_operator.core.children import (
    Body,
    Observed,
    container_state,
    failed_condition,
    finished_at,
    has_failed,
    is_active,
    is_complete,
    is_deleted,
    is_running,
    labels,
    report_of,
    sort_children,
)
from finetune_operator.core.decision import Decision, Note
from finetune_operator.core.plan import Plan, Refused, make_plan
from finetune_operator.core.settings import CoreSettings, retry_delay
from finetune_operator.core.waiting import Trouble, find_trouble

R = FailureReason
FINAL: tuple[Phase, ...] = ("Succeeded", "Failed")
_LOOK_AGAIN = 15.0
"""Seconds between two looks at a pod that does not run yet: what holds it up sends no event of its own."""
_CLEARING = 5.0


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


class _Reconciliation:
    """One run of :func:`decide`: gathers effects while it walks through the job's life."""

    def __init__(self, body: Body, observed: Observed, now: datetime, settings: CoreSettings | None) -> None:
        self.body, self.observed, self.now = body, observed, now
        self._settings = settings
        self.before = FineTuneJobStatus.model_validate(body.get("status") or {})
        self.generation: int | None = body["metadata"].get("generation")
        self.status = self.before.model_copy(update={"observed_generation": self.generation})
        self.conditions = states.Conditions(self.before.conditions, generation=self.generation, now=now)
        self.children = sort_children(observed, body["metadata"]["uid"])
        self.applied: list[Body] = []
        self.deleted: list[str] = []
        self.notes: list[Note] = []
        self.requeue: float | None = None

    @property
    def settings(self) -> CoreSettings:
        if self._settings is None:
            raise AssertionError("a refusal decides nothing that depends on settings")
        return self._settings

    def decide(self) -> Decision:
        if is_deleted(self.body):
            return Decision(status=self.before)
        self.conditions.touch()
        if self.before.phase in FINAL:
            self.stop_children()
            return self.decision()
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

    def decision(self) -> Decision:
        self.update(conditions=self.conditions.listed())
        saved = self.status.checkpoint
        if saved is not None and saved != self.before.checkpoint:
            self.notes.insert(0, Note("CheckpointSaved", f"Checkpoint of step {saved.step}: {saved.path}"))
        return Decision(self.status, self.applied, self.deleted, self.notes, self.requeue)

    # -- taking up ---------------------------------------------------------------------------------------------

    def accept(self) -> Plan:
        accepted = self.conditions.holds("Accepted")
        job = parse_job(self.body, rules=not accepted)
        profile = profile_of(job, self.before, self.observed.profile, self.settings)
        snapshot = snapshot_of(job, profile)
        template = template_of(job, self.before, self.observed.chat_template)
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
            chat_template=self.before.chat_template or (template and template_snapshot(template)),
            config_hash=self.before.config_hash or plan.config.digest(),
        )
        return plan

    def refused(self, refused: Refused) -> None:
        """An end; but for what may be applied a moment after the job there is a time of grace."""
        trouble = None
        if refused.reason in (R.PROFILE_NOT_FOUND, R.CHAT_TEMPLATE_NOT_FOUND):
            created = times.parse(self.body["metadata"].get("creationTimestamp")) or self.now
            deadline = created + timedelta(seconds=self.settings.start_grace)
            trouble = Trouble(refused.reason, refused.message, deadline)
        if trouble is not None and not self.is_over(trouble):
            self.conditions.set("Accepted", holds=None, reason=refused.reason, message=refused.message)
            self.bear(trouble, "Pending")
            return
        if not self.conditions.holds("Accepted"):
            self.conditions.set("Accepted", holds=False, reason=refused.reason, message=refused.message)
        self.fail(failures.failure(refused.reason, refused.message, attempt=0))

    # -- prepare -----------------------------------------------------------------------------------------------

    def prepare(self, plan: Plan) -> None:
        job = self.children.prepare
        if job is None:
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
            self.wait("Preparing", "Clearing", "The prepare Job is being deleted; it is made anew.", _CLEARING)
            return
        known = [failures.of_pod(pod, attempt=0) for pod in pods if has_failed(pod)]
        hopeless = (failure for failure in known if not failure.retryable)
        # Where the exit code tells, the Job fails by its own policy and its pod stays for whoever reads the log.
        final = next((failure for failure in hopeless if failure.exit_code not in manifests.FINAL_EXIT_CODES), None)
        if final is not None:  # the Job's controller would try again in vain
            self.fail(final)
            return
        message = "The prepare step runs."
        if known:
            message = f"The prepare step is tried again after {known[-1].reason}: {known[-1].message}"
        self.pending(plan, job, pods, "Preparing", message)

    def launch_prepare(self, plan: Plan) -> None:
        body = manifests.prepare_job(plan, config=self.config_name(plan), progress_url=self.settings.progress_url)
        if self.blocked(body):
            return
        self.apply_shared(plan)
        self.applied.append(body)
        if self.before.phase != "Preparing":
            self.note("Preparing", f"Job {body['metadata']['name']} fetches and checks model and data")
        self.wait("Preparing", "Preparing", "The prepare step starts.", _LOOK_AGAIN)

    def prepared(self, report: TerminationReport | None) -> None:
        self.status = reports.with_report(self.status, report, self.now)
        data = self.status.dataset
        message = "Model and data are ready."
        if data is not None:
            message = f"{data.samples} samples with {data.supervised_tokens} supervised tokens are ready."
        self.conditions.set("Prepared", holds=True, reason="Prepared", message=message)
        self.note("Prepared", message)

    # -- train -------------------------------------------------------------------------------------------------

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
            self.wait("Pending", "Clearing", f"Job {job['metadata']['name']} is being deleted.", _CLEARING)
        else:
            self.training(plan, job, pods, attempt)

    def training(self, plan: Plan, job: Body, pods: list[Body], attempt: int) -> None:
        again = self.before.phase == "Running" and self.before.attempt == attempt
        started = [pod for pod in pods if is_running(pod) or container_state(pod, "terminated")]
        begun = len(started) >= plan.job.spec.distributed.nodes  # they wait for each other
        suffix = "" if attempt == 1 else f", attempt {attempt}"
        if not (begun or again):
            self.pending(plan, job, pods, "Queued", f"{_training_waits(plan)}{suffix}.")
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
        self.wait("Queued", "Queued", f"{_training_waits(plan)}{suffix}.", _LOOK_AGAIN)

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

    # -- ends --------------------------------------------------------------------------------------------------

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

    def fail(self, failure: Failure, report: TerminationReport | None = None) -> None:
        self.status = reports.with_report(self.status, report, self.now)
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

    # -- helpers -----------------------------------------------------------------------------------------------

    def pending(self, plan: Plan, job: Body, pods: list[Body], phase: Phase, message: str) -> None:
        """A Job is there and its pod may not run yet: say why, and end it when its time of grace is over."""
        trouble = find_trouble(plan, job, pods, self.observed.events, self.settings)
        if trouble is None:
            waits = not any(is_running(pod) for pod in pods)
            self.wait(phase, phase, message, _LOOK_AGAIN if waits else None)
            return
        if self.is_over(trouble):
            attempt = int(labels(job).get(names.ATTEMPT_LABEL, 0))
            self.fail(failures.failure(trouble.reason, trouble.message, attempt=attempt))
            return
        self.bear(trouble, phase)

    def is_over(self, trouble: Trouble) -> bool:
        return trouble.deadline is not None and self.now >= trouble.deadline

    def bear(self, trouble: Trouble, phase: Phase) -> None:
        """Say what is the matter and until when that is borne."""
        message, patience = trouble.message, _LOOK_AGAIN
        if trouble.deadline is not None:
            message += f" The job fails at {times.stamp(trouble.deadline)} if this lasts."
            patience = min(patience, max(1.0, (trouble.deadline - self.now).total_seconds()))
        self.wait(phase, trouble.reason, message, patience)

    def wait(self, phase: Phase, reason: str, message: str, seconds: float | None) -> None:
        self.update(phase=phase)
        if phase == "Preparing":
            self.conditions.set("Prepared", holds=False, reason=reason, message=message)
        states.progress_to_kstatus(self.conditions, reason=reason, message=message)
        if seconds is not None:
            self.requeue = seconds if self.requeue is None else min(self.requeue, seconds)

    def blocked(self, body: Body) -> bool:
        """Whether ``body`` must wait: for a Job that an earlier FineTuneJob of this name left, or for a training
        pod that still lives, since two attempts must never write to one output."""
        name = body["metadata"]["name"]
        if name in self.children.strangers:
            message = f"Job {name} of an earlier FineTuneJob of this name is still being deleted."
            self.wait("Pending", "Clearing", message, _CLEARING)
            return True
        alive = [
            pod["metadata"]["name"]
            for pod in self.children.pods
            if labels(pod).get(names.COMPONENT_LABEL) == names.TRAIN
            and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")
        ]
        if alive:
            message = f"Pod {alive[0]} of the last attempt has not ended yet; the next one waits for it."
            self.wait("Pending", "Clearing", message, _CLEARING)
            return True
        return False

    def apply_shared(self, plan: Plan) -> None:
        """What both steps need. The configuration that was taken up first stays, whatever this operator would
        make of the same spec."""
        if self.observed.authority is not None:
            self.applied.append(manifests.authority(plan.namespace, self.observed.authority))
        self.applied += manifests.claims(plan)
        if plan.config.digest() == self.status.config_hash:
            self.applied.append(manifests.config_map(plan, name=self.config_name(plan)))

    def config_name(self, plan: Plan) -> str:
        return names.config_map(plan.name, self.status.config_hash or plan.config.digest())

    def update(self, **values: Any) -> None:
        self.status = self.status.model_copy(update=values)

    def note(self, reason: str, message: str, *, warning: bool = False) -> None:
        self.notes.append(Note(reason, message, "Warning" if warning else "Normal"))

    def _message_of(self, kind: str) -> str:
        return next((condition.message for condition in self.before.conditions if condition.type == kind), "")


def _training_waits(plan: Plan) -> str:
    nodes = plan.job.spec.distributed.nodes
    return "The training pod waits for a node" if nodes == 1 else f"The {nodes} training pods wait for nodes"
