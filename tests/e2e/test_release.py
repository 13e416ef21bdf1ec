"""The release itself: its profile, and what its pod may be."""

from __future__ import annotations

from pathlib import Path

from chart import CHART, helm
from finetune_cli.kubectl import Kubectl
from installed import DEPLOYMENT, NAMESPACE, PROFILE, PROFILE_SPEC, RELEASE, json_of


def test_an_upgrade_changes_the_profile(operator: None, kubectl: Kubectl, kubeconfig: Path) -> None:
    assert "nodeSelector" not in PROFILE_SPEC
    helm(
        "upgrade", RELEASE, str(CHART), "--namespace", NAMESPACE, "--reuse-values", "--wait",
        "--set", "profile.spec.nodeSelector.kubernetes\\.io/os=linux",
        kubeconfig=kubeconfig,
    )  # fmt: skip
    after = json_of(kubectl, "trainingprofile", PROFILE)
    assert after["spec"]["prepare"] == PROFILE_SPEC["prepare"]
    assert after["spec"]["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_the_operators_pod_is_ready_in_a_restricted_namespace(operator: None, kubectl: Kubectl) -> None:
    labels = json_of(kubectl, "namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    deployment = json_of(kubectl, "deployment", DEPLOYMENT, "--namespace", NAMESPACE)
    assert deployment["status"]["readyReplicas"] == 1
