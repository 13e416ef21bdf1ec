"""A namespace with FineTuneJobs on a real cluster. What is awaited is watched; what does not come is explained."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_cli.kubectl import Kubectl, KubectlError
from finetune_cli.volume_pod import PodPlan, VolumePod, volume_pod
from finetune_operator.core import names
from kubernetes import client, watch

Body = dict[str, Any]
GROUP, VERSION, PLURAL = "finetune.dev", "v1alpha1", "finetunejobs"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
FINAL = ("Succeeded", "Failed")
TOLD_SECONDS = 30
"""An event comes after the status that it is about."""
PATIENCE = 240
"""Seconds for one step of a job's life on a machine that is busy with other jobs."""


class Team:
    """One namespace, whose pods must meet the restricted Pod Security standard."""

    def __init__(self, api: client.ApiClient, kubectl: Kubectl, image: str) -> None:
        self.name = kubectl.namespace or "default"
        self.kubectl = kubectl
        self.core, self.batch = client.CoreV1Api(api), client.BatchV1Api(api)
        self.custom = client.CustomObjectsApi(api)
        self._api = api
        self._image = image
        self._created: dict[str, str] = {}
        """Version at which each job was created."""

    # -- what is made ------------------------------------------------------------------------------------------

    def claim(self, name: str, size: str = "1Gi", storage_class: str | None = None) -> str:
        """A claim."""
        spec: Body = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
        if storage_class is not None:
            spec["storageClassName"] = storage_class
        self.core.create_namespaced_persistent_volume_claim(self.name, {"metadata": {"name": name}, "spec": spec})
        return name

    def config_map(self, name: str, **files: str) -> None:
        """A ConfigMap; ``__`` in a key stands for a dot."""
        data = {key.replace("__", "."): text for key, text in files.items()}
        self.core.create_namespaced_config_map(self.name, {"metadata": {"name": name}, "data": data})

    @contextmanager
    def files(self, claim: str, *, read_only: bool = False) -> Iterator[VolumePod]:
        """A pod that holds ``claim``."""
        with volume_pod(self.kubectl, PodPlan(claim=claim, image=self._image, read_only=read_only)) as pod:
            yield pod

    def send(self, source: Path, claim: str, directory: str) -> None:
        """Copy ``source`` to ``directory`` of the claim."""
        with self.files(claim) as pod:
            pod.send(source, directory)

    def template(self, manifest: Body) -> None:
        """Create a ChatTemplate."""
        self.custom.create_namespaced_custom_object(GROUP, VERSION, self.name, "chattemplates", manifest)

    def start(self, manifest: Body) -> str:
        """Create a FineTuneJob; gives its name."""
        body = self.custom.create_namespaced_custom_object(
            GROUP, VERSION, self.name, PLURAL, manifest, field_validation="Strict"
        )
        name = str(body["metadata"]["name"])
        self._created[name] = body["metadata"]["resourceVersion"]
        return name

    def edit(self, job: str, **spec: Body) -> None:
        """Merge ``spec`` into a FineTuneJob's."""
        merge = {"_content_type": "application/merge-patch+json"}
        self.custom.patch_namespaced_custom_object(GROUP, VERSION, self.name, PLURAL, job, {"spec": spec}, **merge)

    def annotate(self, job: str, annotations: dict[str, str]) -> None:
        """Merge ``annotations`` into a FineTuneJob's."""
        merge = {"_content_type": "application/merge-patch+json"}
        body = {"metadata": {"annotations": annotations}}
        self.custom.patch_namespaced_custom_object(GROUP, VERSION, self.name, PLURAL, job, body, **merge)

    def evict(self, *pods: str) -> None:
        """Take pods away as ``kubectl drain`` does."""
        for pod in pods:
            eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}}
            self.core.create_namespaced_pod_eviction(pod, self.name, eviction)

    # -- what is seen ------------------------------------------------------------------------------------------

    def read(self, job: str) -> Body:
        """A FineTuneJob."""
        body: Body = self.custom.get_namespaced_custom_object(GROUP, VERSION, self.name, PLURAL, job)
        return body

    def until(self, job: str, holds: Callable[[Body], bool], what: str, seconds: float = PATIENCE) -> Body:
        """The status of ``job`` once ``holds`` of it. A job that ends otherwise is not waited for.

        Args:
            job: name of the FineTuneJob.
            holds: of its status.
            what: ``holds`` in words, for the failure's message.
            seconds: how long to wait.
        """
        last: Body = {}
        for event in self._events(seconds, field_selector=f"metadata.name={job}"):
            last = event["object"].get("status") or {}
            if holds(last):
                return last
            if last.get("phase") in FINAL:
                break
        raise AssertionError(f"{job} in {self.name}: not {what} within {seconds:.0f} s\n{self.told(job)}")

    def until_phase(self, job: str, phase: str, seconds: float = PATIENCE) -> Body:
        """The status once the job is in ``phase``."""
        return self.until(job, lambda status: status.get("phase") == phase, phase, seconds)

    def phases(self, job: str) -> list[str]:
        """Phases that an ended job went through, from the history that a watch gives since its creation."""
        seen: list[str] = []
        for event in self._events(PATIENCE, field_selector=f"metadata.name={job}", resource_version=self._created[job]):
            phase = (event["object"].get("status") or {}).get("phase", "")
            if phase and seen[-1:] != [phase]:
                seen.append(phase)
            if phase in FINAL:
                break
        return seen

    def events(self, job: str, until: str) -> list[str]:
        """Reasons of the FineTuneJob's events, oldest first, once there is one of reason ``until``."""
        uid = self.read(job)["metadata"]["uid"]
        selector = f"involvedObject.uid={uid}"
        listing = self.core.list_namespaced_event
        stream = watch.Watch().stream(listing, self.name, field_selector=selector, timeout_seconds=TOLD_SECONDS)
        if not any(event["object"].reason == until for event in stream):
            raise AssertionError(f"{job} in {self.name}: no event {until}\n{self.told(job)}")
        return [event.reason for event in self._events_of(uid)]

    def train_jobs(self, job: str) -> list[str]:
        """Names of the train Jobs there are."""
        selector = f"{names.JOB_LABEL}={job},{names.COMPONENT_LABEL}={names.TRAIN}"
        return [
            found.metadata.name for found in self.batch.list_namespaced_job(self.name, label_selector=selector).items
        ]

    def pods(self, job: str, component: str) -> list[str]:
        """Names of the pods of one step."""
        selector = f"{names.JOB_LABEL}={job},{names.COMPONENT_LABEL}={component}"
        return [pod.metadata.name for pod in self.core.list_namespaced_pod(self.name, label_selector=selector).items]

    def log(self, pod: str) -> str:
        """What a pod has written."""
        return self.kubectl.run("logs", pod)

    def told(self, job: str) -> str:
        """All that the cluster has to say about ``job``, for the message of a failed test."""
        parts = []
        for title, command in (
            ("status", ["get", f"{PLURAL}.{GROUP}", job, "-o", "jsonpath={.status}"]),
            ("children", ["get", "jobs,pods,pvc,svc,cm", "-o", "wide"]),
            ("events", ["get", "events", "--sort-by=.lastTimestamp"]),
        ):
            parts.append(f"--- {title}\n{self._quietly(*command)}")
        pods = [*self.pods(job, names.PREPARE), *self.pods(job, names.TRAIN)]
        parts += [f"--- log of {pod}\n{self._quietly('logs', pod, '--tail=60')}" for pod in pods]
        return "\n".join(parts)

    def _quietly(self, *command: str) -> str:
        try:
            text = self.kubectl.run(*command)
        except KubectlError as error:
            return str(error)
        if command[-1] == "jsonpath={.status}" and text:
            status = json.loads(text)
            status.pop("profile", None)
            return json.dumps(status, indent=1)
        return text

    def _events(self, seconds: float, **options: Any) -> Iterator[Body]:
        """Events of the FineTuneJobs; a watch that the server ends is made anew."""
        deadline = time.monotonic() + seconds
        listing = self.custom.list_namespaced_custom_object
        while (left := deadline - time.monotonic()) > 0:
            yield from watch.Watch().stream(
                listing, GROUP, VERSION, self.name, PLURAL, timeout_seconds=max(1, int(left)), **options
            )

    def _events_of(self, uid: str) -> list[Any]:
        found = self.core.list_namespaced_event(self.name, field_selector=f"involvedObject.uid={uid}").items
        return sorted(found, key=lambda event: int(event.metadata.resource_version))  # their times are whole seconds


CHILDREN = "jobs,pods,services,configmaps"
"""Kinds that a FineTuneJob owns."""
KILL = ("--grace-period=0", "--force")
"""Options of kubectl that give a pod no time."""


def has_saved(status: Body) -> bool:
    """Whether a checkpoint is told of while the job runs."""
    return status.get("phase") == "Running" and bool((status.get("checkpoint") or {}).get("step"))


def condition(status: Body, kind: str) -> Body:
    """A condition of a status; empty where it is not there."""
    return next((found for found in status.get("conditions") or () if found["type"] == kind), {})
