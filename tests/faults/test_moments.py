"""Moments that few jobs live through: deleted while it prepares, waits for its next attempt, or nobody is there to see
it; its profile edited in mid-run; a pod gone whose part of the optimizer's state nobody else has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from faulty_pods import profiles, send_faults, with_fault
from finetune_cli.kubectl import Kubectl
from finetune_operator.core import names
from installed import DEPLOYMENT, NAMESPACE, PROFILE_SPEC, json_of
from replicas import SELECTOR
from team import CHILDREN, KILL, Team, condition, has_saved
from tiny_jobs import long_job, tiny_job

GONE = "--timeout=120s"
EDITED = "faults-edited"


@pytest.fixture(scope="module")
def team(make_team: Callable[[str], Team], operator: None, kubectl: Kubectl) -> Iterator[Team]:
    """With a profile of its own, and one whose pods crash."""
    with profiles(kubectl, faults_edited={}, faults_moments=with_fault("crash")):
        team = make_team("e2e-faults-moments")
        send_faults(team)
        yield team


def test_of_a_job_that_is_deleted_while_it_prepares_its_output_alone_is_left(team: Team) -> None:
    team.start(long_job("unprepared"))
    team.until("unprepared", lambda _: bool(team.pods("unprepared", names.PREPARE)), "with a pod that prepares")
    _assert_its_output_alone_is_left(team, "unprepared")


def test_of_a_job_that_is_deleted_before_its_next_attempt_its_output_alone_is_left(team: Team) -> None:
    team.start(tiny_job("unlucky", scheduling__profile="faults-moments", runPolicy__backoffLimit=5))
    status = team.until("unlucky", lambda status: status.get("failedAttempts") == 1, "told that it is tried again")
    assert status["phase"] != "Failed"
    _assert_its_output_alone_is_left(team, "unlucky")


def test_of_a_job_that_is_deleted_while_no_operator_runs_its_output_alone_is_left(team: Team, kubectl: Kubectl) -> None:
    team.start(long_job("unseen"))
    team.until("unseen", has_saved, "running with a checkpoint")
    with _no_operator(kubectl):
        _assert_its_output_alone_is_left(team, "unseen")
    team.start(tiny_job("seen"))  # so the operator acts again, and has seen what there is
    team.until_phase("seen", "Succeeded")
    assert _left(team, CHILDREN, "unseen") == []


@contextmanager
def _no_operator(kubectl: Kubectl) -> Iterator[None]:
    """Its Deployment has no pod for the length of the block."""
    scale = ("scale", "--namespace", NAMESPACE, f"deployment/{DEPLOYMENT}")
    kubectl.run(*scale, "--replicas=0")
    try:
        kubectl.run("wait", "--for=delete", "pods", "--namespace", NAMESPACE, "--selector", SELECTOR, GONE)
        yield
    finally:
        kubectl.run(*scale, "--replicas=1")
        kubectl.run("rollout", "status", "--namespace", NAMESPACE, f"deployment/{DEPLOYMENT}", GONE)


def test_an_edited_profile_counts_for_later_jobs_alone(team: Team, kubectl: Kubectl) -> None:
    """What runs keeps the copy that it was accepted with, also in its next attempt."""
    team.start(long_job("earlier", steps=400, scheduling__profile=EDITED))
    team.until("earlier", has_saved, "running with a checkpoint")
    profile = {"apiVersion": "finetune.dev/v1alpha1", "kind": "TrainingProfile", "metadata": {"name": EDITED}}
    kubectl.apply(profile | {"spec": PROFILE_SPEC | {"nodeSelector": {"finetune.dev/nowhere": "true"}}})
    team.edit("earlier", runPolicy={"suspend": True})
    team.until_phase("earlier", "Suspended")
    team.edit("earlier", runPolicy={"suspend": False})
    assert team.until_phase("earlier", "Succeeded")["attempt"] == 2
    team.start(tiny_job("later", scheduling__profile=EDITED))
    team.until("later", _fits_no_node, "told that no node fits")


def _fits_no_node(status: dict[str, Any]) -> bool:
    return "affinity/selector" in condition(status, "Ready").get("message", "")


def test_shards_over_two_pods_go_on_from_their_checkpoint(team: Team) -> None:
    """ZeRO: each process has a part of the optimizer's state, and writes it."""
    two = {"nodes": 2, "gpusPerNode": 0, "strategy": "zero2"}
    team.start(long_job("shards", 200, distributed=two, output__claim__accessMode="ReadWriteMany"))
    saved = team.until("shards", has_saved, "running with a checkpoint", 420)
    assert saved["acceleration"]["devices"] == 2
    team.kubectl.run("delete", "pod", sorted(team.pods("shards", names.TRAIN))[1], *KILL)
    status = team.until_phase("shards", "Succeeded", 420)
    assert (status["attempt"], status["progress"]["step"]) == (2, 200)
    again = next(pod for pod in sorted(team.pods("shards", names.TRAIN)) if "-train-2-0" in pod)
    assert "going on from checkpoint-" in team.log(again)


def _assert_its_output_alone_is_left(team: Team, job: str) -> None:
    team.kubectl.run("delete", "ftj", job, GONE)
    team.kubectl.run("wait", "--for=delete", CHILDREN, "--selector", f"{names.JOB_LABEL}={job}", GONE)
    assert _left(team, CHILDREN, job) == []
    assert _left(team, "persistentvolumeclaims", job) == [names.output_claim(job)]


def _left(team: Team, kinds: str, job: str) -> list[str]:
    items = json_of(team.kubectl, kinds, "--selector", f"{names.JOB_LABEL}={job}")["items"]
    return [item["metadata"]["name"] for item in items]
