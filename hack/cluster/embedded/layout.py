"""Where everything of the embedded cluster lies, and the addresses it uses."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NODE_NAME = "finetune-node"
BRIDGE = "ftbr0"
NODE_IP = "10.244.0.1"
POD_CIDR = "10.244.0.0/24"
SERVICE_CIDR = "10.97.0.0/16"
KUBERNETES_SERVICE_IP = "10.97.0.1"
REGISTRY = "127.0.0.1:5055"


def cache_dir() -> Path:
    """Built programs, image layers and downloads: only ever an optimization."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("FINETUNE_CACHE") or f"{base}/finetune-operator")


def default_state_dir() -> Path:
    """State of the one-node cluster."""
    return Path(os.environ.get("FINETUNE_CLUSTER_DIR") or "/var/lib/finetune-operator/cluster")


@dataclass(frozen=True)
class Layout:
    """Paths below one cluster's state directory.

    ``address`` and the ports differ between the node (a bridge's address that pods reach) and a bare control plane
    (loopback, free ports).
    """

    state: Path
    address: str = NODE_IP
    api_port: int = 6443
    etcd_port: int = 12379
    etcd_peer_port: int = 12380

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def run(self) -> Path:
        return self.state / "run"

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def volumes(self) -> Path:
        return self.state / "volumes"

    @property
    def containerd_socket(self) -> Path:
        return self.state / "containerd" / "containerd.sock"

    @property
    def containerd_root(self) -> Path:
        """Unpacked images outlive the cluster: the next start needs no pull."""
        return cache_dir() / "containerd"

    @property
    def registry_root(self) -> Path:
        return cache_dir() / "registry"

    @property
    def api_url(self) -> str:
        return f"https://{self.address}:{self.api_port}"
