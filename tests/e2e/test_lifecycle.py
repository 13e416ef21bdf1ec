"""Jobs at rest, at the end of their time, and cleared away, with pods that really train."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from finetune_operator.core import names
from installed import json_of
from team import CHILDREN, Team, condition, has_saved
from tiny_jobs import long_job, tiny_job

GONE = "--timeout=90s"


@dataclass(frozen=True)
class Stopped:
    """The namespace, the statuses of two jobs at rest, and the names of the pods that trained until then."""

    team: Team
    status: dict[str, dict[str, Any]]
    pods: dict[str, list[str]]


@pytest.fixture(scope="module")
def stopped(make_team: Callable[[str], Team]) -> Stopped:
    """Three jobs train side by side until each has saved something. Two then come to rest; the third's pod is evicted,
    and its time is over as soon as it trains again."""
    team = make_team("e2e-lifecycle")
    for name, steps in (("rests", 400), ("left", 4000), ("bounded", 4000)):  # the latter two never get there
        team.start(long_job(name, steps))
    team.start(tiny_job("asleep", runPolicy__suspend=True))
    pods = {}
    for name in ("rests", "left", "bounded"):
        team.until(name, has_saved, "running with a checkpoint")
        pods[name] = team.pods(name, names.TRAIN)
        if name == "bounded":
            team.evict(*pods[name])
        else:
            team.edit(name, runPolicy={"suspend": True})
    status = {name: team.until_phase(name, "Suspended") for name in ("rests", "left", "asleep")}
    team.until("bounded", _runs_again, "running in its second attempt")
    team.edit("bounded", runPolicy={"activeDeadlineSeconds": 1})
    return Stopped(team, status, pods)


def _runs_again(status: dict[str, Any]) -> bool:
    return (status.get("phase"), status.get("attempt")) == ("Running", 2)


def test_a_job_at_rest_holds_no_pod_and_has_its_last_step_saved(stopped: Stopped) -> None:
    team, status = stopped.team, stopped.status["rests"]
    assert team.train_jobs("rests") == []
    _assert_no_pod_trains(team, "rests")
    team.kubectl.run("wait", "--for=delete", "pods", "--selector", _training("rests"), GONE)
    assert condition(status, "Suspended")["status"] == "True"
    assert condition(status, "Reconciling")["status"] == "False"
    assert "failure" not in status
    assert status["runningSeconds"] > 0
    assert status["checkpoint"]["step"] == status["progress"]["step"], "saved when it was told to end"


def test_a_job_that_never_began_holds_nothing(stopped: Stopped) -> None:
    team = stopped.team
    assert json_of(team.kubectl, CHILDREN, "--selector", f"{names.JOB_LABEL}=asleep")["items"] == []
    assert stopped.status["asleep"].keys() & {"attempt", "dataset", "failure"} == set()


def test_of_a_job_that_is_deleted_at_rest_only_its_output_is_left(stopped: Stopped) -> None:
    team = stopped.team
    _assert_its_output_alone_is_left_by(lambda: team.kubectl.run("delete", "ftj", "left", GONE), team, "left")


def test_an_eviction_is_retried_and_counts_against_nothing(stopped: Stopped) -> None:
    status = stopped.team.until_phase("bounded", "Failed")
    assert (status["attempt"], status["disruptions"], "failedAttempts" in status) == (2, 1, False)
    assert stopped.team.events("bounded", until="Failed").count("Retrying") == 1


def test_a_job_whose_time_is_over_saves_a_checkpoint_and_fails(stopped: Stopped) -> None:
    status = stopped.team.until_phase("bounded", "Failed")
    assert status["failure"]["reason"] == "DeadlineExceeded"
    assert status["checkpoint"]["step"] == status["progress"]["step"]
    _assert_no_pod_trains(stopped.team, "bounded")


def test_a_resumed_job_ends_as_if_it_had_never_rested_and_expires(stopped: Stopped) -> None:
    """Each step was done once, in order, over both attempts; then its time to live deletes it, but not its output."""
    team = stopped.team
    rested = stopped.status["rests"]["checkpoint"]["step"]
    team.edit("rests", runPolicy={"suspend": False})
    status = team.until_phase("rests", "Succeeded")
    assert (status["attempt"], "failedAttempts" in status) == (2, False)
    (again,) = team.pods("rests", names.TRAIN)
    assert again not in stopped.pods["rests"]
    assert f"going on from checkpoint-{rested}" in team.log(again)
    told = [reason for reason in team.events("rests", until="Succeeded") if reason != "CheckpointSaved"]
    assert told == ["Suspended", "Resumed", "Succeeded"]

    def expires() -> None:
        team.edit("rests", runPolicy={"ttlSecondsAfterFinished": 0})
        team.kubectl.run("wait", "--for=delete", "ftj/rests", GONE)

    _assert_its_output_alone_is_left_by(expires, team, "rests")
    path = status["output"]["uri"].removeprefix("pvc://").partition("/")[2]
    with team.files(names.output_claim("rests"), read_only=True) as pod:
        lines = pod.run("cat", f"/volume/{path}/../progress.jsonl").splitlines()
        found = pod.run("ls", f"/volume/{path}").split()
    assert "adapter_model.safetensors" in found
    history = [json.loads(line) for line in lines]
    steps = [line["step"] for line in history]
    assert steps == sorted(steps), "no step was done again"
    assert set(steps) - {0} == set(range(1, status["progress"]["totalSteps"] + 1)), "and none was left out"
    assert all(math.isfinite(line["loss"]) for line in history if "loss" in line)


def _assert_no_pod_trains(team: Team, job: str) -> None:
    phases = {pod["status"]["phase"] for pod in json_of(team.kubectl, "pods", "--selector", _training(job))["items"]}
    assert phases <= {"Succeeded", "Failed"}


def _training(job: str) -> str:
    return f"{names.JOB_LABEL}={job},{names.COMPONENT_LABEL}={names.TRAIN}"


def _assert_its_output_alone_is_left_by(end: Callable[[], None], team: Team, job: str) -> None:
    selector = f"{names.JOB_LABEL}={job}"
    assert json_of(team.kubectl, CHILDREN, "--selector", selector)["items"]
    end()
    team.kubectl.run("wait", "--for=delete", CHILDREN, "--selector", selector, GONE)
    assert json_of(team.kubectl, CHILDREN, "--selector", selector)["items"] == []
    claims = json_of(team.kubectl, "persistentvolumeclaims", "--selector", selector)["items"]
    assert [claim["metadata"]["name"] for claim in claims] == [names.output_claim(job)]
