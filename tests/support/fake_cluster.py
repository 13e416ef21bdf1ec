"""A cluster in memory for the reconciler, that can fail before any of its effects, and a world that runs its Jobs."""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from typing import Any

from finetune_operator.cluster.errors import CONFLICT, NOT_FOUND, ApiError
from finetune_operator.core import names
from finetune_operator.core.decision import Note
from finetune_operator.core.times import stamp
from operator_bodies import NOW, pod_of, report, terminated

Body = dict[str, Any]


class Crash(BaseException):
    """The operator is killed here; nothing in it may catch this."""


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class FakeCluster:
    """What :class:`finetune_operator.cluster.objects.Cluster` offers the reconciler, for one FineTuneJob."""

    def __init__(self, body: Body | None) -> None:
        self.body = copy.deepcopy(body)
        self.children: dict[str, Body] = {}
        self.pod_bodies: dict[str, Body] = {}
        self.events: list[Body] = []
        self.profiles: dict[str, Body] = {}
        self.chat_templates: dict[str, Body] = {}
        self.kueue: list[Body] | None = None
        self.applied: list[Body] = []
        self.created: list[str] = []
        self.deleted: list[str] = []
        self.notes: list[Note] = []
        self.status_patches: list[Body] = []
        self.effects = 0
        self.before_effect: Callable[[int, str], None] = lambda _number, _what: None

    def _effect(self, what: str) -> None:
        number = self.effects
        self.effects += 1
        self.before_effect(number, what)

    async def finetunejob(self, namespace: str, name: str) -> Body | None:
        found = self.body and (self.body["metadata"]["namespace"], self.body["metadata"]["name"]) == (namespace, name)
        return copy.deepcopy(self.body) if found else None

    async def finetunejobs(self) -> AsyncIterator[Body]:
        if self.body:
            yield copy.deepcopy(self.body)

    async def all_children(self) -> AsyncIterator[Body]:
        for kind, bodies in (("Job", self.children), ("Pod", self.pod_bodies)):
            for body in list(bodies.values()):
                yield {"kind": kind, **copy.deepcopy(body)}

    async def profile(self, name: str) -> Body | None:
        return self.profiles.get(name)

    async def chat_template(self, _namespace: str, name: str) -> Body | None:
        return self.chat_templates.get(name)

    async def job(self, _namespace: str, name: str) -> Body | None:
        return copy.deepcopy(self.children.get(name))

    async def pods(self, _namespace: str, _name: str) -> list[Body]:
        return copy.deepcopy(list(self.pod_bodies.values()))

    async def warnings(self, _namespace: str) -> AsyncIterator[Body]:
        for event in self.events:
            yield event

    async def workloads(self, _namespace: str, job_uids: list[str]) -> list[Body] | None:
        if self.kueue is None:
            return None
        return [one for one in self.kueue if one["metadata"]["labels"]["kueue.x-k8s.io/job-uid"] in job_uids]

    async def apply(self, body: Body) -> None:
        name = body["metadata"]["name"]
        self._effect(f"apply {body['kind']} {name}")
        self.applied.append(body)
        if body["kind"] != "Job":
            return
        there = self.children.get(name)
        if there is not None:
            if _owners(there) != _owners(body):
                told = f"Job {name} exists and belongs to somebody else; delete or rename it"
                raise ApiError(CONFLICT, told, what=f"create Job {name}")
            return
        self.created.append(name)
        meta = {**body["metadata"], "uid": f"job-{name}", "creationTimestamp": stamp(NOW)}
        self.children[name] = copy.deepcopy(body) | {"metadata": copy.deepcopy(meta), "status": {}}

    async def patch_status(self, body: Body, patch: Body) -> Body:
        self._effect("patch status")
        if self.body is None:
            raise ApiError(NOT_FOUND, "gone", what="patch status")
        meta = self.body["metadata"]
        if body["metadata"]["resourceVersion"] != meta["resourceVersion"]:
            raise ApiError(CONFLICT, "the object has been modified", what="patch status")
        self.status_patches.append(patch)
        self.body["status"] = merged(self.body.get("status"), patch)
        meta["resourceVersion"] = str(int(meta["resourceVersion"]) + 1)
        return copy.deepcopy(self.body)

    async def delete_job(self, _namespace: str, name: str) -> None:
        self._effect(f"delete {name}")
        self.deleted.append(name)
        self.children.pop(name, None)
        for pod in self.pod_bodies.values():
            if _of_job(pod) == name:
                pod["metadata"]["deletionTimestamp"] = stamp(NOW + timedelta(days=1))

    async def delete_finetunejob(self, body: Body) -> None:
        self._effect("delete itself")
        if self.body is None:
            return
        if body["metadata"]["resourceVersion"] != self.body["metadata"]["resourceVersion"]:
            raise ApiError(CONFLICT, "the object has been modified", what="delete")
        self.body = None

    def edit(self, **run_policy: Any) -> None:
        """The owner edits runPolicy."""
        assert self.body is not None
        meta = self.body["metadata"]
        self.body["spec"].setdefault("runPolicy", {}).update(run_policy)
        meta["generation"] += 1
        meta["resourceVersion"] = str(int(meta["resourceVersion"]) + 1)

    async def tell(self, _body: Body, note: Note) -> None:
        self._effect(f"tell {note.reason}")
        self.notes.append(note)

    @property
    def status(self) -> Body:
        """The status as it is stored."""
        assert self.body is not None
        status: Body = self.body.get("status") or {}
        return status

    def told(self, reason: str) -> int:
        """How many events of ``reason`` there are."""
        return sum(note.reason == reason for note in self.notes)


class World:
    """Plays the Job controller and the kubelet: each step brings each Job on by one."""

    def __init__(self, cluster: FakeCluster, endings: dict[str, tuple[int, str | None]]) -> None:
        self.cluster, self.endings = cluster, endings
        self.now = NOW
        self.preemptions = 0
        """How often the queue of a Job that is in one stops it again."""
        self._numbers = itertools.count()

    def clock(self) -> datetime:
        """The time in this world."""
        return self.now

    def step(self, seconds: float = 30.0) -> None:
        """Pods start, then end as told to, or as ``endings`` says of their Job: exit code and termination message."""
        self.now += timedelta(seconds=seconds)
        for name in [
            name for name, pod in self.cluster.pod_bodies.items() if _of_job(pod) not in self.cluster.children
        ]:
            del self.cluster.pod_bodies[name]  # told to end, it has
        for name, job in self.cluster.children.items():
            if job["status"].get("conditions"):
                continue
            pods = [body for body in self.cluster.pod_bodies.values() if _of_job(body) == name]
            if job["spec"].get("suspend"):
                if self._have_ended(pods):
                    job["spec"]["suspend"] = False
                continue
            if pods and "suspend" in job["spec"] and self.preemptions:
                self.preemptions -= 1
                job["spec"]["suspend"] = True
                for pod in pods:
                    pod["metadata"]["deletionTimestamp"] = stamp(self.now + timedelta(seconds=90))
                continue
            if not pods:
                self._start(job)
                continue
            if name not in self.endings:  # runs on
                continue
            code, message = self.endings[name]
            for pod in pods:
                pod["status"] |= {
                    "phase": "Failed" if code else "Succeeded",
                    "containerStatuses": [{"name": "trainer", "state": terminated(code, message)}],
                }
            kind = "Failed" if code else "Complete"
            condition = {"type": kind, "status": "True", "lastTransitionTime": stamp(self.now)}
            job["status"] = {"conditions": [condition]}

    def _have_ended(self, pods: list[Body]) -> bool:
        """Whether all of a suspended Job's pods are gone; those that were told to end are by the next step."""
        for pod in pods:
            del self.cluster.pod_bodies[pod["metadata"]["name"]]
        return not pods

    def _start(self, job: Body) -> None:
        job["status"] = {"active": 1}
        pod = pod_of(job, phase="Running", state={"running": {"startedAt": stamp(self.now)}})
        pod["metadata"] |= {"name": f"pod-{next(self._numbers)}", "uid": f"{job['metadata']['uid']}-pod"}
        self.cluster.pod_bodies[pod["metadata"]["name"]] = pod


def _owners(body: Body) -> set[str]:
    return {owner["uid"] for owner in body["metadata"].get("ownerReferences") or ()}


def _of_job(pod: Body) -> str:
    name: str = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
    return name


PREPARED = report("prepare", dataset={"samples": 10, "supervisedTokens": 99})
CRASHED = report("train", 1, message="it broke")
TRAINED = report(
    "train",
    progress={"step": 20, "totalSteps": 20, "loss": 0.5},
    output={"path": "adapter", "digest": "sha256:1"},
)


def lives_with_a_retry(name: str = "tune") -> dict[str, tuple[int, str | None]]:
    """Prepare succeeds, attempt 1 fails, attempt 2 succeeds."""
    return {
        names.prepare_job(name): (0, PREPARED),
        names.train_job(name, 1): (1, CRASHED),
        names.train_job(name, 2): (0, TRAINED),
    }
