"""Whether each part of the cluster does its work, asked of the part itself."""

from __future__ import annotations

import ssl
import subprocess
import urllib.request

from embedded.layout import REGISTRY, Layout
from embedded.processes import Processes

CONTROL_PLANE = ("etcd", "kube-apiserver")
NODE = (
    "registry",
    "containerd",
    *CONTROL_PLANE,
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "volumes",
)
_ENDPOINTS = {
    "registry": f"http://{REGISTRY}/v2/",
    "kube-controller-manager": "https://127.0.0.1:10257/healthz",
    "kube-scheduler": "https://127.0.0.1:10259/healthz",
    "kubelet": "http://127.0.0.1:10248/healthz",
    "kube-proxy": "http://127.0.0.1:10256/healthz",
    "coredns": "http://127.0.0.1:10254/ready",
}


def parts(layout: Layout) -> tuple[str, ...]:
    """The parts this cluster consists of."""
    return CONTROL_PLANE if layout.control_plane_only else NODE


def api_ready(layout: Layout) -> bool:
    """Whether the API server says that it is ready."""
    return _answers(layout, f"{layout.api_url}/readyz", client="admin")


def ill(layout: Layout, processes: Processes, name: str) -> str | None:
    """What is wrong with a part; None where it is well."""
    if processes.pid(name) is None:
        return "does not run"
    if name == "etcd":
        well = _answers(layout, f"https://127.0.0.1:{layout.etcd_port}/health", client="apiserver-etcd")
    elif name == "kube-apiserver":
        well = api_ready(layout)
    elif name == "containerd":
        well = containerd_answers(layout)
    elif name in _ENDPOINTS:
        well = _answers(layout, _ENDPOINTS[name])
    else:
        well = True
    return None if well else "runs, but is not ready"


def healthy(layout: Layout, processes: Processes) -> bool:
    """Whether every part is well."""
    return all(ill(layout, processes, name) is None for name in parts(layout))


def wait_until_healthy(layout: Layout, processes: Processes, *, seconds: float) -> None:
    """Wait for every part.

    Raises:
        ClusterError: one is not well in time.
    """
    for name in parts(layout):
        processes.wait_for(name, lambda name=name: ill(layout, processes, name) is None, seconds=seconds)


def containerd_answers(layout: Layout) -> bool:
    """Whether our containerd answers on its socket."""
    command = ["ctr", "--address", str(layout.containerd_socket), "--connect-timeout", "3s", "version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _answers(layout: Layout, url: str, *, client: str | None = None) -> bool:
    try:
        context = None
        if client is not None:
            context = ssl.create_default_context(cafile=str(layout.pki / "ca.crt"))
            context.load_cert_chain(layout.pki / f"{client}.crt", layout.pki / f"{client}.key")
        elif url.startswith("https:"):  # a certificate the component made for itself; nothing secret is sent
            context = ssl._create_unverified_context()  # noqa: SLF001 - the one public way is three statements
        # Loopback is never to be reached through a proxy.
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(url, timeout=3) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
