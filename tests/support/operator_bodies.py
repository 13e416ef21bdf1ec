"""Objects as an API server sends them, for tests of the operator."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.job import FineTuneJob
from finetune_api.profile import TrainingProfileSpec
from finetune_operator.core import names
from finetune_operator.core.acceptance import profile_of
from finetune_operator.core.plan import Plan, make_plan
from finetune_operator.core.settings import CoreSettings
from finetune_operator.core.times import stamp
from manifests import finetunejob

Body = dict[str, Any]
NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
UID = "0f9d1c2e-1111-2222-3333-444455556666"
SETTINGS = CoreSettings(trainer_image="registry/trainer:1", progress_url="https://operator.system.svc:8443")


def at(seconds: float) -> datetime:
    """A moment, in seconds after NOW."""
    return NOW + timedelta(seconds=seconds)


def job_body(name: str = "tune", status: Body | None = None, uid: str = UID, **edits: Any) -> Body:
    """A FineTuneJob on the server."""
    body = finetunejob(name, **edits)
    body["metadata"] |= {
        "namespace": "team",
        "uid": uid,
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": stamp(NOW),
        "managedFields": [{"manager": "kubectl"}],
    }
    if status is not None:
        body["status"] = copy.deepcopy(status)
    return body


def plan_of(body: Body | None = None, profile: TrainingProfileSpec | None = None) -> Plan:
    """The plan of ``body``."""
    document = {key: value for key, value in (body or job_body()).items() if key != "status"}
    job = FineTuneJob.from_dict(document)
    return make_plan(job, profile_of(job, job.status, profile, SETTINGS))


def batch_job(
    component: str = "train",
    attempt: int = 1,
    *,
    name: str = "tune",
    uid: str = UID,
    ended: str | None = None,
    ended_at: float = 0.0,
    reason: str = "BackoffLimitExceeded",
) -> Body:
    """A batch Job of ours. ``ended`` is Complete or Failed; None: it is active."""
    labels = {**names.job_labels(name, uid), names.COMPONENT_LABEL: component}
    if component == names.TRAIN:
        labels[names.ATTEMPT_LABEL] = str(attempt)
    job_name = names.train_job(name, attempt) if component == names.TRAIN else names.prepare_job(name)
    status: Body = {"active": 1}
    if ended:
        condition = {"type": ended, "status": "True", "reason": reason, "lastTransitionTime": stamp(at(ended_at))}
        status = {"conditions": [condition], "failed" if ended == "Failed" else "succeeded": 1}
    metadata = {
        "name": job_name,
        "namespace": "team",
        "uid": f"job-{job_name}",
        "labels": labels,
        "annotations": {names.NAME_ANNOTATION: name},
        "creationTimestamp": stamp(NOW),
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "status": status}


def pod_of(job: Body, *, phase: str = "Pending", state: Body | None = None, **status: Any) -> Body:
    """A pod of ``job``; ``state`` is its container's."""
    meta = job["metadata"]
    condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(NOW)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{meta['name']}-0-abcde",
            "namespace": "team",
            "uid": f"pod-{meta['name']}",
            "labels": {**meta["labels"], "batch.kubernetes.io/job-name": meta["name"]},
            "annotations": {
                names.NAME_ANNOTATION: meta["annotations"][names.NAME_ANNOTATION],
                "batch.kubernetes.io/job-completion-index": "0",
            },
            "creationTimestamp": stamp(NOW),
        },
        "spec": {
            "nodeName": "node-1",
            "containers": [
                {"name": "trainer", "image": "registry/trainer:1", "resources": {"limits": {"memory": "8Gi"}}}
            ],
        },
        "status": {
            "phase": phase,
            "conditions": [condition],
            "containerStatuses": [{"name": "trainer", "state": state}] if state else [],
            **status,
        },
    }


def terminated(code: int, message: str | None = None, *, reason: str = "Error", at_second: float = 0.0) -> Body:
    """State of a container that ended."""
    ended: Body = {"exitCode": code, "reason": "Completed" if code == 0 else reason, "finishedAt": stamp(at(at_second))}
    return {"terminated": ended if message is None else ended | {"message": message}}


def report(step: str, code: int = 0, **parts: Any) -> str:
    """A termination report."""
    return json.dumps({"version": 1, "step": step, "exitCode": code, **parts})


def running() -> Body:
    """State of a container that runs."""
    return {"running": {"startedAt": stamp(NOW)}}


def waiting(reason: str, message: str = "") -> Body:
    """State of a container that waits."""
    return {"waiting": {"reason": reason, "message": message}}


def event_of(body: Body, reason: str, message: str) -> Body:
    """An event of ``body``."""
    return {
        "involvedObject": {"uid": body["metadata"]["uid"]},
        "reason": reason,
        "message": message,
        "lastTimestamp": stamp(NOW),
    }
