"""The chart installed on the embedded cluster for the length of the e2e tier, and nothing of it left afterwards."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chart import CHART, ROOT, Body, HelmError, helm
from finetune_cli.kubectl import Kubectl, KubectlError
from team import RESTRICTED

RELEASE, NAMESPACE = "e2e", "finetune-e2e"
DEPLOYMENT = f"{RELEASE}-finetune-operator"
OURS = {"finetune.dev/e2e": "true"}
"""Label of the namespaces that the tier makes."""
PROFILE = "e2e"
INSTALL_SECONDS = 90
GONE_SECONDS = 180
PULL_SECONDS = 900

PROFILE_SPEC: Body = {
    # Requests, not limits: many small jobs share two cores.
    "prepare": {"cpu": "20m", "memory": "2Gi"},
    "storage": {"cache": {"size": "1Gi"}},
}


@dataclass(frozen=True)
class Images:
    """References in the cluster's registry."""

    operator: str
    trainer: str


def build_images() -> Images:
    """Build and push what is not there yet."""
    return Images(*(_last_line([str(ROOT / "hack/images/build"), name]) for name in ("operator", "trainer")))


def cluster_up() -> Path:
    """Start the embedded cluster where it does not run; gives its kubeconfig."""
    return Path(_last_line([str(ROOT / "hack/cluster/cluster"), "up"]))


def _last_line(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}:\n{result.stdout}{result.stderr}"
    return result.stdout.splitlines()[-1]


def pull(kubectl: Kubectl, image: str) -> None:
    """Have the node fetch ``image``, gigabytes perhaps, before any test counts seconds."""
    container: Body = {
        "name": "pull",
        "image": image,
        "command": ["true"],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"restartPolicy": "Never", "containers": [container], "securityContext": security}
    metadata = {"name": "pull", "namespace": NAMESPACE}
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    done = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl.run("wait", done, "--namespace", NAMESPACE, "pod/pull", f"--timeout={PULL_SECONDS}s")
    kubectl.run("delete", "pod", "--namespace", NAMESPACE, "pull", "--wait=false")


def chart_values(images: Images) -> Body:
    """Values of the release: short waits, and a small default for prepare pods."""
    operator, trainer = (
        dict(zip(("repository", "tag"), _split(image), strict=True)) for image in vars(images).values()
    )
    return {
        "image": operator,
        "trainer": {"image": trainer},
        "crds": {"keep": False},
        "settings": {
            "progressIntervalSeconds": 1,
            "backoffBaseSeconds": 1,
            "startGraceSeconds": 10,
            "imagePullGraceSeconds": 20,
            "resyncSeconds": 60,
        },
        "profile": {"enabled": True, "name": PROFILE, "spec": PROFILE_SPEC},
    }


def _split(reference: str) -> tuple[str, str]:
    repository, _, tag = reference.rpartition(":")
    return repository, tag


@contextlib.contextmanager
def installed_chart(kubectl: Kubectl, values: Body) -> Iterator[None]:
    """Install the chart, and uninstall it whatever happens. Another operator of ours, such as the demo's, rests for
    the time: two would both take up every job."""
    helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait")  # of an interrupted run
    _delete_namespaces(kubectl)
    with _others_resting(kubectl):
        if _crds_exist(kubectl):  # another release's: they stay its own, but are of this checkout while we test
            kubectl.run("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds"))
            values = values | {"crds": {"enabled": False}}
        kubectl.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED | OURS}}
        )
        try:
            _install(kubectl, values)
            yield
        finally:
            _delete_namespaces(kubectl, but=NAMESPACE)
            helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait")
            _delete_namespaces(kubectl)
            if _crds_exist(kubectl):
                kubectl.run("delete", "trainingprofile", PROFILE, "--ignore-not-found")


def _install(kubectl: Kubectl, values: Body) -> None:
    command = ("install", RELEASE, str(CHART), "--namespace", NAMESPACE, "--wait", "--timeout", f"{INSTALL_SECONDS}s")
    try:
        helm(*command, values=values)
    except HelmError as error:
        pods = kubectl.run("describe", "pods", "--namespace", NAMESPACE)
        raise AssertionError(f"{error}\n{pods}\n{operator_told(kubectl)}") from error


def _delete_namespaces(kubectl: Kubectl, but: str = "") -> None:
    selector = ",".join(f"{key}={value}" for key, value in OURS.items())
    found = [body["metadata"]["name"] for body in kubectl.items("namespaces", "--selector", selector)]
    doomed = [name for name in found if name != but]
    if doomed:
        kubectl.run("delete", "namespace", *doomed, f"--timeout={GONE_SECONDS}s")


def _crds_exist(kubectl: Kubectl) -> bool:
    return any(crd["spec"]["group"] == "finetune.dev" for crd in kubectl.items("customresourcedefinitions"))


@contextlib.contextmanager
def _others_resting(kubectl: Kubectl) -> Iterator[None]:
    selector = "app.kubernetes.io/name=finetune-operator"
    found = kubectl.items("deployments", "--all-namespaces", "--selector", selector)
    others = [(body["metadata"]["namespace"], body["metadata"]["name"], body["spec"]["replicas"]) for body in found]
    try:
        for namespace, name, _ in others:
            _scale(kubectl, namespace, name, 0)
        yield
    finally:
        for namespace, name, replicas in others:
            _scale(kubectl, namespace, name, replicas)


def _scale(kubectl: Kubectl, namespace: str, name: str, replicas: int) -> None:
    kubectl.run("scale", "--namespace", namespace, f"deployment/{name}", f"--replicas={replicas}")


def operator_told(kubectl: Kubectl) -> str:
    """The end of the log of each replica; why there is none where that is so, since what asks explains another
    failure."""
    selector = f"app.kubernetes.io/instance={RELEASE}"
    try:
        return kubectl.run("logs", "--namespace", NAMESPACE, "--selector", selector, "--prefix", "--tail=100")
    except KubectlError as error:
        return str(error)


def metrics(kubectl: Kubectl) -> str:
    """What the operator's metrics port answers, through the API server."""
    return kubectl.run("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/services/{DEPLOYMENT}:metrics/proxy/metrics")


def json_of(kubectl: Kubectl, *arguments: str) -> Any:
    """``kubectl get … -o json``."""
    return json.loads(kubectl.run("get", *arguments, "-o", "json"))
