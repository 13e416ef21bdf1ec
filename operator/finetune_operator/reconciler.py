"""Joins the pure decisions to the cluster: observe, decide, apply, write, tell, delete.

What it remembers is only ever an optimization or a courtesy: how far a job was when it was last heard of, pods that
ended and were removed before anyone could ask why, progress that is not written yet. Without it the same happens
later or with a less precise word.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_api.metadata import ObjectMeta
from finetune_api.profile import TrainingProfile
from finetune_api.reports import ProgressReport

from finetune_operator.anew import read_jobs
from finetune_operator.cluster.errors import CONFLICT, FORBIDDEN, NOT_FOUND, UNPROCESSABLE, ApiError
from finetune_operator.cluster.objects import Cluster
from finetune_operator.core import manifests, names
from finetune_operator.core.children import Observed, is_active, labels
from finetune_operator.core.decision import Decision, Note
from finetune_operator.core.lifecycle import FINAL
from finetune_operator.core.patches import status_patch
from finetune_operator.core.queueing import held_jobs
from finetune_operator.core.reconcile import decide, needs_profile, needs_template, refuse
from finetune_operator.core.settings import CoreSettings
from finetune_operator.core.trust import may_rest_on_watches
from finetune_operator.core.waiting import wants_events
from finetune_operator.metrics import Metrics
from finetune_operator.seen import Seen, trimmed, version_of
from finetune_operator.troubles import Troubles
from finetune_operator.work_queue import WorkQueue

Body = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""
ENDED_PODS = 256
"""Jobs whose ended pods are remembered."""
WRITE_TRIES = 10
"""Tries to write one status while others write to the same object."""
PUBLISHED_SECONDS = 60.0
"""How long a namespace is taken to hold our certificate authority once it was written there."""
GATHER_SECONDS = 0.5
"""How long what is heard of a Job and its pods is gathered: that a pod begins or ends is told in several changes, and
Kubernetes' own Job controller takes a second for them."""
_SOON = 0.2
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Known:
    """A FineTuneJob as it was last heard of."""

    uid: str
    phase: str
    attempt: int


class Reconciler:
    """One for the whole operator; :meth:`reconcile` is called by the queue, once at a time for each job."""

    def __init__(
        self,
        cluster: Cluster,
        settings: CoreSettings,
        *,
        authority: Callable[[], str | None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        watched: bool = False,
    ) -> None:
        """``watched``: the watches tell of every change (``saw_job``, ``saw_child``), so that not all has to be read
        anew each time."""
        self.cluster, self.settings = cluster, settings
        self._watched, self._seen = watched, Seen()
        self._troubles = Troubles(cluster)
        self._doubted: set[Key] = set()
        self.queue: WorkQueue[Key] = WorkQueue()
        self.known: dict[Key, Known] = {}
        self.metrics = Metrics(lambda: (known.phase for known in self.known.values()))
        self._authority, self._clock = authority, clock
        self._ended: OrderedDict[Key, dict[str, Body]] = OrderedDict()
        self._progress: dict[Key, ProgressReport] = {}
        self._progress_written: dict[Key, float] = {}
        self._own_versions: dict[Key, int] = {}
        self._published: dict[str, tuple[str, float]] = {}

    # -- what is heard -----------------------------------------------------------------------------------------

    def saw_job(self, body: Body, *, deleted: bool = False) -> None:
        """A FineTuneJob was listed, changed or deleted."""
        meta = body["metadata"]
        key = (meta["namespace"], meta["name"])
        if deleted:
            known = self.known.get(key)
            if known is None or known.uid == meta["uid"]:  # else a new one of that name was heard of first
                self.forget(key)
            return
        own = self._own_versions.get(key)
        if own is not None and version_of(body) <= own:  # we wrote it ourselves, or something newer
            return
        idle = self._watched and self._is_idle(key, body)
        self._note(key, body)
        if not idle:
            self.queue.add(key)

    def _is_idle(self, key: Key, body: Body) -> bool:
        """Whether ``body`` has ended and there is nothing left to do: thousands may be so when the operator starts."""
        status, policy = body.get("status") or {}, (body.get("spec") or {}).get("runPolicy") or {}
        jobs, _ = self._seen.children(key)
        return (
            status.get("phase") in FINAL
            and policy.get("ttlSecondsAfterFinished") is None
            and status.get("observedGeneration") == body["metadata"].get("generation")
            and not any(is_active(job) for job in jobs)
        )

    def _note(self, key: Key, body: Body) -> bool:
        """Keep in mind how far ``body`` is; whether that is news."""
        status = body.get("status") or {}
        now = Known(body["metadata"]["uid"], status.get("phase") or "Pending", status.get("attempt") or 0)
        before, self.known[key] = self.known.get(key), now
        if now.phase not in FINAL:
            self._seen.note(key, body)
        else:  # what is left to do of it is little and rare
            self._seen.forget(key)
            self._ended.pop(key, None)
        return before != now

    def saw_child(self, body: Body, *, deleted: bool = False) -> None:
        """A Job or pod with our label was listed, changed or deleted."""
        key = names.job_of(body)
        if key is None:
            return
        known = self.known.get(key)
        if known is not None and known.phase in FINAL and known.uid == labels(body).get(names.UID_LABEL):
            if body.get("kind") != "Pod" and is_active(body):
                self.queue.add(key)
            return
        if body.get("kind") == "Pod" and body.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            self._ended.setdefault(key, {})[body["metadata"]["uid"]] = trimmed(body)
            self._ended.move_to_end(key)
            while len(self._ended) > ENDED_PODS:
                self._ended.popitem(last=False)
        news = self._seen.note_child(key, body, deleted=deleted)
        if not self._watched:
            self.queue.add(key)
        elif news and known is not None:  # else its FineTuneJob is about to be heard of
            self.queue.add_after(key, GATHER_SECONDS)

    def forget(self, key: Key) -> None:
        """The job is gone."""
        for memory in (self.known, self._ended, self._progress, self._progress_written, self._own_versions):
            memory.pop(key, None)
        self._seen.forget(key)
        self._doubted.discard(key)

    async def job_known(self, key: Key) -> Known | None:
        """What is known of a job, asking the API server where we have not heard of it yet."""
        if key not in self.known:
            body = await self.cluster.finetunejob(*key)
            if body is not None:
                self.saw_job(body)
        return self.known.get(key)

    def submit(self, key: Key, report: ProgressReport) -> None:
        """Progress of a job's current attempt; it is written at once or, after another, when the interval is over."""
        self._progress[key] = report
        self.queue.add_after(key, self._progress_due_in(key))

    async def resync(self) -> None:
        """Look at every job, in case a watch missed something; at what it did miss anew."""
        doubted, living, missing = set(), set(), set(self.known)
        async for body in self.cluster.finetunejobs():
            key = (body["metadata"]["namespace"], body["metadata"]["name"])
            missing.discard(key)
            if self._note(key, body):
                doubted.add(key)
            if self.known[key].phase not in FINAL:
                living.add(key)
        if self._watched and living:
            doubted |= await self._unheard(living)
        self._doubted |= doubted | missing
        for key in doubted | living | missing:
            self.queue.add(key)

    async def _unheard(self, keys: set[Key]) -> set[Key]:
        """Those whose Jobs or pods are not as the watches told. To list all of them costs less than those of each job:
        the API server goes through all in either case."""
        gone = {key: self._seen.uids(key) for key in keys}
        other = set()
        async for child in self.cluster.all_children():
            key = names.job_of(child)
            if key in gone:
                gone[key].discard(child["metadata"]["uid"])
                if self._seen.note_child(key, child):
                    other.add(key)
        return other | {key for key, uids in gone.items() if uids}

    # -- what is done ------------------------------------------------------------------------------------------

    async def reconcile(self, key: Key) -> float | None:
        """Bring one job on; gives the seconds until time alone may change something."""
        with self.metrics.reconcile_seconds.time():
            try:
                return await self._reconcile(key)
            except Exception:
                self._doubted.add(key)
                self.metrics.reconcile_errors.inc()
                raise

    async def _reconcile(self, key: Key) -> float | None:
        found = await self._decide_on_what_was_heard(key) or await self._decide_on_what_is_read(key)
        if found is None:
            self.forget(key)
            return None
        body, observed, decision = found
        now = self._clock()
        try:
            await self._publish_authority(key[0], decision)
            for item in decision.apply:
                await self.cluster.apply(item)
        except ApiError as error:
            if error.status in (400, FORBIDDEN, CONFLICT, UNPROCESSABLE):
                # Say it in the status: whoever reads that can mend it, our log is not theirs.
                said = refuse(body, str(error), now, final=error.status in (400, UNPROCESSABLE))
                if await self._carry_out(key, body, said) and said.status.phase in FINAL:
                    return _SOON
            raise
        if not await self._carry_out(key, body, decision, observed.progress):
            return _SOON
        return self._due_again(key, decision)

    async def _decide_on_what_was_heard(self, key: Key) -> tuple[Body, Observed, Decision] | None:
        """None where that is not known, not to be relied on, or not enough for what would follow from it."""
        doubted = key in self._doubted
        self._doubted.discard(key)
        body = self._seen.job(key) if self._watched and not doubted else None
        if body is None:
            return None
        now = self._clock()
        observed = await self._observe(key, body, now, *self._seen.children(key))
        decision = decide(body, observed, now, self.settings)
        return (body, observed, decision) if may_rest_on_watches(body, observed, decision) else None

    async def _decide_on_what_is_read(self, key: Key) -> tuple[Body, Observed, Decision] | None:
        """None where the FineTuneJob is gone."""
        body = await self.cluster.finetunejob(*key)
        if body is None:
            return None
        now = self._clock()
        # Jobs before pods: a Job that is complete then has its pods' last words in a list that is newer.
        heard, _ = self._seen.children(key)
        jobs = await read_jobs(self.cluster, body, heard)
        observed = await self._observe(key, body, now, jobs, await self.cluster.pods(*key))
        return body, observed, decide(body, observed, now, self.settings)

    async def _publish_authority(self, namespace: str, decision: Decision) -> None:
        """Have pods that run already trust our certificate too: an operator that was installed anew has another
        authority than the one that started them."""
        authority = self._authority()
        if authority is None or decision.status.phase in (None, *FINAL):
            return
        published, until = self._published.get(namespace, ("", 0.0))
        if published == authority and time.monotonic() < until:
            return
        self._published[namespace] = (authority, time.monotonic() + PUBLISHED_SECONDS)
        try:
            await self.cluster.apply(manifests.authority(namespace, authority))
        except BaseException:
            del self._published[namespace]
            raise

    async def _carry_out(
        self, key: Key, body: Body, decision: Decision, progress: ProgressReport | None = None
    ) -> bool:
        """Write, tell, delete. False where the job changed or went since it was read: decide anew."""
        try:
            written = await self._write(key, body, decision, progress)
        except ApiError as error:
            if error.status in (CONFLICT, NOT_FOUND):
                self._doubted.add(key)
                return False
            raise
        await self._tell(written or body, decision)
        for name in decision.delete_jobs:
            await self.cluster.delete_job(key[0], name)
        if decision.delete_self:
            return await self._delete(written or body)
        return True

    async def _delete(self, body: Body) -> bool:
        """Delete the FineTuneJob, unless it changed: somebody may just want to keep it."""
        try:
            await self.cluster.delete_finetunejob(body)
        except ApiError as error:
            if error.status == CONFLICT:
                return False
            raise
        logger.info("deleted: its time to live is over", extra={"job": _job(body)})
        self.metrics.expired.inc()
        return True

    async def _observe(self, key: Key, body: Body, now: datetime, jobs: list[Body], pods: list[Body]) -> Observed:
        live = {pod["metadata"]["uid"] for pod in pods}
        pods = [*pods, *(pod for uid, pod in self._ended.get(key, {}).items() if uid not in live)]
        ended = (body.get("status") or {}).get("phase") in FINAL
        uids = [] if ended else wants_events(jobs, pods, now)
        held = [] if ended else held_jobs(jobs)
        profile = None
        if needs_profile(body):
            name = ((body.get("spec") or {}).get("scheduling") or {}).get("profile") or "default"
            found = await self.cluster.profile(name)
            profile = TrainingProfile.model_validate({**found, "metadata": _metadata(found)}).spec if found else None
        template = needs_template(body)
        return Observed(
            jobs=jobs,
            pods=pods,
            events=await self._troubles.of(key[0], uids) if uids else (),
            profile=profile,
            chat_template=await self.cluster.chat_template(key[0], template) if template else None,
            progress=self._progress.get(key) if self._progress_due_in(key) <= 0 else None,
            workloads=await self.cluster.workloads(key[0], held) if held else None,
        )

    async def _write(self, key: Key, body: Body, decision: Decision, progress: ProgressReport | None) -> Body | None:
        patch = status_patch(body.get("status") or {}, decision.status)
        written = None
        if patch is not None:
            written = await self._patch(key, body, patch)
            self.metrics.status_writes.inc()
            self._own_versions[key] = version_of(written)
            self._note(key, written)
        if progress is not None:
            if self._progress.get(key) is progress:
                del self._progress[key]
            self._progress_written[key] = time.monotonic()
        return written

    async def _patch(self, key: Key, body: Body, patch: Body) -> Body:
        """Write ``patch``, which was decided on ``body``. Whoever writes labels or annotations without pause would win
        every race against a decision that takes a second; but nothing in it depends on those.

        Raises:
            ApiError: 409 where something changed that it does depend on.
        """
        for _ in range(WRITE_TRIES - 1):
            try:
                return await self.cluster.patch_status(body, patch)
            except ApiError as error:
                if error.status != CONFLICT:
                    raise
                now = await self.cluster.finetunejob(*key)
                if now is None or _decided_on(now) != _decided_on(body):
                    raise
                body = now
        return await self.cluster.patch_status(body, patch)

    async def _tell(self, body: Body, decision: Decision) -> None:
        for note in decision.notes:
            logger.info("%s: %s", note.reason, note.message, extra={"job": _job(body)})
            self._count(note, decision)
            try:
                await self.cluster.tell(body, note)
            except ApiError as error:  # an event is a courtesy; the status holds the truth
                logger.warning("event %s is lost: %s", note.reason, error, extra={"job": _job(body)})
        if any(item["kind"] == "Job" and names.ATTEMPT_LABEL in item["metadata"]["labels"] for item in decision.apply):
            self.metrics.attempts.inc()

    def _count(self, note: Note, decision: Decision) -> None:
        if note.reason in ("Failed", "Retrying") and decision.status.failure:
            self.metrics.failures.labels(reason=decision.status.failure.reason).inc()
        if note.reason == "Suspended":
            self.metrics.suspensions.inc()
        if note.reason == "Requeued":
            self.metrics.requeues.inc()

    def _due_again(self, key: Key, decision: Decision) -> float | None:
        if key not in self._progress:
            return decision.requeue_after
        if decision.status.phase in (*FINAL, "Suspended"):
            del self._progress[key]
            return decision.requeue_after
        due = max(0.0, self._progress_due_in(key))
        return due if decision.requeue_after is None else min(due, decision.requeue_after)

    def _progress_due_in(self, key: Key) -> float:
        last = self._progress_written.get(key)
        return 0.0 if last is None else last + self.settings.progress_interval - time.monotonic()


def _decided_on(body: Body) -> tuple[Any, ...]:
    """What of a FineTuneJob a decision depends on, see :func:`finetune_operator.core.reconcile.decide`."""
    meta = body["metadata"]
    return (meta["uid"], meta.get("generation"), meta.get("deletionTimestamp"), body.get("spec"), body.get("status"))


def _metadata(body: Body) -> Body:
    """Metadata as far as our model knows it: the server's own has nulls and more."""
    known = {field.alias or name for name, field in ObjectMeta.model_fields.items()}
    return {key: value for key, value in body["metadata"].items() if key in known}


def _job(body: Body) -> str:
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"
