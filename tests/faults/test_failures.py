"""What takes minutes to go wrong, or a fault in the pod itself: errors of the trainer's, a full disk, a lost node, a
rank that its peers give up, a pod that must make way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from failing_jobs import Failing, assert_told
from faulty_pods import profiles, send_broken_model, send_faults, with_fault
from finetune_api.failures import FailureReason
from finetune_cli.kubectl import Kubectl
from finetune_operator.core import names
from kubernetes import client
from team import Team, condition, has_saved
from tiny_jobs import long_job, tiny_job
from witness_node import witness_node

FAILING = (
    Failing(
        "out-of-gpu-memory",
        {"scheduling__profile": "faults-cuda"},
        FailureReason.CUDA_OUT_OF_MEMORY,
        22,
        ("the GPU is out of memory after step 1", "hyperparameters.microBatchSize", "Set acceleration."),
        log="step 1/6",
    ),
    Failing(
        "crashes",
        {"scheduling__profile": "faults-crash"},
        FailureReason.TRAINER_CRASH,
        1,
        ("RuntimeError: the test makes this step fail", "Read the log's last lines in status.failure.logTail"),
        log="the test makes this step fail",
    ),
    Failing(
        "diverges",
        {"model__source": "pvc://model/broken"},
        FailureReason.NON_FINITE_LOSS,
        23,
        ("the loss of step 1 is nan", "The step held rows", "Look at these, lower hyperparameters.learningRate"),
        log="training diverged",
    ),
)
PATIENCE = 420
"""Seconds: a kubelet measures volumes once a minute, and a node is given up after about one."""


@pytest.fixture(scope="module")
def team(
    make_team: Callable[[str], Team],
    operator: None,
    kubectl: Kubectl,
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Team]:
    """A namespace whose pods may fill 200 MiB of their node's disk."""
    with profiles(kubectl, **{f"faults_{name}": with_fault(name) for name in ("cuda", "crash", "hang")}):
        team = make_team("e2e-faults-failures")
        limit = {"type": "Container", "default": {"ephemeral-storage": "200Mi"}}
        team.core.create_namespaced_limit_range(team.name, {"metadata": {"name": "disk"}, "spec": {"limits": [limit]}})
        send_faults(team)
        send_broken_model(team, model, tmp_path_factory.mktemp("broken") / "model")
        yield team


@pytest.fixture(scope="module")
def failing(team: Team) -> Team:
    """Jobs that fail by themselves, side by side."""
    for case in FAILING:
        team.start(case.manifest())
    return team


@pytest.mark.parametrize("case", FAILING, ids=lambda case: case.name)
def test_is_told_where_people_look(failing: Team, case: Failing, kubectl: Kubectl) -> None:
    assert_told(failing, case, kubectl)


def test_a_pod_that_fills_its_nodes_disk_is_evicted_and_goes_on(team: Team) -> None:
    team.start(long_job("fills-the-disk", 4000))
    team.until("fills-the-disk", has_saved, "running with a checkpoint")
    (pod,) = team.pods("fills-the-disk", names.TRAIN)
    team.kubectl.run("exec", pod, "--", "sh", "-c", "head -c 300000000 /dev/zero > /tmp/filler")
    status = team.until("fills-the-disk", _has_failed, "told of the eviction", PATIENCE)
    assert status["failure"]["reason"] == "Evicted"
    assert "ephemeral" in status["failure"]["message"]
    _goes_on(team, "fills-the-disk", status)
    team.kubectl.run("delete", "ftj", "fills-the-disk", "--timeout=90s")


def test_a_rank_that_the_others_wait_for_in_vain_is_told_as_a_time_out(team: Team) -> None:
    two = {"nodes": 2, "gpusPerNode": 0, "strategy": "ddp"}
    settings: dict[str, Any] = {
        "distributed": two,
        "output__claim__accessMode": "ReadWriteMany",
        "scheduling__profile": "faults-hang",
        "resources__cpu": "500m",
        "runPolicy": {"backoffLimit": 0, "checkpointOnTerminationSeconds": 0},
    }
    team.start(tiny_job("given-up", **settings))
    status = team.until_phase("given-up", "Failed", PATIENCE)
    failure = status["failure"]
    assert (failure["reason"], failure["exitCode"], failure["rank"]) == ("NCCLTimeout", 24, 0)
    assert "another process of the training ended or fell silent" in failure["message"]
    assert "step 3/6" in failure["logTail"]


def test_a_pod_that_makes_way_for_one_of_higher_priority_goes_on_afterwards(team: Team, priority: str) -> None:
    team.start(long_job("makes-way", 400, resources__cpu="1100m"))
    team.until("makes-way", has_saved, "running with a checkpoint")
    core, pod = team.core, _urgent_pod(priority, _image_of(team, "makes-way"))
    core.create_namespaced_pod(team.name, pod)
    status = team.until("makes-way", _has_failed, "told that it made way", PATIENCE)
    assert status["failure"]["reason"] == "Preempted"
    team.kubectl.run("wait", "--for=condition=Ready", "pod/urgent", "--timeout=120s")
    core.delete_namespaced_pod("urgent", team.name)
    done = team.until_phase("makes-way", "Succeeded", PATIENCE)
    assert (done["attempt"], done["disruptions"], "failedAttempts" in done) == (2, 1, False)


def test_a_node_that_is_lost_is_named_and_the_job_goes_on_when_it_is_back(
    team: Team, api: client.ApiClient, kubeconfig: Path
) -> None:
    """Nothing new starts while the pod on it may still write; then the next attempt goes on."""
    soon = {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute"}
    settings: dict[str, Any] = {
        "scheduling__tolerations": [soon | {"tolerationSeconds": 5}],
        "runPolicy": {"backoffLimit": 0, "checkpointOnTerminationSeconds": 0},
    }
    team.start(long_job("on-a-lost-node", 20000, **settings))
    team.until("on-a-lost-node", has_saved, "running with a checkpoint")
    with witness_node(api), _kubelet_stopped(kubeconfig):
        ending = team.until("on-a-lost-node", _is("PodStuck"), "told that a pod does not end", PATIENCE)
        assert ending["phase"] == "Running"
        assert "finetune-node does not confirm it" in condition(ending, "Ready")["message"]
        assert team.train_jobs("on-a-lost-node") == [names.train_job("on-a-lost-node", 1)]
    status = team.until("on-a-lost-node", _has_failed, "told of the lost node", PATIENCE)
    assert status["failure"]["reason"] == "NodeLost"
    _goes_on(team, "on-a-lost-node", status)
    team.kubectl.run("delete", "ftj", "on-a-lost-node", "--timeout=90s")


def _goes_on(team: Team, job: str, status: dict[str, Any]) -> None:
    """The next attempt starts from the checkpoint, and what ended the last one counts against nothing."""
    step = status["checkpoint"]["step"]
    again = team.until(job, lambda now: (now["phase"], now["attempt"]) == ("Running", 2), "in its second attempt")
    assert (again["disruptions"], "failedAttempts" in again) == (1, False)
    (pod,) = [pod for pod in team.pods(job, names.TRAIN) if "-train-2-" in pod]
    team.until(job, lambda now: now["progress"]["step"] > step, "further than its checkpoint")
    assert "going on from checkpoint-" in team.log(pod)


def _has_failed(status: dict[str, Any]) -> bool:
    return status.get("failure") is not None


def _is(reason: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: condition(status, "Ready").get("reason") == reason


def _image_of(team: Team, job: str) -> str:
    (pod,) = team.pods(job, names.TRAIN)
    image: str = team.core.read_namespaced_pod(pod, team.name).spec.containers[0].image
    return image


def _urgent_pod(priority: str, image: str) -> dict[str, Any]:
    """A pod that the node has no room for beside the job's."""
    container = {
        "name": "sleeps",
        "image": image,
        "command": ["sleep", "3600"],
        "resources": {"requests": {"cpu": "1100m"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {
        "priorityClassName": priority,
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "securityContext": security,
    }
    return {"metadata": {"name": "urgent"}, "spec": spec}


@contextmanager
def _kubelet_stopped(kubeconfig: Path) -> Iterator[None]:
    """The node's kubelet says nothing and hears nothing, as where the node is cut off."""
    process = json.loads((kubeconfig.parent / "run/kubelet.json").read_text())["pid"]
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)
