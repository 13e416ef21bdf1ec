"""What stands behind the progress endpoint in tests: an API server that knows one pod, and a taker of reports."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from finetune_api.reports import ProgressReport
from finetune_operator.cluster.errors import ApiError
from finetune_operator.metrics import Metrics
from finetune_operator.reconciler import Key, Known
from operator_bodies import UID, batch_job, pod_of

PATH = "/v1/namespaces/team/finetunejobs/tune/progress"
BODY = {"attempt": 2, "progress": {"step": 1, "totalSteps": 10}}


def jwt(expires: float | None = None) -> str:
    claims = {"exp": time.time() + 3600 if expires is None else expires}
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.c2ln"


class ApiServer:
    """What the API server says of tokens and pods."""

    def __init__(self) -> None:
        self.pod_body: dict[str, Any] | None = pod_of(batch_job(attempt=2))
        self.review: dict[str, Any] = {
            "authenticated": True,
            "audiences": ["finetune-operator"],
            "user": {
                "username": "system:serviceaccount:team:default",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["tune-train-2-0-abcde"],
                    "authentication.kubernetes.io/pod-uid": ["pod-tune-train-2"],
                },
            },
        }
        self.reviews = 0
        self.down = False

    async def review_token(self, _token: str) -> dict[str, Any]:
        self.reviews += 1
        if self.down:
            raise ApiError(0, "no answer", what="tokenreviews")
        return self.review

    async def pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        pod = self.pod_body
        found = pod and (pod["metadata"]["namespace"], pod["metadata"]["name"]) == (namespace, name)
        return pod if found else None


class Sink:
    def __init__(self) -> None:
        self.metrics = Metrics(lambda: ())
        self.jobs: dict[Key, Known] = {("team", "tune"): Known(UID, "Running", 2)}
        self.taken: list[tuple[Key, ProgressReport]] = []

    async def job_known(self, key: Key) -> Known | None:
        return self.jobs.get(key)

    def submit(self, key: Key, report: ProgressReport) -> None:
        self.taken.append((key, report))
