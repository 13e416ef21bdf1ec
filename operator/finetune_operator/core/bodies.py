"""Bodies that the progress endpoint takes: ours, and that of transformers' KubeflowCallback.

The latter is ``{"trainerStatus": {"progressPercentage", "estimatedRemainingSeconds", "metrics": [{"name", "value"}],
"lastUpdatedTime"}}`` with values as strings (transformers/integrations/integration_utils.py, KubeflowCallback).
"""

from __future__ import annotations

import json
import math
from typing import Any

from finetune_api.reports import ProgressReport
from finetune_api.status import Progress
from pydantic import ValidationError

MAX_COUNT = 2**53


class BadBody(ValueError):  # noqa: N818 - says what it is
    """The body is none of the two; the message says why."""


def parse_progress(data: bytes, *, attempt: int) -> ProgressReport:
    """Read what a pod of ``attempt`` posted.

    Raises:
        BadBody: not JSON, not of either form, or of another attempt than the pod's.
    """
    try:
        body = json.loads(data)
    except ValueError as error:
        raise BadBody(f"not JSON: {error}") from error
    if not isinstance(body, dict):
        raise BadBody("must be a JSON object")
    try:
        if "trainerStatus" in body:
            return ProgressReport(attempt=attempt, progress=_from_kubeflow(body["trainerStatus"]))
        report = ProgressReport.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BadBody(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    if report.attempt != attempt:
        raise BadBody(f"attempt: the pod is of attempt {attempt}, the report of {report.attempt}")
    return report


def _from_kubeflow(status: Any) -> Progress:
    if not isinstance(status, dict):
        raise BadBody("trainerStatus: must be an object")
    metrics = _metrics(status.get("metrics") or [])
    percent = _number(status.get("progressPercentage"), "progressPercentage")
    percent = None if percent is None else min(100.0, max(0.0, percent))
    total = metrics.get("total_steps")
    step = metrics.get("current_step")
    if total is None:  # a percentage is all it knows, as at the end of training: steps stay as they were told before
        if percent is None:
            raise BadBody("trainerStatus: neither progressPercentage nor the metric total_steps is there")
        total, step = 0.0, 0.0
    elif step is None:
        step = total * (percent or 0.0) / 100.0
    remaining = _number(status.get("estimatedRemainingSeconds"), "estimatedRemainingSeconds")
    return Progress(
        step=_count(step),
        total_steps=_count(total),
        epoch=metrics.get("current_epoch", metrics.get("epoch")),
        loss=metrics.get("loss", metrics.get("train_loss")),
        eval_loss=metrics.get("eval_loss"),
        learning_rate=metrics.get("learning_rate"),
        grad_norm=metrics.get("grad_norm"),
        tokens_per_second=metrics.get("train_tokens_per_second"),
        tokens=_count(metrics["num_input_tokens_seen"]) if "num_input_tokens_seen" in metrics else None,
        percent=None if percent is None else int(percent),
        eta_seconds=None if remaining is None else _count(remaining),
    )


def _metrics(items: Any) -> dict[str, float]:
    if not isinstance(items, list):
        raise BadBody("trainerStatus.metrics: must be a list")
    metrics = {}
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise BadBody("trainerStatus.metrics: each must have a name and a value")
        try:
            value = float(item.get("value"))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            continue  # others' metrics may be words
        if math.isfinite(value):
            metrics[item["name"]] = value
    return metrics


def _number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise BadBody(f"trainerStatus.{name}: must be a number, not {value!r}")
    return number


def _count(value: float) -> int:
    return max(0, min(MAX_COUNT, int(value)))
