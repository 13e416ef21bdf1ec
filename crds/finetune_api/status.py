"""FineTuneJob.status: what the resource itself reports.

Fields are optional throughout: the operator writes what it knows and nothing else. Bytes are bytes, durations are
seconds, times are RFC 3339 in UTC.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from finetune_api.base import ApiModel
from finetune_api.types import Count, LongText, ShortText

Phase = Literal["Pending", "Preparing", "Queued", "Running", "Suspended", "Succeeded", "Failed"]
ConditionType = Literal["Accepted", "Prepared", "Suspended", "Complete", "Failed", "Ready", "Reconciling", "Stalled"]
MediumText = Annotated[str, Field(max_length=4096)]


class StatusModel(ApiModel):
    """Status is read back from the server, where a newer operator may have written more than we know."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusModel):
    """As metav1.Condition."""

    type: ShortText
    """Kind of condition."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: ShortText
    """One CamelCase word."""
    message: MediumText = ""
    """For a person."""
    last_transition_time: ShortText
    """When `status` last changed."""
    observed_generation: Count | None = None
    """Generation of the spec that this was said of."""


class Progress(StatusModel):
    """How far training is. Rank 0 sends this; it is also in the termination report."""

    step: Count
    """Optimizer steps done."""
    total_steps: Count
    """Optimizer steps in all."""
    epoch: float | None = None
    """Passes over the data."""
    loss: float | None = None
    """Training loss, mean since the last report: nats a supervised token, or a preference stage's own loss."""
    eval_loss: float | None = None
    """Held-out loss: nats a supervised token, or a preference stage's own loss."""
    initial_eval_loss: float | None = None
    """Held-out loss before the first step."""
    reward_accuracy: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    """Share of pairs whose chosen answer has the higher reward, since the last report; stages dpo, orpo and rm."""
    reward_margin: float | None = None
    """Mean reward of chosen answers less that of rejected ones, since the last report; preference stages."""
    learning_rate: float | None = None
    """Learning rate."""
    grad_norm: float | None = None
    """Gradient norm before clipping."""
    tokens_per_second: float | None = None
    """Non-pad tokens a second over all devices."""
    tokens: Count | None = None
    """Non-pad tokens seen in this and earlier attempts."""
    peak_memory_bytes: Count | None = None
    """Largest memory use: of one GPU where there is one, else of the process."""
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """100 x step / totalSteps, rounded down."""
    eta_seconds: Count | None = None
    """Seconds left at the present speed."""
    display: ShortText | None = None
    """`step/totalSteps percent%`, for the Progress column; the operator writes it."""
    eta: ShortText | None = None
    """`etaSeconds` as a person reads it, such as `1m20s`, for the ETA column; the operator writes it."""
    updated_at: ShortText | None = None
    """When this was measured."""


class DroppedRows(StatusModel):
    """Rows that are not trained on, or not whole, by cause."""

    reason: ShortText
    """Why."""
    count: Count
    """How many."""
    first: ShortText | None = None
    """File and row of the first."""
    examples: Annotated[list[ShortText], Field(max_length=3)] = []
    """The first ones: file, row and, where more is known, what is wrong."""


class SourceStatus(StatusModel):
    """What came of one source of several."""

    uri: ShortText
    """Its URI."""
    rows: Count
    """Rows that it has."""
    samples: Count
    """Samples of it that an epoch trains on."""


class DatasetStatus(StatusModel):
    """What the prepare step found."""

    samples: Count
    """Samples that are trained on."""
    validation_samples: Count = 0
    """Samples held out."""
    dropped: Annotated[list[DroppedRows], Field(max_length=32)] = []
    """Rows left out, by cause."""
    truncated: Count = 0
    """Samples that lost turns to `maxLength`."""
    truncations: Annotated[list[DroppedRows], Field(max_length=32)] = []
    """The same by cause, with the first ones."""
    sources: Annotated[list[SourceStatus], Field(max_length=64)] = []
    """What came of each source, where there are several."""
    tokens: Count = 0
    """Tokens that are trained on, without padding."""
    supervised_tokens: Count = 0
    """Tokens that the loss is computed on."""
    sequences: Count = 0
    """Training sequences after packing."""
    digest: ShortText | None = None
    """Hash of the prepared data; equal inputs share it."""
    reused: bool = False
    """True where an earlier job had prepared the same data."""


class ModelStatus(StatusModel):
    """The base model as found."""

    parameters: Count | None = None
    """Parameters of the model."""
    trainable_parameters: Count | None = None
    """Parameters that are trained."""
    digest: ShortText | None = None
    """Commit on the hub, or hash of the files."""
    architecture: ShortText | None = None
    """Class of the model."""

    @property
    def trained(self) -> str:
        """How many parameters are trained and by how much that is fewer than all, for a person: ``43,646,976 of
        8,190,735,360 parameters trained: 99.5 % fewer``. Empty where the counts are not known."""
        trained, total = self.trainable_parameters, self.parameters
        if trained is None or not total:
            return ""
        if trained == total:
            return f"all {total:,} parameters trained"
        told = f"{trained:,} of {total:,} parameters trained"
        if trained > total:  # adapters of a high rank on a small model
            return told
        fewer, digits = 100 * (1 - trained / total), 1
        while round(fewer, digits) == 100 and trained:  # some are trained, and 100 % fewer are none
            digits += 1
        return f"{told}: {fewer:.{digits}f} % fewer"


class MemoryEstimate(StatusModel):
    """Bytes on one device by part, at the moment when most are in use; comparable with `measured`."""

    weights: Count = 0
    """Weights."""
    gradients: Count = 0
    """Gradients."""
    optimizer: Count = 0
    """Optimizer state and master weights."""
    activations: Count = 0
    """Activations kept for the backward pass."""
    logits: Count = 0
    """Logits and their gradients."""
    buffers: Count = 0
    """Everything else."""
    total: Count = 0
    """Sum of the parts."""
    moment: ShortText | None = None
    """When that is: `loss`, `layer` (in the backward pass), `gradients` (at its end) or `step` (of the optimizer)."""
    micro_batch_size: Count | None = None
    """Sequences per device and forward pass that it is for."""
    devices: Count | None = None
    """Devices that it is for."""


class MemoryStatus(StatusModel):
    """Estimated before, measured after."""

    estimate: MemoryEstimate | None = None
    """What the prepare step expects."""
    micro_batch_size: Count | None = None
    """What `hyperparameters.microBatchSize: auto` came to on the device that is there."""
    measured: Count | None = None
    """Peak in bytes that training reached."""


class AccelerationStatus(StatusModel):
    """What is really in use."""

    device: ShortText | None = None
    """`cpu`, or the GPU's name."""
    attention: ShortText | None = None
    """Attention implementation."""
    precision: ShortText | None = None
    """Type that the arithmetic runs in."""
    kernels: Annotated[list[ShortText], Field(max_length=32)] = []
    """Others: liger, compile, …"""
    strategy: ShortText | None = None
    """How the work is spread over devices: `ddp`, `zero1`, `zero2`, `zero3` or `fsdp2`; unset on one device alone."""
    devices: Count | None = None
    """Devices in all, one process each."""
    offload: ShortText | None = None
    """What is held in host memory: `optimizer` or `parameters`; unset means nothing."""


class CheckpointStatus(StatusModel):
    """Newest complete checkpoint."""

    step: Count
    """Optimizer step it was written at."""
    path: ShortText
    """Path in the output."""
    time: ShortText
    """When."""


class OutputStatus(StatusModel):
    """Where the result is."""

    uri: MediumText
    """`pvc://claim/path` of the adapter or model."""
    digest: ShortText | None = None
    """`sha256:` of the weights."""
    merged: MediumText | None = None
    """`pvc://claim/path` of the base with the adapter merged in, where the job asks for it."""


class Sample(StatusModel):
    """One of `evaluation.prompts`, answered twice."""

    prompt: MediumText
    """What was asked."""
    before: MediumText | None = None
    """Answer of the base model."""
    after: MediumText | None = None
    """Answer of the tuned model."""


class Failure(StatusModel):
    """Why it failed and what to change."""

    reason: ShortText
    """One CamelCase word, from the list in docs/failures.md."""
    message: MediumText
    """What is wrong, where, and what to do."""
    rank: Count | None = None
    """Rank that failed first."""
    exit_code: int | None = None
    """Its exit code."""
    retryable: bool = False
    """Whether a further attempt could help."""
    attempt: Count | None = None
    """Attempt that failed; 0 is the prepare step."""
    log_tail: MediumText | None = None
    """Last lines of its log."""


class FineTuneJobStatus(StatusModel):
    """All that the operator knows of a job."""

    phase: Phase | None = None
    """Where the job is in its life."""
    conditions: Annotated[list[Condition], Field(max_length=16)] = []
    """Conditions, one a type; `Ready`, `Reconciling` and `Stalled` are those that GitOps tools read."""
    observed_generation: Count | None = None
    """Generation of the spec that this status is about."""
    start_time: ShortText | None = None
    """When the operator took the job up."""
    completion_time: ShortText | None = None
    """When it succeeded or failed."""
    method: ShortText | None = None
    """`full`, `freeze`, `lora` or `qlora`."""
    gpus: Count | None = None
    """GPUs of all pods together."""
    attempt: Count | None = None
    """Training attempts so far."""
    failed_attempts: Count | None = None
    """Attempts that failed by themselves; these count against `runPolicy.backoffLimit`."""
    disruptions: Count | None = None
    """Attempts that ended because their pod was taken away: by preemption, eviction, loss of the node, or somebody who
    deleted it; these count against nothing."""
    suspended_attempt: Count | None = None
    """Attempt that `runPolicy.suspend` stopped; the next one goes on from its checkpoint."""
    running_seconds: Count | None = None
    """Seconds that earlier attempts ran, which count against `runPolicy.activeDeadlineSeconds`."""
    running_since: ShortText | None = None
    """Since when the present attempt runs, which counts too; unset while none runs."""
    config_hash: ShortText | None = None
    """Hash of the resolved trainer configuration, which also names its ConfigMap."""
    profile: LongText | None = None
    """The TrainingProfile in use, as JSON: later edits of it change no running job."""
    chat_template: LongText | None = None
    """The ChatTemplate in use, as JSON: later edits of it change no running job."""
    progress: Progress | None = None
    """Progress."""
    dataset: DatasetStatus | None = None
    """Data."""
    model: ModelStatus | None = None
    """Model."""
    memory: MemoryStatus | None = None
    """Memory."""
    acceleration: AccelerationStatus | None = None
    """Acceleration."""
    checkpoint: CheckpointStatus | None = None
    """Newest checkpoint."""
    output: OutputStatus | None = None
    """Result."""
    samples: Annotated[list[Sample], Field(max_length=16)] = []
    """Answers before and after."""
    failure: Failure | None = None
    """Failure."""
