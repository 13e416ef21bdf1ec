"""The half of a FineTuneJob's spec that says *where and how* it runs: devices, scheduling, output, policies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import ApiModel
from finetune_api.training import SecretKeyRef
from finetune_api.types import (
    DnsName,
    FreeForm,
    LabelName,
    LongText,
    NonNegativeInt,
    PositiveInt,
    Quantity,
    ShortText,
)
from finetune_api.uris import OBJECT_STORE_SCHEMES, scheme_pattern

LabelMap = Annotated[dict[str, ShortText], Field(max_length=64)]
AccessMode = Literal["ReadWriteOnce", "ReadWriteOncePod", "ReadWriteMany"]


class DistributedSpec(ApiModel):
    """Devices and how the work is spread over them."""

    nodes: Annotated[int, Field(ge=1, le=4096)] = 1
    """Pods, one a node."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs a pod; 0 trains on the CPU."""
    strategy: Literal["auto", "ddp", "zero1", "zero2", "zero3", "fsdp2"] = "auto"
    """How parameters, gradients and optimizer state are shared out."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """What DeepSpeed holds in host memory."""
    deepspeed: FreeForm | None = None
    """Raw DeepSpeed configuration laid over the one we make."""
    sequence_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """GPUs that share one sequence."""


class ResourcesSpec(ApiModel):
    """What each training pod asks for."""

    cpu: Quantity = "2"
    """CPU request and limit of a pod."""
    memory: Quantity = "8Gi"
    """Memory request and limit of a pod."""
    gpu_resource: ShortText = "nvidia.com/gpu"
    """Extended resource that GPUs are counted by."""
    shared_memory: Quantity = "1Gi"
    """Size of /dev/shm; it counts against `memory`."""


class Toleration(ApiModel):
    """As in a pod's spec."""

    key: ShortText | None = None
    """Taint's key; unset with operator Exists tolerates all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How `value` is compared."""
    value: ShortText | None = None
    """Taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint's effect; unset means all."""
    toleration_seconds: NonNegativeInt | None = None
    """Seconds that a NoExecute taint is tolerated."""


class SchedulingSpec(ApiModel):
    """Where pods go and in what order."""

    profile: DnsName = "default"
    """The TrainingProfile to use. Without one of this name, `default` means the operator's own defaults."""
    node_selector: LabelMap = {}
    """Labels a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32)] = []
    """Taints that are tolerated."""
    priority_class_name: DnsName | None = None
    """PriorityClass of the pods."""
    queue_name: LabelName | None = None
    """Kueue's LocalQueue, in the job's namespace: training starts when it admits it. A change moves an attempt that
    still waits, and holds for later ones."""
    scheduler_name: DnsName | None = None
    """Scheduler of the pods, such as `volcano`."""


class ClaimSpec(ApiModel):
    """The PersistentVolumeClaim that holds checkpoints and results."""

    name: DnsName | None = None
    """An existing claim. Unset: the operator makes `<job>-output`, and never deletes it."""
    size: Quantity = "10Gi"
    """Size of a claim that is made."""
    storage_class_name: DnsName | None = None
    """Storage class of a claim that is made; unset means the cluster's default."""
    access_mode: AccessMode = "ReadWriteOnce"
    """Access mode of a claim that is made."""


class CheckpointSpec(ApiModel):
    """How often work is saved."""

    every_steps: PositiveInt = 100
    """Optimizer steps between checkpoints."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Newest complete checkpoints that are kept."""


class MergeSpec(ApiModel):
    """Write the base model with the adapter merged into it."""

    dtype: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Type of the merged weights."""


class PushSpec(ApiModel):
    """Where the result is pushed."""

    uri: Annotated[str, StringConstraints(max_length=1024, pattern=scheme_pattern(OBJECT_STORE_SCHEMES))]
    """`hf://organisation/name`, `oci://registry/repository:tag` or `s3://bucket/prefix`."""
    secret_ref: SecretKeyRef | None = None
    """Token to push with."""


class OutputSpec(ApiModel):
    """What is left when the job is gone."""

    claim: ClaimSpec = ClaimSpec()
    """Volume of checkpoints and results."""
    merge: MergeSpec | None = None
    """Also write merged weights."""
    push: PushSpec | None = None
    """Also push the result."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """Checkpoints."""


class EvaluationSpec(ApiModel):
    """What is measured beside the training loss."""

    every_steps: PositiveInt | None = None
    """Steps between two measurements of the held-out loss; unset means before the first step and after the last."""
    prompts: Annotated[list[LongText], Field(max_length=16)] = []
    """User messages answered greedily by the model before and after training; the answers go to
    `status.samples`."""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Longest answer, in tokens."""


class TrackingSpec(ApiModel):
    """Experiment trackers."""

    tensorboard: FreeForm | None = None
    """Write TensorBoard events."""
    mlflow: FreeForm | None = None
    """Log to an MLflow server."""
    wandb: FreeForm | None = None
    """Log to Weights & Biases."""


class RunPolicy(ApiModel):
    """How the job is run, suspended, retried and ended."""

    suspend: bool = False
    """Stop with a checkpoint, leave no pod, and go on from the checkpoint when this is false again."""
    backoff_limit: Annotated[int, Field(ge=0, le=100)] = 3
    """Further attempts after one that failed by a cause that a retry can mend. Preemption, eviction, the loss of a
    node, the deletion of a pod and suspension do not count."""
    active_deadline_seconds: PositiveInt | None = None
    """Seconds that training may run, over all attempts, before it is stopped with a checkpoint and the job fails.
    Preparing, queueing, back-off and suspension do not count."""
    stall_timeout_seconds: PositiveInt | None = None
    """Seconds without a step that is told of, while training runs, after which it is stopped and tried again as after a
    failure. More than compiling, an evaluation or an export takes. Unset: for ever."""
    ttl_seconds_after_finished: NonNegativeInt | None = None
    """Seconds after which a finished job is deleted; the claim with its output stays."""
    checkpoint_on_termination_seconds: Annotated[int, Field(ge=0, le=3600)] = 60
    """Grace period in which a pod that is told to end saves a checkpoint; of attempts that start after it is set."""
