"""Why a pod does not start, and how long that may be borne.

Some causes mend themselves (nodes are added, volumes are made, a GitOps tool applies the Secret a second later);
each therefore has a time of grace, and until then it is a message in a condition, no failure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from finetune_api.failures import FailureReason

from finetune_operator.core import times
from finetune_operator.core.children import container_state, is_deleted, pod_condition
from finetune_operator.core.plan import Plan
from finetune_operator.core.settings import CoreSettings

Body = dict[str, Any]
R = FailureReason
EVENTS_AFTER = 10.0
"""Seconds a pod may take before its events are read: most start sooner."""
_REFUSED, _NOT_MOUNTED = ("FailedCreate",), ("FailedMount", "FailedAttachVolume")
TELLING = frozenset({*_REFUSED, *_NOT_MOUNTED})
"""Reasons of events that are read."""
_MISSING_SECRET = re.compile(r'secret "([^"]+)" not found', re.IGNORECASE)
_MISSING_SECRET_KEY = re.compile(r"couldn't find key (\S+) in Secret \S+/(\S+)")
_MISSING_CONFIG_MAP = re.compile(r'configmap "([^"]+)" not found', re.IGNORECASE)
_MISSING_KEY = re.compile(r"references non-existent config key: (\S+)")
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "([^"]+)" not found', re.IGNORECASE)
_PULL = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable"})


@dataclass(frozen=True)
class Trouble:
    """Why a pod waits. ``deadline`` is when that becomes a failure; None: never."""

    reason: FailureReason
    message: str
    deadline: datetime | None
    config_map: str = ""
    """Name of the ConfigMap that does not exist, where that is why."""


def wants_events(jobs: Sequence[Body], pods: Sequence[Body], now: datetime) -> list[str]:
    """Uids of objects whose events would say why nothing moves: volumes that do not mount and pods that are not
    admitted show nowhere else."""
    uids = []
    for pod in pods:
        waiting = container_state(pod, "waiting") or {}
        unclear = waiting.get("reason") in (None, "ContainerCreating", "PodInitializing")
        scheduled = pod_condition(pod, "PodScheduled")
        if _pending(pod) and scheduled and unclear and _age(pod, now) > EVENTS_AFTER:
            uids.append(pod["metadata"]["uid"])
    uids += [
        job["metadata"]["uid"]
        for job in jobs
        if not job.get("status", {}).get("active")
        and not job.get("status", {}).get("conditions")
        and not job.get("status", {}).get("failed")
        and _age(job, now) > EVENTS_AFTER
    ]
    return uids


def find_trouble(
    plan: Plan, job: Body, pods: Sequence[Body], events: Sequence[Body], settings: CoreSettings, *, now: datetime
) -> Trouble | None:
    """Why ``job`` does not get on; None where nothing speaks against it."""
    for pod in pods:
        if _pending(pod):
            trouble = _of_pod(plan, pod, events, settings, now=now)
            if trouble is not None:
                return trouble
    if not any(_pending(pod) for pod in pods):
        for event in _events_of(events, job, *_REFUSED):
            message = f"The cluster refuses the pod: {event.get('message', '')}"
            return Trouble(R.UNSCHEDULABLE, message, _deadline(_since(job), settings.unschedulable_timeout))
    return None


def _of_pod(plan: Plan, pod: Body, events: Sequence[Body], settings: CoreSettings, *, now: datetime) -> Trouble | None:
    since = _since(pod)
    unscheduled = pod_condition(pod, "PodScheduled", "False")
    if unscheduled is not None:
        return _unscheduled(plan, unscheduled, since, settings)
    scheduled = pod_condition(pod, "PodScheduled") or {}
    scheduler = plan.job.spec.scheduling.scheduler_name
    if not scheduled and scheduler is not None and _age(pod, now) > EVENTS_AFTER:
        message = (
            f"No scheduler {scheduler} has looked at the pod, which spec.scheduling.schedulerName names: is it there?"
        )
        return Trouble(R.UNSCHEDULABLE, message, _deadline(since, settings.unschedulable_timeout))
    since = times.parse(scheduled.get("lastTransitionTime")) or since
    waiting = container_state(pod, "waiting") or {}
    reason, said = waiting.get("reason", ""), waiting.get("message", "")
    if reason == "InvalidImageName":
        return Trouble(R.IMAGE_PULL_FAILED, _image_message(pod, said), _deadline(since, settings.start_grace))
    if reason in _PULL:
        return Trouble(R.IMAGE_PULL_FAILED, _image_message(pod, said), _deadline(since, settings.image_pull_grace))
    if reason in ("CreateContainerConfigError", "CreateContainerError"):
        return _unconfigured(plan, said, _deadline(since, settings.start_grace))
    for event in _events_of(events, pod, *_NOT_MOUNTED):
        said = event.get("message", "")
        if _MISSING_CONFIG_MAP.search(said) or _MISSING_KEY.search(said) or _MISSING_SECRET.search(said):
            return _unconfigured(plan, said, _deadline(since, settings.start_grace))
        return Trouble(
            R.VOLUME_NOT_BOUND,
            f"A volume does not mount: {said}",
            _deadline(since, settings.unschedulable_timeout),
        )
    return None


def _unscheduled(plan: Plan, condition: Body, since: datetime, settings: CoreSettings) -> Trouble:
    said = condition.get("message", "")
    if found := _MISSING_CLAIM.search(said):
        claim = found.group(1)
        field = next(
            (_field_of_uri(plan, f"pvc://{claim}") for mount in plan.claims if mount.claim == claim),
            "spec.output.claim.name",
        )
        message = f"The PersistentVolumeClaim {claim} that {field} names does not exist; create it or correct the name."
        return Trouble(R.VOLUME_NOT_BOUND, message, _deadline(since, settings.start_grace))
    forever = _deadline(since, settings.unschedulable_timeout)
    if "unbound immediate PersistentVolumeClaims" in said:
        message = f"A volume claim is not bound yet ({said}); check its storage class, size and access mode."
        return Trouble(R.VOLUME_NOT_BOUND, message, forever)
    message = f"No node takes the pod: {said} Lower the resources, correct nodeSelector, or add nodes."
    return Trouble(R.UNSCHEDULABLE, message, forever)


def _unconfigured(plan: Plan, said: str, deadline: datetime | None) -> Trouble:
    if found := _MISSING_SECRET_KEY.search(said):
        key, name = found.groups()
        message = f"The Secret {name} that {_field_of_secret(plan, name)} names has no key {key}; add it."
        return Trouble(R.SECRET_NOT_FOUND, message, deadline)
    if found := _MISSING_SECRET.search(said):
        name = found.group(1)
        message = f"The Secret {name} that {_field_of_secret(plan, name)} names does not exist; create it."
        return Trouble(R.SECRET_NOT_FOUND, message, deadline)
    if found := _MISSING_CONFIG_MAP.search(said):
        name = found.group(1)
        field = _field_of_uri(plan, f"configmap://{name}/")
        message = f"The ConfigMap {name} that {field} names does not exist; create it."
        return Trouble(R.CONFIG_MAP_NOT_FOUND, message, deadline, config_map=name)
    if found := _MISSING_KEY.search(said):
        key = found.group(1)
        mount = next((m for m in plan.config_maps if m.key == key), None)
        where = f"The ConfigMap {mount.config_map}" if mount else "A ConfigMap"
        field = _field_of_uri(plan, f"configmap://{mount.config_map}/{key}") if mount else "spec.dataset.sources"
        message = f"{where} has no key {key}, which {field} names; add it or correct the URI."
        return Trouble(R.CONFIG_MAP_NOT_FOUND, message, deadline)
    return Trouble(R.CONTAINER_CANNOT_START, f"The container cannot be made: {said}", deadline)


def _field_of_secret(plan: Plan, name: str) -> str:
    return next((s.field for s in plan.secrets if s.secret == name), "the pod")


def _field_of_uri(plan: Plan, beginning: str) -> str:
    spec = plan.job.spec
    if spec.model.source.startswith(beginning):
        return "spec.model.source"
    for index, source in enumerate(spec.dataset.sources):
        if source.uri.startswith(beginning):
            return f"spec.dataset.sources[{index}].uri"
    return "the pod"


def _image_message(pod: Body, said: str) -> str:
    image = pod.get("spec", {}).get("containers", [{}])[0].get("image", "")
    return (
        f"The image {image} cannot be pulled: {said} Correct image.repository in the TrainingProfile (or the chart's "
        "trainer image), or name a pull secret in image.pullSecrets."
    )


def _events_of(events: Sequence[Body], body: Body, *reasons: str) -> list[Body]:
    """Matching events, newest first."""
    uid = body["metadata"]["uid"]
    found = [
        event
        for event in events
        if event.get("involvedObject", {}).get("uid") == uid and event.get("reason") in reasons
    ]
    return sorted(found, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "", reverse=True)


def _pending(pod: Body) -> bool:
    return pod.get("status", {}).get("phase", "Pending") == "Pending" and not is_deleted(pod)


def _since(body: Body) -> datetime:
    created = times.parse(body["metadata"].get("creationTimestamp"))
    if created is None:
        raise ValueError(f"{body['metadata'].get('name')}: no creationTimestamp; not an object of the API server")
    return created


def _age(body: Body, now: datetime) -> float:
    return (now - _since(body)).total_seconds()


def _deadline(since: datetime, grace: float) -> datetime | None:
    return since + timedelta(seconds=grace) if grace > 0 else None
