"""Things that die or are taken away in the middle of a run."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from finetune_cli.kubectl import Kubectl
from finetune_operator.core import names
from installed import DEPLOYMENT, NAMESPACE, RELEASE, json_of
from team import CHILDREN, KILL, Team, has_saved
from tiny_jobs import long_job


@dataclass(frozen=True)
class Disturbed:
    """The namespace, and the jobs' statuses just before each was disturbed."""

    team: Team
    before: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def disturbed(make_team: Callable[[str], Team], kubectl: Kubectl) -> Disturbed:
    """Three jobs train side by side; each is disturbed as soon as it has saved a checkpoint, the operator last, so
    that its next pod finds the others in the midst of what befell them."""
    team = make_team("e2e-faults")
    for name in ("killed", "deleted", "orphaned"):
        team.start(long_job(name))
    before = {"killed": team.until("killed", has_saved, "running with a checkpoint")}
    (pod,) = team.pods("killed", names.TRAIN)
    team.kubectl.run("delete", "pod", pod, *KILL)
    before["deleted"] = team.until("deleted", has_saved, "running with a checkpoint")
    assert json_of(team.kubectl, CHILDREN, "--selector", f"{names.JOB_LABEL}=deleted")["items"]
    team.kubectl.run("delete", "ftj", "deleted", "--timeout=60s")
    before["orphaned"] = team.until("orphaned", has_saved, "running with a checkpoint")
    team.events("killed", until="Retrying")  # which an operator that dies between status and event cannot tell
    selector = f"app.kubernetes.io/instance={RELEASE}"
    kubectl.run("delete", "pod", "--namespace", NAMESPACE, "--selector", selector, *KILL)
    kubectl.run("rollout", "status", "--namespace", NAMESPACE, f"deployment/{DEPLOYMENT}", "--timeout=120s")
    return Disturbed(team, before)


def test_a_job_outlives_the_operators_pod(disturbed: Disturbed) -> None:
    """It trains on, and the next pod takes up what it says; nothing is started twice."""
    team = disturbed.team
    step = disturbed.before["orphaned"]["progress"]["step"]
    team.until("orphaned", lambda status: status["progress"]["step"] > step, "told of by the new operator")
    status = team.until_phase("orphaned", "Succeeded")
    assert status["attempt"] == 1
    assert team.train_jobs("orphaned") == [names.train_job("orphaned", 1)]


def test_a_job_whose_pod_was_killed_goes_on_from_its_checkpoint(disturbed: Disturbed) -> None:
    team = disturbed.team
    status = team.until_phase("killed", "Succeeded")
    assert status["attempt"] == 2
    assert "failure" not in status
    assert status["progress"]["step"] == status["progress"]["totalSteps"]
    (again,) = [name for name in team.pods("killed", names.TRAIN) if "-train-2-" in name]
    (resumed,) = re.findall(r"going on from checkpoint-(\d+)", team.log(again))
    assert int(resumed) >= disturbed.before["killed"]["checkpoint"]["step"]
    assert "Retrying" in team.events("killed", until="Succeeded")
    _assert_steps_go_on_from(int(resumed), team, status)


def _assert_steps_go_on_from(resumed: int, team: Team, status: dict[str, Any]) -> None:
    """What the attempts wrote down: where the steps fall back, they fall back to the checkpoint, not to the start."""
    path = status["output"]["uri"].removeprefix("pvc://").partition("/")[2].rpartition("/")[0]
    with team.files(names.output_claim("killed"), read_only=True) as pod:
        lines = pod.run("cat", f"/volume/{path}/progress.jsonl").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    fell_back = [now for before, now in itertools.pairwise(steps) if now < before]
    assert all(step >= resumed for step in fell_back)
    assert len(fell_back) <= 1
    assert steps[-1] == status["progress"]["totalSteps"]


def test_of_a_deleted_job_nothing_runs_on(disturbed: Disturbed) -> None:
    """Nor does anything lie about, but the claim with what it saved."""
    kubectl, selector = disturbed.team.kubectl, f"{names.JOB_LABEL}=deleted"
    kubectl.run("wait", "--for=delete", CHILDREN, "--selector", selector, "--timeout=90s")
    assert json_of(kubectl, CHILDREN, "--selector", selector)["items"] == []
    claims = json_of(kubectl, "persistentvolumeclaims", "--selector", selector)["items"]
    assert [claim["metadata"]["name"] for claim in claims] == [names.output_claim("deleted")]
