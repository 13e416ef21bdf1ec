"""One training over several pods, which find each other by name and live and die together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from finetune_operator.core import names
from team import KILL, Team, has_saved
from tiny_jobs import long_job


@pytest.fixture(scope="module")
def team(make_team: Callable[[str], Team]) -> Team:
    """With a job on two nodes, one process each, by gloo."""
    team = make_team("e2e-nodes")
    team.start(
        long_job(
            "pair",
            steps=300,
            distributed={"nodes": 2, "gpusPerNode": 0, "strategy": "ddp"},
            output__claim__accessMode="ReadWriteMany",
        )
    )
    return team


def test_when_one_pod_is_killed_all_start_again_from_the_checkpoint(team: Team) -> None:
    saved = team.until("pair", has_saved, "running with a checkpoint")
    first, second = sorted(team.pods("pair", names.TRAIN))
    assert saved["acceleration"]["devices"] == 2
    team.kubectl.run("delete", "pod", second, *KILL)
    status = team.until_phase("pair", "Succeeded")
    assert status["attempt"] == 2
    assert status["progress"]["step"] == status["progress"]["totalSteps"] == 300
    again = sorted(name for name in team.pods("pair", names.TRAIN) if "-train-2-" in name)
    assert len(again) == 2
    assert first not in again
    assert "going on from checkpoint-" in team.log(again[0])
    assert team.events("pair", until="Succeeded").count("Retrying") == 1
