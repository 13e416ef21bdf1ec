"""Where everything of the embedded cluster lies, and the addresses it uses."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NODE_NAME = "finetune-node"
BRIDGE = "ftbr0"
# Part of every image's name, and images outlive the cluster: so the same for every start.
REGISTRY = "127.0.0.1:5055"


def cache_dir() -> Path:
    """Built programs, image layers and downloads: only ever an optimization."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("FINETUNE_CACHE") or f"{base}/finetune-operator")


def default_state_dir() -> Path:
    """State of the one-node cluster."""
    return Path(os.environ.get("FINETUNE_CLUSTER_DIR") or "/var/lib/finetune-operator/cluster")


def free_network(candidates: Iterable[str], taken: Iterable[str]) -> str | None:
    """First of ``candidates`` that overlaps none of the networks ``taken``."""
    used = [ipaddress.ip_network(network, strict=False) for network in taken]
    for candidate in candidates:
        network = ipaddress.ip_network(candidate)
        if not any(network.version == other.version and network.overlaps(other) for other in used):
            return candidate
    return None


def pod_networks() -> Iterable[str]:
    """Networks that pods may have, the usual first."""
    return (f"10.{second}.{third}.0/24" for second in (244, 245, 246) for third in range(0, 256, 4))


def service_networks() -> Iterable[str]:
    """Networks that Services may have."""
    return (f"10.{second}.0.0/16" for second in (97, 96, *range(98, 128)))


@dataclass(frozen=True)
class Layout:
    """Paths below one cluster's state directory, and its addresses, which are chosen at the start and kept there."""

    state: Path
    control_plane_only: bool = False
    pod_cidr: str = "10.244.0.0/24"
    service_cidr: str = "10.97.0.0/16"
    api_port: int = 6443
    etcd_port: int = 12379
    etcd_peer_port: int = 12380

    @classmethod
    def load(cls, state: Path) -> Layout:
        """The layout as ``save`` kept it; the defaults where nothing is kept."""
        try:
            kept = json.loads((state / "layout.json").read_text())
            return cls(state.absolute(), **kept)
        except (OSError, ValueError, TypeError):
            return cls(state.absolute())

    def save(self) -> None:
        """Keep the addresses for later commands."""
        kept = {key: value for key, value in dataclasses.asdict(self).items() if key != "state"}
        (self.state / "layout.json").write_text(json.dumps(kept))

    @property
    def node_ip(self) -> str:
        """Address of the bridge, which pods and Services reach."""
        return str(next(ipaddress.ip_network(self.pod_cidr).hosts()))

    @property
    def address(self) -> str:
        """Where the API server listens: with no node there is nobody outside loopback to serve."""
        return "127.0.0.1" if self.control_plane_only else self.node_ip

    @property
    def kubernetes_service_ip(self) -> str:
        return str(next(ipaddress.ip_network(self.service_cidr).hosts()))

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def pod_logs(self) -> Path:
        return self.state / "pod-logs"

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
    def containerd(self) -> Path:
        return self.state / "containerd"

    @property
    def containerd_socket(self) -> Path:
        return self.containerd / "containerd.sock"

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
