"""The pod template that both steps share: restricted Pod Security, volumes, environment.

Nothing here is privileged, and the only token in the pod is bound to it, to the operator's audience and to an hour.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

from finetune_api.running import Toleration
from finetune_api.trainer_config import (
    ATTEMPT_ENV,
    COORDINATOR_ENV,
    NODE_RANK_ENV,
    PROGRESS_CA_FILE_ENV,
    PROGRESS_TOKEN_FILE_ENV,
    PROGRESS_URL_ENV,
)

from finetune_operator.core import names
from finetune_operator.core.children import INDEX_ANNOTATION
from finetune_operator.core.plan import CACHE_MOUNT, CONFIG_FILE, CONFIG_MOUNT, VOLUME_MOUNT, Plan, SecretVariable

TOKEN_MOUNT = "/var/run/finetune"  # noqa: S105 - a path
TOKEN_SECONDS = 3600
CONTAINER = "trainer"
COORDINATOR_PORT = 29500
"""torchrun's own."""
_TERMINATION_MARGIN = 30
"""Seconds beyond the checkpoint's grace: the trainer still has to flush and write its report."""
_SUFFIXES = {
    "m": Decimal("0.001"), "": Decimal(1), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "P": Decimal(10**15), "E": Decimal(10**18), "Ki": Decimal(2**10), "Mi": Decimal(2**20),
    "Gi": Decimal(2**30), "Ti": Decimal(2**40), "Pi": Decimal(2**50), "Ei": Decimal(2**60),
}  # fmt: skip


def quantity(text: str) -> Decimal:
    """Value of a Kubernetes quantity, in its unit (cores, bytes)."""
    digits = text.rstrip("mkKMGTPEi")
    return Decimal(digits) * _SUFFIXES[text[len(digits) :]]


def pod_template(plan: Plan, *, component: str, config_map: str, attempt: int, progress_url: str) -> dict[str, Any]:
    """Template of a pod that runs one step.

    Args:
        plan: the job's plan.
        component: ``prepare`` or ``train``.
        config_map: name of the ConfigMap with the trainer's configuration.
        attempt: training attempt; 0 for the prepare step.
        progress_url: base URL of the operator's progress endpoint.
    """
    profile, spec = plan.profile, plan.job.spec
    user = profile.security.run_as_user
    scheduling = spec.scheduling
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.run_policy.checkpoint_on_termination_seconds + _TERMINATION_MARGIN,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            # Else the kubelet changes the owner of every file of a big cache at every start.
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(plan, component, attempt, progress_url)],
        "volumes": _volumes(plan, component, config_map),
    }
    # Prepare runs anywhere: GPU nodes are what it saves. The user's own wishes hold for both steps, since volumes
    # may be reachable from some nodes only.
    selector = {**profile.node_selector, **scheduling.node_selector}
    tolerations = [_toleration(t) for t in (*profile.tolerations, *scheduling.tolerations)]
    optional = {
        "nodeSelector": selector,
        "tolerations": tolerations,
        "priorityClassName": scheduling.priority_class_name,
        "schedulerName": scheduling.scheduler_name,
        "imagePullSecrets": [{"name": name} for name in profile.image.pull_secrets],
        "runtimeClassName": profile.runtime_class_name if component == names.TRAIN else None,
        "subdomain": names.service(plan.name) if component == names.TRAIN and spec.distributed.nodes > 1 else None,
    }
    pod |= {key: value for key, value in optional.items() if value}
    labels = {**names.job_labels(plan.name, plan.uid), names.COMPONENT_LABEL: component}
    if component == names.TRAIN:
        labels[names.ATTEMPT_LABEL] = str(attempt)
    annotations = {names.NAME_ANNOTATION: plan.name, "kubectl.kubernetes.io/default-container": CONTAINER}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": pod}


def _container(plan: Plan, component: str, attempt: int, progress_url: str) -> dict[str, Any]:
    image = plan.profile.image
    return {
        "name": CONTAINER,
        "image": image.repository,
        "imagePullPolicy": image.pull_policy,
        "command": ["finetune-train", component, "--config", f"{CONFIG_MOUNT}/{CONFIG_FILE}"],
        "env": _environment(plan, component, attempt, progress_url),
        "resources": _prepare_resources(plan) if component == names.PREPARE else _train_resources(plan),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(plan),
    }


def _environment(plan: Plan, component: str, attempt: int, progress_url: str) -> list[dict[str, Any]]:
    resources = plan.job.spec.resources
    cores = quantity(resources.cpu if component == names.TRAIN else plan.profile.prepare.cpu)
    values = {"HOME": "/tmp", "OMP_NUM_THREADS": str(max(1, math.ceil(cores)))}  # noqa: S108 - an emptyDir
    values |= plan.profile.environment
    if component == names.TRAIN:
        url = f"{progress_url}/v1/namespaces/{plan.namespace}/finetunejobs/{plan.name}/progress"
        token, ca = f"{TOKEN_MOUNT}/token", f"{TOKEN_MOUNT}/{names.CA_KEY}"
        values |= {
            ATTEMPT_ENV: str(attempt),
            PROGRESS_URL_ENV: url,
            PROGRESS_TOKEN_FILE_ENV: token,
            PROGRESS_CA_FILE_ENV: ca,
            # What transformers' KubeflowCallback reads: an image of the user's own then reports with no code of
            # ours. Our trainer switches that callback off (DISABLE_KUBEFLOW_INTEGRATION) and posts by itself.
            "KUBEFLOW_TRAINER_SERVER_URL": url,
            "KUBEFLOW_TRAINER_SERVER_TOKEN": token,
            "KUBEFLOW_TRAINER_SERVER_CA_CERT": ca,
        }
    if component == names.TRAIN and plan.job.spec.distributed.nodes > 1:
        values[COORDINATOR_ENV] = _coordinator(plan, attempt)
    plain: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in values.items()]
    if COORDINATOR_ENV in values:
        index = f"metadata.annotations['{INDEX_ANNOTATION}']"
        plain.append({"name": NODE_RANK_ENV, "valueFrom": {"fieldRef": {"fieldPath": index}}})
    return plain + [{"name": s.variable, "valueFrom": {"secretKeyRef": _key_reference(s)}} for s in plan.secrets]


def _key_reference(variable: SecretVariable) -> dict[str, Any]:
    reference: dict[str, Any] = {"name": variable.secret, "key": variable.key}
    return reference | {"optional": True} if variable.optional else reference


def _coordinator(plan: Plan, attempt: int) -> str:
    """Where the pods meet: the first one, by the name that an Indexed Job's pods have in the headless Service. Each
    attempt's is another, so that a pod of an earlier one finds nobody."""
    pod = f"{names.train_job(plan.name, attempt)}-0"
    return f"{pod}.{names.service(plan.name)}.{plan.namespace}.svc:{COORDINATOR_PORT}"


def _prepare_resources(plan: Plan) -> dict[str, Any]:
    prepare = plan.profile.prepare
    return {"requests": {"cpu": prepare.cpu, "memory": prepare.memory}, "limits": {"memory": prepare.memory}}


def _train_resources(plan: Plan) -> dict[str, Any]:
    spec = plan.job.spec
    asked: dict[str, str] = {"cpu": spec.resources.cpu, "memory": spec.resources.memory}
    if spec.distributed.gpus_per_node:
        asked[spec.resources.gpu_resource] = str(spec.distributed.gpus_per_node)
    return {"requests": asked, "limits": dict(asked)}


def _claim_volumes(plan: Plan) -> dict[str, str]:
    """Volume name by claim: a claim that serves two ends is one volume."""
    claims = [plan.profile.storage.cache.claim_name, plan.output_claim, *(mount.claim for mount in plan.claims)]
    return {claim: f"claim-{index}" for index, claim in enumerate(dict.fromkeys(claims))}


def _volumes(plan: Plan, component: str, config_map: str) -> list[dict[str, Any]]:
    shared: dict[str, Any] = {"medium": "Memory"}
    if component == names.TRAIN:
        shared["sizeLimit"] = plan.job.spec.resources.shared_memory
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": config_map}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": shared},
        {"name": "operator", "projected": {"sources": _projected()}},
    ]
    volumes += [
        {"name": volume, "persistentVolumeClaim": {"claimName": claim}}
        for claim, volume in _claim_volumes(plan).items()
    ]
    volumes += [
        {"name": f"source-{i}", "configMap": {"name": m.config_map, "items": [{"key": m.key, "path": m.key}]}}
        for i, m in enumerate(plan.config_maps)
    ]
    return volumes


def _projected() -> list[dict[str, Any]]:
    token = {"audience": names.MANAGER, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    authority = {"name": names.CA_CONFIG_MAP, "optional": True, "items": [{"key": names.CA_KEY, "path": names.CA_KEY}]}
    return [{"serviceAccountToken": token}, {"configMap": authority}]


def _mounts(plan: Plan) -> list[dict[str, Any]]:
    by_claim = _claim_volumes(plan)
    mounts: list[dict[str, Any]] = [
        {"name": "config", "mountPath": CONFIG_MOUNT, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - an emptyDir
        {"name": "operator", "mountPath": TOKEN_MOUNT, "readOnly": True},
        {"name": by_claim[plan.profile.storage.cache.claim_name], "mountPath": CACHE_MOUNT},
        # The claim's root, not a subPath: the kubelet would make that directory for root alone.
        {"name": by_claim[plan.output_claim], "mountPath": VOLUME_MOUNT},
    ]
    mounts += [{"name": by_claim[m.claim], "mountPath": m.mount, "readOnly": True} for m in plan.claims]
    mounts += [{"name": f"source-{i}", "mountPath": m.mount, "readOnly": True} for i, m in enumerate(plan.config_maps)]
    return mounts


def _toleration(toleration: Toleration) -> dict[str, Any]:
    return toleration.to_dict()
