"""Kueue itself, built from its Go module and installed by the chart that lies in it, with one queue."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chart import ROOT, Body, helm, program
from finetune_cli.kubectl import Kubectl
from installed import OURS

RELEASE, NAMESPACE = "kueue", "finetune-e2e-kueue"
QUEUE, CLUSTER_QUEUE, FLAVOR = "team", "e2e", "e2e"
API = "kueue.x-k8s.io/v1beta2"
REGISTRY = "127.0.0.1:5055"
_CONFIGURATION = """
apiVersion: config.kueue.x-k8s.io/v1beta2
kind: Configuration
health:
  healthProbeBindAddress: :8081
metrics:
  bindAddress: :8443
webhook:
  port: 9443
leaderElection:
  leaderElect: false
integrations:
  frameworks: [batch/job]
"""
_IMAGE = """
import sys
sys.path[:0] = sys.argv[1:3]
from images import _in_registry, buildah
binary, reference = sys.argv[3:]
if not _in_registry(reference):
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", "--chmod=755", container, binary, "/manager")
    buildah("config", "--user=65532:65532", "--entrypoint", '["/manager"]', container)
    buildah("commit", "--quiet", "--rm", container, reference)
    buildah("push", "--tls-verify=false", reference)
"""


def build() -> tuple[str, Path]:
    """Image and chart; Kueue is compiled where it was not yet, for minutes."""
    done = subprocess.run(
        [str(ROOT / "hack/cluster/cluster"), "build", "kueue"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    directory = Path(program("kueue")).parent
    reference = f"{REGISTRY}/{directory.name.replace('-', ':')}"
    folders = [str(ROOT / "hack/images"), str(ROOT / "hack/cluster")]
    command = [sys.executable, "-c", _IMAGE, *folders, str(directory / "kueue"), reference]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return reference, directory / "chart"


@contextmanager
def installed(kubectl: Kubectl, cpu: str) -> Iterator[None]:
    """Kueue in the cluster with one ClusterQueue that has ``cpu``, where a job of higher priority takes the place of
    one of lower; nothing is left of it."""
    image, chart = build()
    repository, _, tag = image.rpartition(":")
    values: Body = {
        "controllerManager": {
            "manager": {
                "image": {"repository": repository, "tag": tag, "pullPolicy": "IfNotPresent"},
                "resources": {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
            }
        },
        "managerConfig": {"controllerManagerConfigYaml": _CONFIGURATION},
    }
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": OURS}})
    helm("install", RELEASE, str(chart), "--namespace", NAMESPACE, "--wait", "--timeout", "180s", values=values)
    try:
        # The embedded API server hands no request on to another server, and no namespace ends while a group of one
        # that is registered is not known.
        groups = (f"{version}.visibility.kueue.x-k8s.io" for version in ("v1beta1", "v1beta2"))
        kubectl.run("delete", "apiservice", *groups)
        for body in _queues(cpu):
            kubectl.apply(body)
        yield
    finally:
        # Before Kueue goes: it alone takes its finalizers off them.
        kubectl.run("delete", "clusterqueue", CLUSTER_QUEUE, "--ignore-not-found", "--timeout=60s")
        kubectl.run("delete", "resourceflavor", FLAVOR, "--ignore-not-found", "--timeout=60s")
        helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")
        kubectl.run("delete", "namespace", NAMESPACE, "--wait=false")


def local_queue(namespace: str) -> Body:
    """The LocalQueue of a namespace."""
    metadata = {"name": QUEUE, "namespace": namespace}
    return {"apiVersion": API, "kind": "LocalQueue", "metadata": metadata, "spec": {"clusterQueue": CLUSTER_QUEUE}}


def _queues(cpu: str) -> list[Body]:
    quotas = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": "64Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": FLAVOR, "resources": quotas}]}
    spec = {
        "namespaceSelector": {},
        "resourceGroups": [group],
        "preemption": {"withinClusterQueue": "LowerPriority"},
    }
    return [
        {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": FLAVOR}, "spec": {}},
        {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": CLUSTER_QUEUE}, "spec": spec},
    ]
