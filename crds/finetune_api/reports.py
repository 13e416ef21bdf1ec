"""What a pod tells the operator: the termination report, and the progress that rank 0 posts.

The kubelet keeps 4,096 bytes of a container's termination message, so a report is cut to fit by leaving out, in
this order, log lines, samples' tails, examples of dropped rows and then these, never the reason.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from finetune_api.failures import ExitCode
from finetune_api.status import (
    AccelerationStatus,
    CheckpointStatus,
    DatasetStatus,
    MemoryStatus,
    ModelStatus,
    Progress,
    Sample,
    StatusModel,
)

TERMINATION_MESSAGE_BYTES = 4096
TERMINATION_PATH_ENV = "FINETUNE_TERMINATION_PATH"
DEFAULT_TERMINATION_PATH = "/dev/termination-log"


class ExportReport(StatusModel):
    """What was written, relative to the job's output directory."""

    path: str
    """Directory of the adapter or model."""
    digest: str
    """`sha256:` of the weights' files."""
    merged: str | None = None
    """Directory of the merged weights."""


class TerminationReport(StatusModel):
    """Last word of a container."""

    model_config = ConfigDict(extra="ignore", strict=False)

    version: Literal[1] = 1
    step: Literal["prepare", "train"]
    """Which command wrote it."""
    exit_code: int = ExitCode.OK
    """As the process exits."""
    message: str | None = None
    """What is wrong, where, and what to do. None where nothing is."""
    rank: int | None = None
    """Rank that failed."""
    log_tail: str | None = None
    """Last lines of the log of a failure."""
    dataset: DatasetStatus | None = None
    model: ModelStatus | None = None
    memory: MemoryStatus | None = None
    acceleration: AccelerationStatus | None = None
    progress: Progress | None = None
    checkpoint: CheckpointStatus | None = None
    output: ExportReport | None = None
    samples: list[Sample] = []

    def encode(self, limit: int = TERMINATION_MESSAGE_BYTES) -> bytes:
        """JSON of at most ``limit`` bytes."""
        report = self
        for text_limit in (4096, 1200, 600, 300, 120, 0):
            report = self._shortened(text_limit)
            data = report.model_dump_json(by_alias=True, exclude_none=True).encode()
            if len(data) <= limit:
                return data
        bare = TerminationReport(
            step=self.step,
            exit_code=self.exit_code,
            message=(self.message or "")[:800] or None,
            rank=self.rank,
            output=self.output,
        )
        return bare.model_dump_json(by_alias=True, exclude_none=True).encode()

    def _shortened(self, size: int) -> TerminationReport:
        def head(text: str | None) -> str | None:
            return text if text is None or len(text) <= size else text[: max(size - 1, 0)] + "…"

        tail = self.log_tail[-size:] if self.log_tail and size else None
        samples = [
            sample.model_copy(
                update={
                    "prompt": head(sample.prompt),
                    "before": head(sample.before),
                    "after": head(sample.after),
                }
            )
            for sample in self.samples
        ]
        dataset = self.dataset
        if dataset is not None and size < 1200:
            dataset = dataset.model_copy(
                update={
                    name: [row.model_copy(update={"examples": []}) for row in getattr(dataset, name)]
                    for name in ("dropped", "truncations")
                }
            )
        if dataset is not None and size < 300:
            dataset = dataset.model_copy(update={"dropped": [], "truncations": [], "sources": []})
        return self.model_copy(
            update={
                "log_tail": tail,
                "samples": samples if size else [],
                "dataset": dataset,
                "message": self.message if self.message is None else self.message[: max(size, 800)],
            }
        )

    @classmethod
    def decode(cls, message: str | bytes | None) -> TerminationReport | None:
        """Parse a container's termination message; None where it is no report of ours (a crash's last log lines)."""
        if not message:
            return None
        try:
            return cls.model_validate_json(message)
        except ValueError:
            return None


class ProgressReport(StatusModel):
    """Body that rank 0 posts to the operator."""

    model_config = ConfigDict(extra="ignore", strict=False)

    version: Literal[1] = 1
    attempt: int
    """Attempt that measures; older ones are ignored."""
    progress: Progress
    checkpoint: CheckpointStatus | None = None
    acceleration: AccelerationStatus | None = None
    model: ModelStatus | None = None
