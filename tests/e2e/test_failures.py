"""What goes wrong in training, made for real: reason, rank, exit code, log and advice where people look."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from faulty_pods import profiles, send_broken_model, send_faults, with_fault
from finetune_api.failures import REASONS, FailureReason
from finetune_cli.kubectl import Kubectl
from finetune_operator.core import names
from installed import metrics
from team import Team, condition
from tiny_jobs import tiny_job

QUICK: dict[str, Any] = {"evaluation": {}, "dataset__validation": {}, "resources__cpu": "300m"}
ONCE = {"backoffLimit": 0}


@dataclass(frozen=True)
class Bad:
    """A job with one thing wrong, what its status says of it, and words of its log's end."""

    name: str
    edits: dict[str, Any]
    reason: FailureReason
    exit_code: int | None
    words: tuple[str, ...]
    log: str | None = None


CASES = (
    Bad(
        "out-of-memory",
        {"resources__memory": "150Mi"},
        FailureReason.OOM_KILLED,
        137,
        ("memory limit of 150Mi", "Raise spec.resources.memory"),
    ),
    Bad(
        "out-of-gpu-memory",
        {"scheduling__profile": "e2e-cuda"},
        FailureReason.CUDA_OUT_OF_MEMORY,
        22,
        ("the GPU is out of memory after step 3", "hyperparameters.microBatchSize", "Tried to allocate 2.00 GiB"),
        "step 3/6",
    ),
    Bad(
        "diverges",
        {"model__source": "pvc://model/broken"},
        FailureReason.NON_FINITE_LOSS,
        23,
        ("the loss of step 1 is nan", "The step held rows", "lower hyperparameters.learningRate"),
        "training diverged",
    ),
    Bad(
        "crashes",
        {"scheduling__profile": "e2e-crash"},
        FailureReason.TRAINER_CRASH,
        1,
        ("RuntimeError: the test makes this step fail", "status.failure.logTail"),
        "in goes_wrong",
    ),
    Bad(
        "fills-its-volume",
        {
            "output__claim": {"size": "2Mi", "storageClassName": "finetune-limited"},
            "output__checkpoint": {"everySteps": 1, "keep": 100},
            "hyperparameters__maxSteps": 60,
        },
        FailureReason.VOLUME_FULL,
        20,
        ("output volume is full", "Enlarge the claim"),
        "checkpoint of step 1",
    ),
    Bad(
        "no-such-image",
        {"scheduling__profile": "e2e-no-image"},
        FailureReason.IMAGE_PULL_FAILED,
        None,
        ("127.0.0.1:5055/nothing:1 cannot be pulled", "image.repository in the TrainingProfile"),
    ),
)


@pytest.fixture(scope="module")
def faulty(kubectl: Kubectl, operator: None) -> Iterator[None]:
    """Profiles with a fault each."""
    with profiles(
        kubectl,
        e2e_cuda=with_fault("cuda"),
        e2e_crash=with_fault("crash"),
        e2e_no_image={"image": {"repository": "127.0.0.1:5055/nothing:1"}},
    ):
        yield


@pytest.fixture(scope="module")
def team(make_team: Callable[[str], Team], faulty: None, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """All of them, started at once."""
    team = make_team("e2e-failures")
    send_faults(team)
    send_broken_model(team, model, tmp_path_factory.mktemp("broken") / "model")
    for case in CASES:
        team.start(tiny_job(case.name, **QUICK, **case.edits, runPolicy=ONCE))
    team.start(tiny_job("no-gpu", **QUICK, distributed={"gpusPerNode": 1}))
    return team


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_told_where_people_look(team: Team, case: Bad, kubectl: Kubectl) -> None:
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
    assert "Failed" in team.events(case.name, until="Failed")
    described = team.kubectl.run("describe", "ftj", case.name)
    assert case.reason in described
    assert case.words[-1] in re.sub(r"\s+", " ", described)
    counted = re.search(rf'finetune_failures_total{{reason="{case.reason}"}} (\d+)', metrics(kubectl))
    assert counted is not None
    assert int(counted[1]) >= 1


def test_a_gpu_that_no_node_has_is_waited_for_and_said(team: Team) -> None:
    """Nodes can be added: the job queues, and says what it lacks."""
    status = team.until("no-gpu", _lacks_a_node, "told that no node fits")
    assert status["phase"] == "Queued"
    assert "Insufficient nvidia.com/gpu" in condition(status, "Ready")["message"]
    assert team.train_jobs("no-gpu") == [names.train_job("no-gpu", 1)]


def _lacks_a_node(status: dict[str, Any]) -> bool:
    return condition(status, "Ready").get("reason") == "Unschedulable"
