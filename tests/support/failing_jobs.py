"""Jobs that are made to fail, and all places where what failed must be told."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from finetune_api.failures import REASONS, FailureReason
from finetune_cli.kubectl import Kubectl
from installed import metrics
from team import Team, condition
from tiny_jobs import Manifest, tiny_job


@dataclass(frozen=True)
class Failing:
    """A job with one thing wrong, what its status says of it, and words of its log's end."""

    name: str
    edits: dict[str, Any]
    reason: FailureReason
    exit_code: int | None
    words: tuple[str, ...]
    """Of the message; the last ones say what to do."""
    log: str | None = None

    def manifest(self) -> Manifest:
        """The job, which makes one attempt."""
        quick: dict[str, Any] = {"evaluation": {}, "dataset__validation": {}, "resources__cpu": "300m"}
        return tiny_job(self.name, **quick, **self.edits, runPolicy={"backoffLimit": 0})


def assert_told(team: Team, case: Failing, kubectl: Kubectl) -> None:
    """The status, its condition, an event, ``kubectl describe`` and a metric say why the job failed, and what to do."""
    status = team.until_phase(case.name, "Failed")
    failure = status["failure"]
    assert failure["reason"] == case.reason, team.told(case.name)
    for words in case.words:
        assert words in failure["message"]
    assert failure.get("exitCode") == case.exit_code
    assert failure["retryable"] is REASONS[case.reason].retryable
    assert condition(status, "Failed")["reason"] == case.reason
    if case.exit_code is not None:
        assert (failure["rank"], failure["attempt"], status["attempt"]) == (0, 1, 1)
    if case.log is not None:
        assert case.log in failure["logTail"]
    assert_seen(team, case.name, kubectl, advice=case.words[-1])


def assert_seen(team: Team, job: str, kubectl: Kubectl, *, advice: str) -> None:
    """An event, ``kubectl describe`` and a metric tell of the failure that the status has, with what to do."""
    failure = team.read(job)["status"]["failure"]
    reason = failure["reason"]
    assert "Failed" in team.events(job, until="Failed")
    described = re.sub(r"\s+", " ", team.kubectl.run("describe", "ftj", job))
    assert f"{reason}: {failure['message']}"[:200] in described, "as an event"
    assert advice in described
    counted = re.search(rf'finetune_failures_total{{reason="{reason}"}} (\d+)', metrics(kubectl))
    assert counted is not None
    assert int(counted[1]) >= 1
