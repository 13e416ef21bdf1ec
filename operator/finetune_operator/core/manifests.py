"""Builders of every object the operator makes. Pure: the same plan gives the same bodies."""

from __future__ import annotations

from typing import Any

from finetune_api.base import API_VERSION
from finetune_api.failures import EXIT_REASONS, REASONS
from finetune_api.profile import CacheSpec
from finetune_api.running import ClaimSpec

from finetune_operator.core import names
from finetune_operator.core.plan import CONFIG_FILE, Plan
from finetune_operator.core.pods import CONTAINER, pod_template
from finetune_operator.core.queueing import QUEUE_LABEL

Body = dict[str, Any]

FINAL_EXIT_CODES = sorted(int(code) for code, reason in EXIT_REASONS.items() if not REASONS[reason].retryable)
"""Exit codes after which no retry can help."""


def owner_reference(plan: Plan) -> Body:
    """Owner by which the garbage collector deletes children with their FineTuneJob."""
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "name": plan.name,
        "uid": plan.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def config_map(plan: Plan, *, name: str) -> Body:
    """The trainer's configuration, immutable and named by its hash."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(plan, name),
        "immutable": True,
        "data": {CONFIG_FILE: plan.config.to_json()},
    }


def authority(namespace: str, certificate: str) -> Body:
    """ConfigMap by which pods of ``namespace`` know the operator's certificate authority (PEM)."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.CA_CONFIG_MAP,
            "namespace": namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGER},
        },
        "data": {names.CA_KEY: certificate},
    }


def claims(plan: Plan) -> list[Body]:
    """Claims to make where they are missing. They have no owner: results and cache outlive every job."""
    cache = plan.profile.storage.cache
    bodies = [_claim(plan, cache.claim_name, cache, {names.MANAGED_BY_LABEL: names.MANAGER})]
    wanted = plan.job.spec.output.claim
    if wanted.name is None:
        bodies.append(_claim(plan, plan.output_claim, wanted, names.job_labels(plan.name, plan.uid)))
    return bodies


def _claim(plan: Plan, name: str, wanted: CacheSpec | ClaimSpec, labels: dict[str, str]) -> Body:
    spec: Body = {"accessModes": [wanted.access_mode], "resources": {"requests": {"storage": wanted.size}}}
    if wanted.storage_class_name is not None:
        spec["storageClassName"] = wanted.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": plan.namespace, "labels": labels},
        "spec": spec,
    }


def service(plan: Plan) -> Body:
    """Headless Service: gives each training pod a name that the others find it by, ready or not."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(plan, names.service(plan.name)),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.UID_LABEL: plan.uid, names.COMPONENT_LABEL: names.TRAIN},
        },
    }


def prepare_job(plan: Plan, *, config: str, progress_url: str) -> Body:
    """The prepare Job. It repeats itself: the Job's own controller retries what a retry can mend, and a pod that
    the cluster took away costs no retry."""
    template = pod_template(plan, component=names.PREPARE, config_map=config, attempt=0, progress_url=progress_url)
    spec = {
        "backoffLimit": plan.job.spec.run_policy.backoff_limit,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": _exit_codes()},
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": template,
    }
    return _job(plan, names.prepare_job(plan.name), names.PREPARE, 0, spec, queue=plan.profile.prepare.queue_name)


def train_job(plan: Plan, *, attempt: int, config: str, progress_url: str) -> Body:
    """The Indexed Job of one training attempt.

    ``backoffLimit: 0``: whatever ends a pod ends the attempt, disruptions too, since the ranks of an attempt live
    and die together. The operator then starts the next attempt under a new number; which ones count against
    ``runPolicy.backoffLimit`` is its affair.
    """
    nodes = plan.job.spec.distributed.nodes
    template = pod_template(plan, component=names.TRAIN, config_map=config, attempt=attempt, progress_url=progress_url)
    spec = {
        "backoffLimit": 0,
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "podFailurePolicy": {
            "rules": [
                # No rule may ignore a failure; this one records in the Job that the cluster was the cause.
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": _exit_codes()},
            ]
        },
        "template": template,
    }
    queue = plan.job.spec.scheduling.queue_name
    return _job(plan, names.train_job(plan.name, attempt), names.TRAIN, attempt, spec, queue=queue)


def _exit_codes() -> Body:
    return {"containerName": CONTAINER, "operator": "In", "values": FINAL_EXIT_CODES}


def _job(plan: Plan, name: str, component: str, attempt: int, spec: Body, *, queue: str | None) -> Body:
    metadata = _metadata(plan, name)
    metadata["annotations"][names.QUEUE_ANNOTATION] = queue or ""
    if queue is not None:
        metadata["labels"][QUEUE_LABEL] = queue
        spec = {"suspend": True, **spec}
    metadata["labels"][names.COMPONENT_LABEL] = component
    if component == names.TRAIN:
        metadata["labels"][names.ATTEMPT_LABEL] = str(attempt)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _metadata(plan: Plan, name: str) -> Body:
    return {
        "name": name,
        "namespace": plan.namespace,
        "labels": names.job_labels(plan.name, plan.uid),
        "annotations": {names.NAME_ANNOTATION: plan.name},
        "ownerReferences": [owner_reference(plan)],
    }
