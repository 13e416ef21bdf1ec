"""What goes wrong in training, made for real: reason, rank, exit code, log and advice where people look.

More of it, and what takes longer, is in tests/faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from failing_jobs import Failing, assert_told
from faulty_pods import profiles
from finetune_api.failures import FailureReason
from finetune_cli.kubectl import Kubectl
from finetune_operator.core import names
from team import Team, condition
from tiny_jobs import tiny_job

CASES = (
    Failing(
        "out-of-memory",
        {"resources__memory": "150Mi"},
        FailureReason.OOM_KILLED,
        137,
        ("memory limit of 150Mi", "Raise spec.resources.memory"),
    ),
    Failing(
        "fills-its-volume",
        {
            "output__claim": {"size": "2Mi", "storageClassName": "finetune-limited"},
            "output__checkpoint": {"everySteps": 1, "keep": 100},
            "hyperparameters__maxSteps": 60,
        },
        FailureReason.VOLUME_FULL,
        20,
        ("output volume is full", "Enlarge the claim"),
        log="checkpoint of step 1",
    ),
    Failing(
        "no-such-image",
        {"scheduling__profile": "e2e-no-image"},
        FailureReason.IMAGE_PULL_FAILED,
        None,
        ("127.0.0.1:5055/nothing:1 cannot be pulled", "image.repository in the TrainingProfile"),
    ),
)


@pytest.fixture(scope="module")
def without_image(kubectl: Kubectl, operator: None) -> Iterator[None]:
    """A profile whose image is not there."""
    with profiles(kubectl, e2e_no_image={"image": {"repository": "127.0.0.1:5055/nothing:1"}}):
        yield


@pytest.fixture(scope="module")
def team(make_team: Callable[[str], Team], without_image: None) -> Team:
    """All of them, started at once."""
    team = make_team("e2e-failures")
    for case in CASES:
        team.start(case.manifest())
    team.start(tiny_job("no-gpu", distributed={"gpusPerNode": 1}))
    return team


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_told_where_people_look(team: Team, case: Failing, kubectl: Kubectl) -> None:
    assert_told(team, case, kubectl)


def test_a_gpu_that_no_node_has_is_waited_for_and_said(team: Team) -> None:
    """Nodes can be added: the job queues, and says what it lacks."""
    status = team.until("no-gpu", _lacks_a_node, "told that no node fits")
    assert status["phase"] == "Queued"
    assert "Insufficient nvidia.com/gpu" in condition(status, "Ready")["message"]
    assert team.train_jobs("no-gpu") == [names.train_job("no-gpu", 1)]


def _lacks_a_node(status: dict[str, Any]) -> bool:
    return condition(status, "Ready").get("reason") == "Unschedulable"
