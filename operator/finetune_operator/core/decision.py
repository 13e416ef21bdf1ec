"""What a reconcile results in: objects to apply, a status to write, events to tell, a time to look again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finetune_api.status import FineTuneJobStatus


@dataclass(frozen=True)
class Note:
    """An event of the FineTuneJob, told once its status is written."""

    reason: str
    message: str
    type: Literal["Normal", "Warning"] = "Normal"


@dataclass(frozen=True)
class Decision:
    """Carried out in this order: apply, write, tell, delete."""

    status: FineTuneJobStatus
    apply: Sequence[dict[str, Any]] = ()
    delete_jobs: Sequence[str] = ()
    """Jobs to delete with their pods, after the status says why."""
    delete_self: bool = False
    """Delete the FineTuneJob itself: it is finished and its time to live is over. Last of all."""
    notes: Sequence[Note] = ()
    requeue_after: float | None = None
    """Seconds until time alone could change something; None: only an event can."""
