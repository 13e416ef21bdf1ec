"""Jobs that wait for a place in a queue, lose it and get it back; a rank that hangs; a scheduler that nobody runs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from finetune_operator.core import names
from kubernetes import client
from node_processes import processes_of, signal_all
from queue_stand_in import QueueStandIn, workloads_served
from team import Team, condition, has_saved
from tiny_jobs import long_job, tiny_job

FULL = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor default, 2 more needed"
PREEMPTED = "Preempted to accommodate a workload (UID: 1234) due to prioritization in the ClusterQueue"
QUEUED, HANGS = names.train_job("queued", 1), names.train_job("hangs", 1)


@pytest.fixture(scope="module")
def team(make_team: Callable[[str], Team], priority: str) -> Team:
    """Three jobs at once: one in a queue, one on two nodes, one of a scheduler that is not there."""
    team = make_team("e2e-queues")
    team.start(long_job("queued", 200, scheduling__queueName="team", scheduling__priorityClassName=priority))
    two = {"nodes": 2, "gpusPerNode": 0, "strategy": "ddp"}
    grace = {"backoffLimit": 1, "checkpointOnTerminationSeconds": 0}
    team.start(long_job("hangs", 150, distributed=two, output__claim__accessMode="ReadWriteMany", runPolicy=grace))
    team.start(tiny_job("elsewhere", scheduling__schedulerName="nobody"))
    return team


@pytest.fixture(scope="module")
def hung(team: Team) -> str:
    """The pod of the second rank, whose process is stopped as soon as the job has saved a checkpoint."""
    team.until("hangs", has_saved, "running with a checkpoint")
    (pod,) = [pod for pod in team.pods("hangs", names.TRAIN) if pod.startswith(f"{HANGS}-1")]
    uid = team.core.read_namespaced_pod(pod, team.name).metadata.uid
    signal_all(processes_of(uid, "finetune_trainer.worker"), signal.SIGSTOP)
    team.edit("hangs", runPolicy={"stallTimeoutSeconds": 5})
    return pod


@pytest.fixture(scope="module")
def queue(team: Team, api: client.ApiClient) -> Iterator[QueueStandIn]:
    with workloads_served(api):
        yield QueueStandIn(api, team.name)


def test_a_rank_that_hangs_is_found_and_all_start_again_from_the_checkpoint(team: Team, hung: str) -> None:
    """The others wait for it in vain and in silence: nobody but the operator can notice."""
    stalled = team.until("hangs", lambda status: status.get("failure") is not None, "told that it stands still")
    assert stalled["failure"]["reason"] == "Stalled"
    assert "Nothing was heard of a step for" in stalled["failure"]["message"]
    team.edit("hangs", runPolicy={"stallTimeoutSeconds": None})
    status = team.until_phase("hangs", "Succeeded")
    assert (status["attempt"], status["failedAttempts"]) == (2, 1)
    pods = team.pods("hangs", names.TRAIN)
    assert hung not in pods
    again = sorted(pod for pod in pods if "-train-2-" in pod)
    assert len(again) == 2
    assert "going on from checkpoint-" in team.log(again[0])
    assert status["progress"]["step"] == status["progress"]["totalSteps"]
    assert team.events("hangs", until="Succeeded").count("Retrying") == 1


def test_a_job_of_a_queue_starts_when_it_is_admitted_and_outlives_a_preemption(team: Team, queue: QueueStandIn) -> None:
    queue.says(QUEUED, "QuotaReserved", "False", FULL)
    team.until("queued", _says("2 more needed"), "told what is missing")
    assert team.read("queued")["status"]["phase"] == "Queued"
    assert team.pods("queued", names.TRAIN) == []
    queue.admits(QUEUED)
    team.until("queued", has_saved, "running with a checkpoint")
    (first,) = team.pods("queued", names.TRAIN)
    assert team.core.read_namespaced_pod(first, team.name).spec.priority == 1000
    queue.takes_back(QUEUED, PREEMPTED)
    waits = team.until_phase("queued", "Queued")
    assert "Preempted to accommodate" in condition(waits, "Ready")["message"]
    assert waits["checkpoint"]["step"] == waits["progress"]["step"], "saved when it was told to end"
    queue.admits(QUEUED)
    status = team.until_phase("queued", "Succeeded")
    assert team.phases("queued")[-6:] == ["Preparing", "Queued", "Running", "Queued", "Running", "Succeeded"]
    assert (status["attempt"], status.keys() & {"failedAttempts", "disruptions", "failure"}) == (1, set())
    assert team.train_jobs("queued") == [QUEUED]
    (again,) = [pod for pod in team.pods("queued", names.TRAIN) if pod != first]
    assert f"going on from checkpoint-{waits['checkpoint']['step']}" in team.log(again)
    told = team.events("queued", until="Succeeded")
    assert told.count("Requeued") == 1
    _assert_each_step_was_done_once(team, "queued", status)


def test_a_scheduler_that_is_not_there_is_named(team: Team) -> None:
    """Its pods have no condition and no event."""
    status = team.until("elsewhere", _says("No scheduler nobody has looked at the pod"), "told of its scheduler")
    assert (status["phase"], condition(status, "Ready")["reason"]) == ("Preparing", "Unschedulable")
    (pod,) = team.pods("elsewhere", names.PREPARE)
    assert team.core.read_namespaced_pod(pod, team.name).spec.scheduler_name == "nobody"


def _says(words: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: words in condition(status, "Ready").get("message", "")


def _assert_each_step_was_done_once(team: Team, job: str, status: dict[str, Any]) -> None:
    path = status["output"]["uri"].removeprefix("pvc://").partition("/")[2]
    with team.files(names.output_claim(job), read_only=True) as pod:
        lines = pod.run("cat", f"/volume/{path}/../progress.jsonl").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps), "no step was done again"
    assert set(steps) - {0} == set(range(1, status["progress"]["totalSteps"] + 1)), "and none was left out"
