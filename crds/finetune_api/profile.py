"""TrainingProfile: what an administrator decides for all jobs that use it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import API_VERSION, ApiModel
from finetune_api.metadata import ObjectMeta
from finetune_api.running import AccessMode, LabelMap, Toleration
from finetune_api.types import DnsName, LabelName, Quantity, ShortText


class ImageSpec(ApiModel):
    """Trainer image."""

    repository: ShortText | None = None
    """Repository with tag or digest; unset means the image that the chart names."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the image is pulled."""
    pull_secrets: Annotated[list[DnsName], Field(max_length=16)] = []
    """Secrets of the job's namespace to pull with."""


class CacheSpec(ApiModel):
    """The claim that holds models and prepared data, shared by the jobs of a namespace."""

    claim_name: DnsName = "finetune-cache"
    """Its name; the operator makes it where it is missing and never deletes it."""
    size: Quantity = "50Gi"
    """Size of a claim that is made."""
    storage_class_name: DnsName | None = None
    """Storage class of a claim that is made; unset means the cluster's default."""
    access_mode: AccessMode = "ReadWriteOnce"
    """Access mode of a claim that is made."""


class StorageSpec(ApiModel):
    """Volumes."""

    cache: CacheSpec = CacheSpec()
    """Cache."""


class SecuritySpec(ApiModel):
    """What jobs may do. Pods are always restricted: not root, read-only root, no capabilities."""

    allow_trust_remote_code: bool = False
    """Let jobs run code that a model's repository carries."""
    allow_pickle: bool = False
    """Let jobs load weights that are pickles, which can run code."""
    run_as_user: Annotated[int, Field(ge=1, le=2**31 - 1)] = 65532
    """User id of the pods; also their group and the volumes' group."""


class PrepareSpec(ApiModel):
    """Resources of the prepare step, which never asks for a GPU."""

    cpu: Quantity = "1"
    """CPU request; there is no limit."""
    memory: Quantity = "4Gi"
    """Memory request and limit."""
    queue_name: LabelName | None = None
    """Kueue's LocalQueue for prepare steps; unset: they run without one, since they hold no GPU."""


class TrainingProfileSpec(ApiModel):
    """Defaults and bounds. A job's own wishes come on top where they may."""

    image: ImageSpec = ImageSpec()
    """Image."""
    node_selector: LabelMap = {}
    """Labels a node must have, beside the job's own."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Tolerations, beside the job's own."""
    runtime_class_name: DnsName | None = None
    """RuntimeClass of the training pods."""
    environment: Annotated[dict[str, ShortText], Field(max_length=64)] = {}
    """Environment of all pods, such as a hub mirror's HF_ENDPOINT."""
    storage: StorageSpec = StorageSpec()
    """Volumes."""
    security: SecuritySpec = SecuritySpec()
    """Security."""
    prepare: PrepareSpec = PrepareSpec()
    """Prepare step."""


class TrainingProfile(ApiModel):
    """Administrators' defaults. The profile in use is copied into a job's status when the job is taken up."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION
    kind: Literal["TrainingProfile"] = "TrainingProfile"
    metadata: ObjectMeta
    spec: TrainingProfileSpec = TrainingProfileSpec()
