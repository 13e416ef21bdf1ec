"""What decisions depend on beside the job and the cluster. Read from the environment once, at start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CoreSettings:
    """Durations are seconds."""

    trainer_image: str
    """Image of jobs whose profile names none."""
    progress_url: str
    """Base of the progress endpoint as pods reach it, such as ``https://finetune-operator.system.svc:8443``."""
    unsloth_image: str = ""
    """As ``trainer_image``, for jobs with ``acceleration.unsloth``; empty where there is none."""
    progress_interval: float = 10.0
    """Least time between two status writes for progress."""
    backoff_base: float = 10.0
    """Wait before the second attempt; doubled before each further one."""
    backoff_cap: float = 360.0
    """Longest wait before an attempt."""
    start_grace: float = 60.0
    """How long a job may wait for a TrainingProfile, Secret, ConfigMap or claim that does not exist, or have an image
    name that is none, before it fails: GitOps tools apply in any order."""
    image_pull_grace: float = 300.0
    """How long an image pull may fail before the job does: registries have bad minutes."""
    unschedulable_timeout: float = 0.0
    """How long a pod may find no node or no volume before the job fails; 0 waits for ever, since nodes and volumes
    can be made on demand."""


def retry_delay(attempt: int, settings: CoreSettings) -> float:
    """Seconds between the end of ``attempt``, counted from 1, and the start of the next."""
    return float(min(settings.backoff_cap, settings.backoff_base * 2 ** min(attempt - 1, 30)))
