"""Kueue itself admits jobs, takes the place of one for another of higher priority, and gives it back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import kueue
import pytest
from finetune_cli.kubectl import Kubectl
from finetune_operator.core import names
from team import Team, condition, has_saved
from tiny_jobs import long_job, tiny_job

pytestmark = pytest.mark.timeout(1800)  # Kueue is compiled first, where it was not yet


@pytest.fixture(scope="module")
def team(operator: None, make_team: Callable[[str], Team], kubectl: Kubectl, priority: str) -> Iterator[Team]:
    """A namespace with a LocalQueue whose quota is for one job at a time."""
    with kueue.installed(kubectl, cpu="700m"):
        team = make_team("e2e-kueue")
        kubectl.apply(kueue.local_queue(team.name))
        yield team
        kubectl.run("delete", "namespace", team.name, "--timeout=180s")  # Workloads go while Kueue is there


def test_a_job_of_higher_priority_takes_the_place_and_gives_it_back(team: Team, priority: str) -> None:
    """It waits in a queue that is not there, and says so, until it is told to take another."""
    team.start(long_job("patient", 1500, scheduling__queueName=kueue.QUEUE))
    urgent = {"scheduling__queueName": "nowhere", "scheduling__priorityClassName": priority}
    team.start(tiny_job("urgent", **urgent, resources__cpu="600m", evaluation={}))
    team.until("urgent", _says("LocalQueue nowhere doesn't exist"), "told that its queue is not there")
    assert team.pods("urgent", names.TRAIN) == []
    team.until("patient", has_saved, "running with a checkpoint")
    (first,) = team.pods("patient", names.TRAIN)
    merge: dict[str, Any] = {"queueName": kueue.QUEUE}
    team.edit("urgent", scheduling=merge)
    waits = team.until_phase("patient", "Queued")
    assert "Preempted to accommodate a workload" in condition(waits, "Ready")["message"], team.told("patient")
    assert waits["checkpoint"]["step"] == waits["progress"]["step"]
    moved = team.until_phase("urgent", "Succeeded")
    assert (moved["attempt"], "failedAttempts" in moved) == (2, False)
    status = team.until_phase("patient", "Succeeded")
    assert team.phases("patient")[-5:] == ["Queued", "Running", "Queued", "Running", "Succeeded"]
    assert (status["attempt"], status.keys() & {"failedAttempts", "disruptions", "failure"}) == (1, set())
    (again,) = [pod for pod in team.pods("patient", names.TRAIN) if pod != first]
    assert f"going on from checkpoint-{waits['checkpoint']['step']}" in team.log(again)


def _says(words: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: words in condition(status, "Ready").get("message", "")
