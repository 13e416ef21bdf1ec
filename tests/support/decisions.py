"""Decisions about one job at its stations, for tests of what is decided."""

from __future__ import annotations

import copy
from typing import Any

from finetune_operator.core.children import Observed
from finetune_operator.core.decision import Decision
from finetune_operator.core.reconcile import decide
from finetune_operator.core.settings import CoreSettings
from operator_bodies import SETTINGS, at, batch_job, job_body, pod_of, report, running, terminated

Body = dict[str, Any]


def go(body: Body, seconds: float = 0.0, settings: CoreSettings = SETTINGS, **observed: Any) -> Decision:
    """What is decided about ``body`` so many seconds after NOW; ``observed`` as of :class:`Observed`."""
    return decide(body, Observed(**observed), at(seconds), settings)


def later(body: Body, decision: Decision, **more: Any) -> Body:
    """``body`` once the decision's status is written."""
    return copy.deepcopy(body) | {"status": decision.status.to_dict() | more}


def kinds(decision: Decision) -> list[str]:
    """Kind and name of what is applied."""
    return [f"{item['kind']} {item['metadata']['name']}" for item in decision.apply]


def made(decision: Decision) -> list[str]:
    """Jobs that are made."""
    return [item["metadata"]["name"] for item in decision.apply if item["kind"] == "Job"]


def told(decision: Decision) -> list[str]:
    """Reasons of the events."""
    return [note.reason for note in decision.notes]


def state(decision: Decision) -> dict[str, str]:
    """Status of each condition."""
    return {condition.type: condition.status for condition in decision.status.conditions}


def reason(decision: Decision, kind: str = "Ready") -> str:
    """Reason of a condition."""
    return next(condition.reason for condition in decision.status.conditions if condition.type == kind)


def said(decision: Decision, kind: str = "Ready") -> str:
    """Message of a condition."""
    return next(condition.message for condition in decision.status.conditions if condition.type == kind)


def preparing() -> Body:
    """A job whose prepare Job was just made."""
    body = job_body()
    return later(body, go(body))


def prepared_pod(**parts: Any) -> tuple[Body, Body]:
    """A prepare Job that is complete, and its pod."""
    job = batch_job("prepare", ended="Complete")
    message = report("prepare", dataset={"samples": 12, "supervisedTokens": 345}, **parts)
    return job, pod_of(job, phase="Succeeded", state=terminated(0, message))


def queued() -> Body:
    """A job whose first attempt was just made."""
    body = preparing()
    job, pod = prepared_pod()
    return later(body, go(body, jobs=[job], pods=[pod]))


def training(attempt: int = 1) -> Body:
    """A job whose training runs."""
    body = queued()
    body["status"]["attempt"] = attempt
    job = batch_job(attempt=attempt)
    return later(body, go(body, jobs=[job], pods=[pod_of(job, phase="Running", state=running())]))


def failed_attempt(attempt: int = 1, code: int = 1, message: str | None = None, at_second: float = 100) -> Body:
    """A train Job that failed and its pod, as keyword arguments of Observed."""
    job = batch_job(attempt=attempt, ended="Failed", ended_at=at_second)
    pod = pod_of(job, phase="Failed", state=terminated(code, message or report("train", code, message="it broke")))
    return {"jobs": [job], "pods": [pod]}
