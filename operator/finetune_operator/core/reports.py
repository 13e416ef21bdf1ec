"""What pods tell, laid into the status. Each function takes a status and gives the next one."""

from __future__ import annotations

import math
from datetime import datetime

from finetune_api.reports import ProgressReport, TerminationReport
from finetune_api.status import FineTuneJobStatus, OutputStatus, Progress

from finetune_operator.core import times
from finetune_operator.core.plan import Plan


def with_report(status: FineTuneJobStatus, report: TerminationReport | None, now: datetime) -> FineTuneJobStatus:
    """Take over what ``report`` knows; what it leaves out stays as it was."""
    if report is None:
        return status
    parts = {
        "dataset": report.dataset,
        "model": report.model,
        "memory": report.memory,
        "acceleration": report.acceleration,
        "checkpoint": report.checkpoint,
        "progress": shown(_keeping(status.progress, report.progress), now) if report.progress else None,
    }
    update: dict[str, object] = {key: value for key, value in parts.items() if value is not None}
    if report.memory and status.memory:  # prepare estimates, train measures
        update["memory"] = status.memory.model_copy(update=_said(report.memory))
    if report.model and status.model:
        update["model"] = status.model.model_copy(update=_said(report.model))
    if report.samples:
        update["samples"] = report.samples
    return status.model_copy(update=update)


def with_progress(status: FineTuneJobStatus, report: ProgressReport | None, now: datetime) -> FineTuneJobStatus:
    """Take over what rank 0 posted, unless it speaks of an attempt that is over."""
    if report is None or report.attempt != (status.attempt or 0):
        return status
    # When it was heard of, by our clock and not the pod's: see lifecycle.quiet_seconds.
    progress = shown(_keeping(status.progress, report.progress), now).model_copy(
        update={"updated_at": times.stamp(now)}
    )
    update: dict[str, object] = {"progress": progress}
    if report.checkpoint is not None:
        update["checkpoint"] = report.checkpoint
    if report.acceleration is not None:
        update["acceleration"] = report.acceleration
    if report.model is not None:
        known = status.model
        update["model"] = known.model_copy(update=_said(report.model)) if known else report.model
    return status.model_copy(update=update)


def shown(progress: Progress, now: datetime) -> Progress:
    """``progress`` with what its columns show."""
    percent = progress.percent
    if percent is None:
        percent = min(100, 100 * progress.step // progress.total_steps) if progress.total_steps else 0
    update: dict[str, object] = {
        "percent": percent,
        "display": f"{progress.step}/{progress.total_steps} {percent}%" if progress.total_steps else f"{percent}%",
        "eta": None if progress.eta_seconds is None else times.spoken(progress.eta_seconds),
        "updated_at": progress.updated_at or times.stamp(now),
    }
    for name, value in progress:
        if isinstance(value, float):
            # JSON knows no NaN; a loss that is none ends the attempt with NonFiniteLoss, which says more than a number.
            update[name] = _rounded(value) if math.isfinite(value) else None
    return progress.model_copy(update=update)


def _below(root: str, path: str) -> str:
    path = path.strip("/").removeprefix("./")
    return f"{root}/{path}" if path else root


def _rounded(value: float) -> float:
    """As columns can show it: five significant digits, whole numbers whole."""
    return float(f"{value:.5g}") if abs(value) < 1e4 else float(round(value))


def finished(status: FineTuneJobStatus, plan: Plan, report: TerminationReport | None) -> OutputStatus:
    """Where the result is. Without a report (its pod was removed too soon) it is the job's whole directory."""
    root = f"pvc://{plan.output_claim}/{plan.output_directory}"
    if report is None or report.output is None:
        return status.output or OutputStatus(uri=root)
    return OutputStatus(
        uri=_below(root, report.output.path),
        digest=report.output.digest,
        merged=_below(root, report.output.merged) if report.output.merged else None,
    )


def _keeping(before: Progress | None, now: Progress) -> Progress:
    """Measurements that are not taken at every report stay until the next."""
    if before is None:
        return now
    kept = ("eval_loss", "initial_eval_loss", "loss", "peak_memory_bytes")
    update = {name: getattr(before, name) for name in kept if getattr(now, name) is None}
    if not now.total_steps and before.total_steps:  # its sender knows a percentage and no steps
        update["total_steps"] = before.total_steps
        update["step"] = before.total_steps * (now.percent or 0) // 100
    return now.model_copy(update=update)


def _said(model: object) -> dict[str, object]:
    fields = type(model).model_fields  # type: ignore[attr-defined]
    return {name: value for name in fields if (value := getattr(model, name)) is not None}
