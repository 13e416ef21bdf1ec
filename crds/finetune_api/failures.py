"""Why a job failed: reasons, and the exit codes by which the trainer tells them.

The trainer exits with one of :class:`ExitCode`; the Job's ``podFailurePolicy`` and the operator read nothing else
of it but the termination report. Codes stay clear of 1-2 (Python, shells), 64-78 (sysexits) and 128 and above
(signals).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """Exit codes of ``finetune-train``."""

    OK = 0
    TRAINER_CRASH = 1
    CONFIG_INVALID = 10
    MODEL_NOT_FOUND = 11
    MODEL_ACCESS_DENIED = 12
    MODEL_INVALID = 13
    DATASET_NOT_FOUND = 14
    DATASET_INVALID = 15
    DATASET_ACCESS_DENIED = 16
    NO_SUPERVISED_TOKENS = 17
    TEMPLATE_INVALID = 18
    VOLUME_NOT_WRITABLE = 19
    VOLUME_FULL = 20
    ACCELERATION_UNAVAILABLE = 21
    CUDA_OUT_OF_MEMORY = 22
    NON_FINITE_LOSS = 23
    COLLECTIVE_TIMEOUT = 24
    HUB_UNREACHABLE = 25
    CHECKPOINT_INVALID = 26
    PREPARED_DATA_MISSING = 27
    METHOD_INVALID = 28
    EXPORT_INVALID = 29
    DATASET_UNREACHABLE = 30
    INTERRUPTED = 40
    """Told to end (SIGTERM); a checkpoint was written within the grace period."""


class FailureReason(StrEnum):
    """``status.failure.reason``, and the reason of the ``Failed`` condition."""

    TRAINER_CRASH = "TrainerCrash"
    CONFIG_INVALID = "ConfigInvalid"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    MODEL_INVALID = "ModelInvalid"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_INVALID = "DatasetInvalid"
    DATASET_ACCESS_DENIED = "DatasetAccessDenied"
    DATASET_UNREACHABLE = "DatasetUnreachable"
    NO_SUPERVISED_TOKENS = "NoSupervisedTokens"
    TEMPLATE_INVALID = "TemplateInvalid"
    VOLUME_NOT_WRITABLE = "VolumeNotWritable"
    VOLUME_FULL = "VolumeFull"
    ACCELERATION_UNAVAILABLE = "AccelerationUnavailable"
    CUDA_OUT_OF_MEMORY = "CudaOutOfMemory"
    NON_FINITE_LOSS = "NonFiniteLoss"
    COLLECTIVE_TIMEOUT = "NCCLTimeout"
    HUB_UNREACHABLE = "HubUnreachable"
    CHECKPOINT_INVALID = "CheckpointInvalid"
    PREPARED_DATA_MISSING = "PreparedDataMissing"
    METHOD_INVALID = "MethodInvalid"
    EXPORT_INVALID = "ExportInvalid"
    INTERRUPTED = "Interrupted"
    # What no exit code of ours can tell: read from the pod, the Job or the cluster.
    OOM_KILLED = "OOMKilled"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    UNSCHEDULABLE = "Unschedulable"
    VOLUME_NOT_BOUND = "VolumeNotBound"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason, not a secret
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    CONTAINER_CANNOT_START = "ContainerCannotStart"
    POD_DELETED = "PodDeleted"
    PREEMPTED = "Preempted"
    EVICTED = "Evicted"
    NODE_LOST = "NodeLost"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    STALLED = "Stalled"
    PROFILE_NOT_FOUND = "ProfileNotFound"
    CHAT_TEMPLATE_NOT_FOUND = "ChatTemplateNotFound"
    NOT_ALLOWED = "NotAllowed"
    SPEC_INVALID = "SpecInvalid"


@dataclass(frozen=True)
class ReasonFacts:
    """What is known of a reason in general. ``advice`` is what to change when the report says nothing better."""

    retryable: bool
    advice: str
    counts: bool = True
    """Against ``runPolicy.backoffLimit``."""


def _retry(advice: str) -> ReasonFacts:
    return ReasonFacts(retryable=True, advice=advice)


def _disruption(advice: str) -> ReasonFacts:
    """The doing of the cluster or of a person, which is no failure of the job."""
    return ReasonFacts(retryable=True, advice=advice, counts=False)


def _final(advice: str) -> ReasonFacts:
    return ReasonFacts(retryable=False, advice=advice)


_R = FailureReason
REASONS: dict[FailureReason, ReasonFacts] = {
    _R.TRAINER_CRASH: _retry("Read the log's last lines in status.failure.logTail."),
    _R.CONFIG_INVALID: _final("Operator and trainer image do not match; use images of one release."),
    _R.MODEL_NOT_FOUND: _final("Correct spec.model.source or spec.model.revision."),
    _R.MODEL_ACCESS_DENIED: _final("Accept the model's licence on the hub and name a token in spec.model.secretRef."),
    _R.MODEL_INVALID: _final("Use a causal language model in safetensors form."),
    _R.DATASET_NOT_FOUND: _final("Correct the uri in spec.dataset.sources."),
    _R.DATASET_INVALID: _final("Mend the row that the message names."),
    _R.DATASET_ACCESS_DENIED: _final("Name a token in the source's secretRef."),
    _R.DATASET_UNREACHABLE: _retry("Check the network, the address, and a store's endpoint (AWS_ENDPOINT_URL)."),
    _R.NO_SUPERVISED_TOKENS: _final("Check format, columns and template: no answer was found to train on."),
    _R.TEMPLATE_INVALID: _final("Name a template that exists: finetune templates lists them."),
    _R.VOLUME_NOT_WRITABLE: _final("Make the claim writable for the pod's user (securityContext.fsGroup)."),
    _R.VOLUME_FULL: _final("Enlarge the claim or free space on it; checkpoints written so far are kept."),
    _R.ACCELERATION_UNAVAILABLE: _final("Set the acceleration that is named to auto."),
    _R.CUDA_OUT_OF_MEMORY: _final("Lower microBatchSize or maxLength, or set acceleration.gradientCheckpointing."),
    _R.NON_FINITE_LOSS: _final("Lower learningRate, or use precision bf16 or fp32."),
    _R.COLLECTIVE_TIMEOUT: _retry("Look for a rank that died or hung before."),
    _R.HUB_UNREACHABLE: _retry("Check the network, or a hub mirror in the profile's environment."),
    _R.CHECKPOINT_INVALID: _final("Remove the checkpoint that is named; older ones are used then."),
    _R.PREPARED_DATA_MISSING: _final("The cache volume lost the prepared data; create the job again."),
    _R.METHOD_INVALID: _final("Name modules that the model has in spec.method."),
    _R.EXPORT_INVALID: _final("Checkpoints are kept, and of a merge the adapter: use that, or merge in fp32."),
    _R.INTERRUPTED: _retry("The pod was told to end; the next attempt goes on from its checkpoint."),
    _R.OOM_KILLED: _final("Raise spec.resources.memory."),
    _R.IMAGE_PULL_FAILED: _final("Correct the image's name in the profile or chart, or its pull secret."),
    _R.UNSCHEDULABLE: _final("No node fits; lower resources or add nodes."),
    _R.VOLUME_NOT_BOUND: _final("Check the claim, its storage class and its size."),
    _R.SECRET_NOT_FOUND: _final("Create the Secret and key that secretRef names."),
    _R.CONFIG_MAP_NOT_FOUND: _final("Create the ConfigMap and key that the source names."),
    _R.CONTAINER_CANNOT_START: _final("Read the message; most often the image lacks finetune-train."),
    _R.POD_DELETED: _disruption("Somebody deleted the pod; the next attempt goes on from the checkpoint."),
    _R.PREEMPTED: _disruption("A pod of higher priority took the place."),
    _R.EVICTED: _disruption("The node was short of disk or memory, or was drained."),
    _R.NODE_LOST: _disruption("The node stopped answering."),
    _R.DEADLINE_EXCEEDED: _final("Raise runPolicy.activeDeadlineSeconds."),
    _R.STALLED: _retry("Look for a rank that hangs, or raise runPolicy.stallTimeoutSeconds."),
    _R.PROFILE_NOT_FOUND: _final("Create the TrainingProfile that scheduling.profile names."),
    _R.CHAT_TEMPLATE_NOT_FOUND: _final("Create the ChatTemplate that template.ref names, in the job's namespace."),
    _R.NOT_ALLOWED: _final("The TrainingProfile forbids it; ask its administrator."),
    _R.SPEC_INVALID: _final("Correct the manifest: finetune validate -f FILE."),
}

EXIT_REASONS: dict[ExitCode, FailureReason] = {
    code: FailureReason[code.name] for code in ExitCode if code is not ExitCode.OK
}
"""Each failing exit code's reason."""


def reason_of_exit_code(code: int) -> FailureReason:
    """The reason that ``code`` stands for; codes outside the contract are a crash."""
    try:
        return EXIT_REASONS[ExitCode(code)]
    except (KeyError, ValueError):
        return FailureReason.TRAINER_CRASH
