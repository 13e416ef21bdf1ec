"""A real control plane for the benchmark, without machines: etcd, kube-apiserver with an audit log,
kube-controller-manager, kube-scheduler, and kwok, which acts for the nodes' kubelets.

It has a state directory and ports of its own and disturbs no other cluster of this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("hack/cluster", "tests/support", "crds", "operator")]

from embedded import build, teardown  # noqa: E402
from embedded.control_plane import start_control_plane, start_controllers  # noqa: E402
from embedded.layout import Layout  # noqa: E402
from embedded.pki import make_pki  # noqa: E402
from embedded.processes import Processes  # noqa: E402
from operator_process import free_ports  # noqa: E402

Body = dict[str, Any]
PARTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok")
RATE = ["--kube-api-qps=1000", "--kube-api-burst=1000"]
"""As clusters of this size have it: at their defaults (20 and 50 a second) these two would be what is measured."""
OPTIONS = {
    # No kubelet sends signs of life: 500 nodes' would be half of all writes, and none of the operator's.
    "kube-controller-manager": [*RATE, "--node-monitor-grace-period=24h", "--concurrent-job-syncs=20"],
    "kube-scheduler": RATE,
}
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        {"level": "Metadata", "userGroups": ["system:serviceaccounts:finetune-system"]},
        {"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "deletecollection"]},
        {"level": "None"},
    ],
}
"""All that the operator asks for; of the others what they write."""


class Plane:
    """A control plane that runs."""

    def __init__(self, layout: Layout, processes: Processes) -> None:
        self._layout, self._processes = layout, processes
        self.kubeconfig = layout.kubeconfig
        self.audit_log, self.pki = layout.state / "audit.log", layout.pki
        self.etcd_url = f"https://127.0.0.1:{layout.etcd_port}"

    @property
    def pids(self) -> dict[str, int]:
        """Process of each part that runs."""
        found = {name: self._processes.pid(name) for name in PARTS}
        return {name: pid for name, pid in found.items() if pid is not None}

    def kubeconfig_of(self, name: str, token: str) -> Path:
        """Kubeconfig of a service account, by its token."""
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"] = [{"name": name, "user": {"token": token}}]
        config["contexts"][0]["context"]["user"] = name
        path = self._layout.state / f"{name}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump(config))
        return path

    def start_kwok(self, stages: list[Body]) -> None:
        """Start kwok, for all nodes."""
        path = self._layout.state / "stages.yaml"
        path.write_text("\n---\n".join(json.dumps(stage) for stage in stages))
        self._processes.start(
            "kwok",
            [
                build.program("kwok"),
                f"--kubeconfig={self.kubeconfig}",
                f"--config={path}",
                "--manage-all-nodes=true",
                "--node-lease-duration-seconds=0",
            ],
        )


@contextlib.contextmanager
def running_plane(state: Path) -> Iterator[Plane]:
    """A control plane for the length of the block; ``state`` is made, and removed at the end."""
    build.build(["etcd", "kubernetes", "kwok", "helm"])
    ports = free_ports(5)
    layout = Layout(
        state.absolute(), control_plane_only=True, api_port=ports[0], etcd_port=ports[1], etcd_peer_port=ports[2]
    )
    processes = Processes(layout)
    try:
        layout.state.mkdir(parents=True)
        layout.save()
        make_pki(layout)
        policy = layout.state / "audit-policy.yaml"
        policy.write_text(json.dumps(AUDIT_POLICY))
        audit = [f"--audit-policy-file={policy}", f"--audit-log-path={layout.state / 'audit.log'}"]
        start_control_plane(
            layout, processes, api_server=[*audit, "--audit-log-mode=batch", "--audit-log-maxsize=4000"]
        )
        start_controllers(layout, processes, ports=(ports[3], ports[4]), options=OPTIONS)
        yield Plane(layout, processes)
    finally:
        teardown.tear_down(layout, processes)


class Usage:
    """Processor time and memory of processes, from /proc."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self._before = self._seconds()

    def seconds(self) -> dict[str, float]:
        """Processor seconds of each since this object was made."""
        return {name: now - self._before[name] for name, now in self._seconds().items()}

    def _seconds(self) -> dict[str, float]:
        found = {}
        for name, pid in self._pids.items():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            found[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return found

    def mebibytes(self, kind: str) -> dict[str, float]:
        """Resident memory of each: ``VmRSS`` now, ``VmHWM`` at its greatest."""
        found = {}
        for name, pid in self._pids.items():
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            line = next(line for line in lines if line.startswith(f"{kind}:"))
            found[name] = int(line.split()[1]) / 1024
        return found
