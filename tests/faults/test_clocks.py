"""An operator whose clock is five minutes off: it does not take what another one holds, and wrongs no job."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from another_clock import minutes_ahead
from finetune_cli.kubectl import Kubectl
from finetune_operator.core import names
from finetune_operator.core.times import parse
from installed import DEPLOYMENT, NAMESPACE, Images
from kubernetes import client
from operator_process import running_operator
from replicas import Replicas
from team import KILL, Team, has_saved
from tiny_jobs import long_job

STEPS = 600
LOOKED_AT_SECONDS = 25
"""More than twice as long as the Lease is good for."""
NEAR = timedelta(seconds=30)
pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def team(make_team: Callable[[str], Team]) -> Team:
    return make_team("faults-clocks")


@pytest.fixture(scope="module")
def replicas(operator: None, api: client.ApiClient, kubectl: Kubectl) -> Replicas:
    return Replicas(api, kubectl)


@pytest.mark.parametrize("minutes", [5, -5], ids=["ahead", "behind"])
def test_an_operator_with_a_wrong_clock(
    team: Team, replicas: Replicas, kubeconfig: Path, images: Images, minutes: int
) -> None:
    """It runs on the node itself, as a candidate beside the release's own, until that is scaled to nothing."""
    job = f"skewed-{'ahead' if minutes > 0 else 'behind'}"
    host = urlsplit(yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]).hostname
    settings = {
        "lease": DEPLOYMENT,
        "pod_name": "skewed",
        "tls_secret": f"skewed-{job}-tls",
        "progress_host": str(host),
        "backoff_base_seconds": "1",
        "trainer_image": images.trainer,
    }
    holder = replicas.acting(LOOKED_AT_SECONDS)
    with running_operator(kubeconfig, NAMESPACE, clock=minutes_ahead(minutes), **settings) as operator:
        operator.wait_for(f"standing by: {holder} acts")
        with pytest.raises(AssertionError, match=f"the holder is '{holder}'"):
            replicas.until(lambda name: name == "skewed", LOOKED_AT_SECONDS)
        with replicas.of(0):
            operator.wait_for("ready: all namespaces")
            begun = datetime.now(UTC)
            team.start(long_job(job, STEPS, runPolicy__activeDeadlineSeconds=240, runPolicy__stallTimeoutSeconds=120))
            team.until(job, has_saved, "running with a checkpoint")
            (pod,) = team.pods(job, names.TRAIN)
            team.kubectl.run("delete", "pod", pod, *KILL)
            status = team.until_phase(job, "Succeeded")
    assert any("off the API server's, which counts" in line for line in operator.log)
    assert (status["attempt"], status["disruptions"], "failedAttempts" in status) == (2, 1, False)
    assert team.train_jobs(job) == [names.train_job(job, attempt) for attempt in (1, 2)]
    for told in (status["startTime"], status["completionTime"], status["progress"]["updatedAt"]):
        moment = parse(told)
        assert moment is not None
        assert begun - NEAR < moment < datetime.now(UTC) + NEAR
    assert status["runningSeconds"] < (datetime.now(UTC) - begun).total_seconds()
