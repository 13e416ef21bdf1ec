"""Names and labels of everything the operator makes.

A FineTuneJob may be called anything that is a DNS subdomain of 253 characters; labels, pods and Services take 63
and no dots. Names that do not fit are cut and get a hash of the whole, so that two jobs never share a child.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

DOMAIN = "finetune.dev"
JOB_LABEL = f"{DOMAIN}/job"
UID_LABEL = f"{DOMAIN}/job-uid"
COMPONENT_LABEL = f"{DOMAIN}/component"
ATTEMPT_LABEL = f"{DOMAIN}/attempt"
NAME_ANNOTATION = f"{DOMAIN}/job-name"
"""The job's full name, where the label had to be cut."""
QUEUE_ANNOTATION = f"{DOMAIN}/queue"
"""Queue that a Job was made for; empty: none."""
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "finetune-operator"
"""Value of the managed-by label, field manager of server-side apply, and audience of progress tokens."""
CA_CONFIG_MAP = "finetune-operator-ca"
CA_KEY = "ca.crt"

PREPARE, TRAIN = "prepare", "train"

_LIMIT = 63
_JOB_LIMIT = 57
"""An Indexed Job's pods have the host name ``<job>-<index>``, which must be one DNS label."""


def label_value(name: str) -> str:
    """``name`` as a label's value: itself where it fits."""
    return _fit(name, _LIMIT)


def child(name: str, suffix: str, limit: int = _LIMIT) -> str:
    """``<name>-<suffix>`` as one DNS label of at most ``limit`` characters."""
    room = limit - len(suffix) - 1
    return f"{_fit(name.replace('.', '-'), room, original=name)}-{suffix}"


def prepare_job(name: str) -> str:
    """Name of the prepare Job."""
    return child(name, PREPARE, _JOB_LIMIT)


def train_job(name: str, attempt: int) -> str:
    """Name of the train Job of one attempt, counted from 1."""
    return child(name, f"{TRAIN}-{attempt}", _JOB_LIMIT)


def config_map(name: str, digest: str) -> str:
    """Name of the immutable ConfigMap that holds the trainer's configuration."""
    return child(name, f"config-{digest}")


def service(name: str) -> str:
    """Name of the headless Service. Services, unlike Jobs, must begin with a letter (RFC 1035)."""
    if name[0].isalpha():
        return child(name, TRAIN)
    room = _LIMIT - len(TRAIN) - 1
    return f"{_fit(f'ftj-{name}'.replace('.', '-'), room, original=name)}-{TRAIN}"  # hashed: ftj-… may be a job too


def output_claim(name: str) -> str:
    """Name of the claim that is made where the job names none."""
    return child(name, "output")


def output_directory(name: str, uid: str) -> str:
    """Directory of one job in its output claim: a job created anew under an old name starts afresh."""
    return child(name, uid[:8])


def job_labels(name: str, uid: str) -> dict[str, str]:
    """Labels of everything that belongs to one FineTuneJob."""
    return {JOB_LABEL: label_value(name), UID_LABEL: uid, MANAGED_BY_LABEL: MANAGER}


def job_of(body: dict[str, Any]) -> tuple[str, str] | None:
    """Namespace and name of the FineTuneJob that a labelled child belongs to; None where it is none of ours."""
    meta = body.get("metadata", {})
    name = meta.get("annotations", {}).get(NAME_ANNOTATION) or meta.get("labels", {}).get(JOB_LABEL)
    return (meta.get("namespace", ""), name) if name else None


def _fit(text: str, room: int, original: str | None = None) -> str:
    whole = original or text
    if len(text) <= room and text == whole:
        return text
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^a-z0-9]+$', '', text[: room - 9])}-{digest}"
