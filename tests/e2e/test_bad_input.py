"""Jobs that cannot work: each fails in its prepare step or before, says what to change, and never trains."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from failing_jobs import assert_seen
from fake_hub import FakeHub
from finetune_api.failures import EXIT_REASONS
from finetune_cli.kubectl import Kubectl
from installed import PROFILE_SPEC
from kubernetes import client
from team import Team, condition
from tiny_jobs import ROWS, tiny_job

HUB_PROFILE = "e2e-hub"
EXIT_CODES = {reason.value: int(code) for code, reason in EXIT_REASONS.items()}


@dataclass(frozen=True)
class Bad:
    """A job with one thing wrong: the reason that its status gives, and words of the sentence that it says."""

    name: str
    edits: dict[str, Any]
    reason: str
    words: tuple[str, ...]


CASES = (
    Bad(
        "malformed-row",
        {"dataset__sources": [{"uri": "configmap://broken/broken.jsonl"}]},
        "DatasetInvalid",
        ("broken.jsonl:3", "is not JSON"),
    ),
    Bad("no-such-model", {"model__source": "pvc://model/nothing"}, "ModelNotFound", ("pvc://model/nothing",)),
    Bad("nothing-to-learn", {"dataset__maxLength": 8}, "NoSupervisedTokens", ("maxLength",)),
    Bad("no-such-template", {"template__name": "no-such-template"}, "TemplateInvalid", ("no-such-template",)),
    Bad("full-volume", {"output__claim": {"name": "full"}}, "VolumeFull", ("output", "Enlarge the claim")),
    Bad("unwritable-volume", {"output__claim": {"name": "unwritable"}}, "VolumeNotWritable", ("output", "fsGroup")),
    Bad(
        "gated-model",
        {"model__source": "hf://org/gated", "scheduling__profile": HUB_PROFILE},
        "ModelAccessDenied",
        ("org/gated", "spec.model.secretRef"),
    ),
    Bad(
        "no-such-secret",
        {"model__secretRef": {"name": "nowhere"}},
        "SecretNotFound",
        ("Secret nowhere", "spec.model.secretRef"),
    ),
    Bad(
        "no-such-rows",
        {"dataset__sources": [{"uri": "configmap://nowhere/rows.jsonl"}]},
        "ConfigMapNotFound",
        ("ConfigMap nowhere", "spec.dataset.sources[0].uri"),
    ),
    Bad("no-such-claim", {"output__claim": {"name": "nowhere"}}, "VolumeNotBound", ("nowhere", "spec.output.claim")),
    Bad("no-such-profile", {"scheduling__profile": "nowhere"}, "ProfileNotFound", ("nowhere",)),
)


@pytest.fixture(scope="module")
def team(make_team: Callable[[str], Team], unwritable: str, hub: FakeHub) -> Team:
    """All of them, started at once."""
    team = make_team("e2e-bad-input")
    first, second, *rest = ROWS.splitlines(keepends=True)
    team.config_map("broken", broken__jsonl="".join([first, second, '{"instruction": "torn\n', *rest]))
    team.claim("full", size="1Mi", storage_class="finetune-limited")
    with team.files("full") as pod:
        pod.run("sh", "-c", "head -c 2000000 /dev/zero > /volume/filler 2>/dev/null; test -s /volume/filler")
    _claim_of(team, unwritable)
    for case in CASES:
        team.start(tiny_job(case.name, **case.edits))
    return team


@pytest.fixture(scope="module")
def hub(
    operator: None, kubeconfig: Path, kubectl: Kubectl, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeHub]:
    """A hub that pods reach at the node's address, with a gated model, and a profile that leads to it."""
    root = tmp_path_factory.mktemp("hub")
    shutil.copytree(model, root / "models/org/gated")
    server = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    with FakeHub(root, host=urlsplit(server).hostname or "", gated=["org/gated"], token="secret") as hub:
        spec = {**PROFILE_SPEC, "environment": {"HF_ENDPOINT": hub.url}}
        profile = {"apiVersion": "finetune.dev/v1alpha1", "kind": "TrainingProfile", "spec": spec}
        kubectl.apply({**profile, "metadata": {"name": HUB_PROFILE}})
        yield hub
        kubectl.run("delete", "trainingprofile", HUB_PROFILE)


@pytest.fixture(scope="module")
def unwritable(api: client.ApiClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A volume that belongs to root and stays so, as one of a file server that maps users away."""
    directory: Path = tmp_path_factory.mktemp("unwritable")
    directory.chmod(0o755)
    core = client.CoreV1Api(api)
    name = "e2e-unwritable"
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "persistentVolumeReclaimPolicy": "Retain",
        "hostPath": {"path": str(directory), "type": "Directory"},
    }
    core.create_persistent_volume({"metadata": {"name": name}, "spec": spec})
    yield name
    core.delete_persistent_volume(name)


def _claim_of(team: Team, volume: str) -> None:
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "volumeName": volume,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    team.core.create_namespaced_persistent_volume_claim(team.name, {"metadata": {"name": "unwritable"}, "spec": spec})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_is_told_and_never_trains(team: Team, case: Bad, kubectl: Kubectl) -> None:
    status = team.until_phase(case.name, "Failed")
    failure = status["failure"]
    assert failure["reason"] == case.reason, team.told(case.name)
    for words in case.words:
        assert words in failure["message"]
    assert condition(status, "Failed")["reason"] == case.reason
    assert condition(status, "Stalled")["status"] == "True"
    assert condition(status, "Prepared")["status"] == "False"
    assert not status.get("attempt")
    assert team.train_jobs(case.name) == []
    code = EXIT_CODES.get(case.reason)
    assert failure.get("exitCode") == code
    assert bool(failure.get("logTail")) is (code is not None), "where a pod ran, its log's end"
    assert_seen(team, case.name, kubectl, advice=case.words[-1])
