"""Jobs outlive what befalls the operator, the API server, etcd and the way between them.

Afterwards there is one training Job for each attempt, the status has all that it had, and the job has succeeded.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from control_plane import connections_reset, without
from finetune_cli.kubectl import Kubectl
from finetune_operator.core import names
from finetune_operator.core.times import parse
from installed import NAMESPACE
from kubernetes import client
from replicas import Replicas
from team import Team, condition, has_saved
from tiny_jobs import long_job, tiny_job

KILLS = 20
AWAY_SECONDS = 60
ACTS_AGAIN_WITHIN = 20
"""Seconds, once pods reach the API server."""
ACTS_WHILE_KILLED_WITHIN = 60
"""Seconds where the other replica may have been killed as well, and both start again on two busy cores."""
REACHED_WITHIN = 40
"""Seconds until they do after it is back: kube-proxy waits for up to half a minute before it asks anew."""
PATIENCE = 600
logger = logging.getLogger(__name__)
pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Scene:
    """Two replicas of the operator, a namespace, and how fast the tiny model trains here."""

    replicas: Replicas
    team: Team
    steps_per_second: float

    def start(self, name: str, seconds: float, **edits: Any) -> str:
        """Start a job that trains for about ``seconds``, start and end of Python aside."""
        return self.team.start(long_job(name, steps=max(100, int(seconds * self.steps_per_second)), **edits))


@pytest.fixture(scope="module")
def scene(make_team: Callable[[str], Team], operator: None, api: client.ApiClient, kubectl: Kubectl) -> Iterator[Scene]:
    """The pace is taken of a job that is then deleted."""
    replicas = Replicas(api, kubectl)
    with replicas.of(2):
        team = make_team("faults-control-plane")
        team.start(long_job("pace", steps=1_000_000))
        first = team.until("pace", has_saved, "running with a checkpoint")["progress"]
        last = team.until("pace", lambda status: _seconds(first, status["progress"]) >= 5, "running on")["progress"]
        team.kubectl.run("delete", "ftj", "pace", "--timeout=120s")
        pace = (last["step"] - first["step"]) / _seconds(first, last)
        logger.info("%.0f steps a second", pace)
        yield Scene(replicas, team, pace)


def _seconds(before: dict[str, Any], after: dict[str, Any]) -> float:
    earlier, later = parse(before["updatedAt"]), parse(after["updatedAt"])
    assert earlier is not None
    assert later is not None
    return (later - earlier).total_seconds()


def assert_one_whole_life(team: Team, job: str, *, attempts: int = 1) -> dict[str, Any]:
    """Gives the status."""
    status = team.until_phase(job, "Succeeded", PATIENCE)
    assert status["attempt"] == attempts
    assert team.train_jobs(job) == [names.train_job(job, number + 1) for number in range(attempts)]
    assert status["progress"]["step"] == status["progress"]["totalSteps"]
    assert status["checkpoint"]["step"] == status["progress"]["totalSteps"]
    assert status["dataset"]["samples"] > 0
    assert status["model"]["parameters"] > 0
    assert status["output"]["uri"].startswith(f"pvc://{names.output_claim(job)}/")
    assert "failure" not in status
    for kind in ("Accepted", "Prepared", "Complete", "Ready"):
        assert condition(status, kind)["status"] == "True", kind
    return status


def test_the_operator_is_killed_twenty_times(scene: Scene) -> None:
    """From the first moment of the job on: every other time the replica that acts, else either of the two."""
    seed = int(os.environ.get("FINETUNE_FAULTS_SEED") or random.SystemRandom().randrange(2**32))
    chance = random.Random(seed)  # noqa: S311 - to be repeated, not secret
    logger.info("FINETUNE_FAULTS_SEED=%d", seed)
    replicas, team = scene.replicas, scene.team
    before = replicas.lease().spec.lease_transitions
    scene.start("killed", seconds=240)
    for number in range(KILLS):
        # The moment is the test: in the time until another acts, or when it has just begun to, or long after.
        if number % 2:
            time.sleep(chance.uniform(0, 10))
            victim = replicas.kill_any(chance)
        else:
            replicas.acting(ACTS_WHILE_KILLED_WITHIN)
            time.sleep(chance.uniform(0, 5))
            victim = replicas.acting(ACTS_WHILE_KILLED_WITHIN)
            replicas.kill(victim, with_its_pod=True)
        logger.info("%d: killed %s, %s", number + 1, victim, (team.read("killed").get("status") or {}).get("phase"))
    assert team.read("killed")["status"]["phase"] == "Running", f"it did not last for all kills (seed {seed})"
    replicas.acting(ACTS_WHILE_KILLED_WITHIN)
    assert replicas.lease().spec.lease_transitions - before >= KILLS // 2, f"another takes the place (seed {seed})"
    assert_one_whole_life(team, "killed")


def test_a_process_that_is_killed_starts_again_in_its_pod(scene: Scene) -> None:
    """And acts, or the other one does: whichever is quicker."""
    replicas, team = scene.replicas, scene.team
    killed = replicas.kill(replicas.acting(ACTS_AGAIN_WITHIN))
    team.start(tiny_job("in-the-gap", runPolicy__suspend=True))
    team.until("in-the-gap", lambda status: status.get("phase") == "Suspended", "taken up")
    took = time.monotonic() - killed
    logger.info("acts again %.1f s after the kill: %s", took, replicas.leader())
    assert took <= ACTS_AGAIN_WITHIN


def test_the_api_server_is_away_for_a_minute(scene: Scene) -> None:
    """While one job trains, and another one's training ends."""
    replicas, team = scene.replicas, scene.team
    scene.start("trains-on", seconds=100)
    scene.start("ends-meanwhile", seconds=20)
    before = {
        name: team.until(name, has_saved, "running with a checkpoint") for name in ("trains-on", "ends-meanwhile")
    }
    with without("kube-apiserver", kill=True):
        time.sleep(AWAY_SECONDS)
    back = time.monotonic()
    old = before["trains-on"]["progress"]
    after = team.until("trains-on", lambda status: _seconds(old, status["progress"]) > AWAY_SECONDS, "told of again")
    took = time.monotonic() - back
    logger.info("told of again %.0f s after the API server was back, by %s", took, replicas.leader())
    assert took < REACHED_WITHIN + ACTS_AGAIN_WITHIN
    assert after["progress"]["step"] > old["step"]
    assert_one_whole_life(team, "ends-meanwhile")
    assert_one_whole_life(team, "trains-on")


def test_etcd_is_killed_and_starts_again(scene: Scene) -> None:
    team = scene.team
    scene.start("outlives-etcd", seconds=40)
    team.until("outlives-etcd", has_saved, "running with a checkpoint")
    with without("etcd", kill=True):
        time.sleep(5)
    with without("etcd"):
        pass
    team.start(tiny_job("after-etcd"))
    assert_one_whole_life(team, "outlives-etcd")
    assert_one_whole_life(team, "after-etcd")


def test_the_watches_are_cut(scene: Scene, api: client.ApiClient, kubectl: Kubectl) -> None:
    """For less than the Lease is good for: the same process goes on, and hears of all that happens."""
    replicas, team = scene.replicas, scene.team
    leader = replicas.acting(ACTS_AGAIN_WITHIN)
    core = client.CoreV1Api(api)
    before = core.read_namespaced_pod(leader, NAMESPACE).status
    scene.start("heard-of", seconds=20)
    team.until("heard-of", has_saved, "running with a checkpoint")
    for _ in range(3):
        with connections_reset(kubectl, before.pod_ip):
            time.sleep(2)
    team.start(tiny_job("made-meanwhile"))
    begun = time.monotonic()
    team.until("made-meanwhile", lambda status: bool(status.get("phase")), "taken up")
    assert time.monotonic() - begun < ACTS_AGAIN_WITHIN, "by a watch, and not by the resync"
    assert_one_whole_life(team, "heard-of")
    assert_one_whole_life(team, "made-meanwhile")
    assert replicas.leader() == leader
    after = core.read_namespaced_pod(leader, NAMESPACE).status
    assert after.container_statuses[0].restart_count == before.container_statuses[0].restart_count


def test_somebody_else_writes_all_the_time(scene: Scene) -> None:
    """So that most of the operator's writes are refused as conflicts."""
    team = scene.team
    scene.start("contended", seconds=15)
    ended = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        while not ended.is_set():
            written += 1
            team.annotate("contended", {"example.com/count": str(written)})

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        assert_one_whole_life(team, "contended")
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    logger.info("%d writes by others", written)
    assert int(team.read("contended")["metadata"]["annotations"]["example.com/count"]) > 100
    events = team.events("contended", until="Succeeded")
    assert events.count("Succeeded") == 1


def test_children_are_edited_and_deleted_by_hand(scene: Scene) -> None:
    """Its ConfigMap and Service go, its Job is stopped and started as a queue does, and then deleted."""
    team = scene.team
    kubectl, job = team.kubectl, names.train_job("meddled", 1)
    scene.start("meddled", seconds=100)  # so that it is still training when the control plane deletes its pod at last
    saved = team.until("meddled", has_saved, "running with a checkpoint")
    kubectl.run("delete", "configmaps,services", "--selector", f"{names.JOB_LABEL}=meddled")
    kubectl.run("delete", "configmap", names.CA_CONFIG_MAP)
    for suspended in ("true", "false"):
        kubectl.run("patch", "job", job, "--type=merge", "--patch", f'{{"spec": {{"suspend": {suspended}}}}}')
        gone = f"{names.JOB_LABEL}=meddled,{names.COMPONENT_LABEL}={names.TRAIN}"
        if suspended == "true":
            kubectl.run("wait", "--for=delete", "pods", "--selector", gone, "--timeout=90s")
    step = saved["progress"]["step"]
    team.until("meddled", lambda status: status["progress"]["step"] > step + 200, "going on in a new pod", PATIENCE)
    kubectl.run("delete", "job", job, "--wait=false")
    status = team.until_phase("meddled", "Succeeded", PATIENCE)
    assert (status["attempt"], status["disruptions"], "failedAttempts" in status) == (2, 1, False)
    assert team.train_jobs("meddled") == [names.train_job("meddled", 2)]
    (pod,) = team.pods("meddled", names.TRAIN)
    assert "going on from checkpoint-" in team.log(pod)
    assert status["progress"]["step"] == status["progress"]["totalSteps"]
