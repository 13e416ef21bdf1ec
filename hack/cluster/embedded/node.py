"""The node: containerd, kubelet, kube-proxy, DNS, the image registry and the network they share."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import yaml

from embedded.build import program
from embedded.layout import BRIDGE, NODE_IP, NODE_NAME, POD_CIDR, REGISTRY, ROOT, Layout
from embedded.processes import ClusterError, Processes

PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "docker-registry": "docker-registry",
}
CNI_PLUGINS = Path("/usr/lib/cni")
PAUSE_IMAGE = "localhost/finetune-pause:1"
MASQUERADE = ["POSTROUTING", "-s", POD_CIDR, "!", "-d", POD_CIDR, "-m", "comment", "--comment", "finetune-embedded",
              "-j", "MASQUERADE"]  # fmt: skip


def install_packages() -> None:
    """Install by apt what is missing; no service of theirs is started."""
    missing = [package for command, package in PACKAGES.items() if shutil.which(command) is None]
    if not (CNI_PLUGINS / "bridge").exists():
        missing.append("containernetworking-plugins")
    if not missing:
        return
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:  # Debian's own way of saying that a package must not start its service
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], env=environment)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *sorted(set(missing))], env=environment)
    finally:
        if made:
            policy.unlink()


def run(command: list[str], **options: object) -> str:
    """Run a command and return its output.

    Raises:
        ClusterError: it failed; with what it said.
    """
    result = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if result.returncode != 0:
        raise ClusterError(f"{' '.join(command[:4])} failed:\n{(result.stderr or result.stdout)[-2000:]}")
    return str(result.stdout)


def start_network() -> None:
    """The bridge whose address is the node's; pods get the rest of its net."""
    if subprocess.run(["ip", "link", "show", BRIDGE], capture_output=True, check=False).returncode != 0:
        routes = json.loads(run(["ip", "-j", "route"]))
        if taken := [route["dst"] for route in routes if route["dst"].startswith("10.244.0.")]:
            raise ClusterError(f"this machine already routes {taken[0]}, which the embedded node uses for pods")
        run(["ip", "link", "add", BRIDGE, "type", "bridge"])
        run(["ip", "addr", "add", f"{NODE_IP}/24", "dev", BRIDGE])
        run(["ip", "link", "set", BRIDGE, "up"])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    bridged = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if not bridged.exists():
        subprocess.run(["modprobe", "br_netfilter"], capture_output=True, check=False)
    if bridged.exists():  # pods reach Services whose pods are on the same bridge
        bridged.write_text("1")
    if subprocess.run(["iptables", "-t", "nat", "-C", *MASQUERADE], capture_output=True, check=False).returncode != 0:
        run(["iptables", "-t", "nat", "-A", *MASQUERADE])


def start_containerd(layout: Layout, processes: Processes) -> None:
    """containerd with root, state and socket of its own."""
    directory = layout.state / "containerd"
    hosts = directory / "certs.d" / REGISTRY
    hosts.mkdir(parents=True, exist_ok=True)
    (hosts / "hosts.toml").write_text(f'server = "http://{REGISTRY}"\n[host."http://{REGISTRY}"]\n')
    cni = directory / "cni"
    cni.mkdir(exist_ok=True)
    (cni / "10-finetune.conflist").write_text(json.dumps(_cni(directory)))
    layout.containerd_root.mkdir(parents=True, exist_ok=True)
    config = directory / "config.toml"
    config.write_text(
        f"""version = 2
root = "{layout.containerd_root}"
state = "{directory / "state"}"
[grpc]
  address = "{layout.containerd_socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{cni}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{directory / "certs.d"}"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    discard_unpacked_layers = true
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
"""
    )
    processes.start("containerd", ["containerd", "--config", str(config), "--log-level", "warn"])
    processes.wait_for("containerd", lambda: _answers(layout), seconds=30)
    _remove_containers(layout)  # what a killed cluster left in the persistent root
    if PAUSE_IMAGE not in ctr(layout, "images", "ls", "-q").split():
        _import_pause(layout)


def _cni(directory: Path) -> dict[str, object]:
    return {
        "cniVersion": "1.0.0",
        "name": "finetune",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(directory / "ipam"),
                    "ranges": [[{"subnet": POD_CIDR, "rangeStart": "10.244.0.10", "gateway": NODE_IP}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def ctr(layout: Layout, *arguments: str) -> str:
    """containerd's own client, on our socket and in Kubernetes' namespace."""
    return run(["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io", *arguments])


def _answers(layout: Layout) -> bool:
    command = ["ctr", "--address", str(layout.containerd_socket), "version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _remove_containers(layout: Layout) -> None:
    for container in ctr(layout, "containers", "ls", "-q").split():
        address = ["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io"]
        for command in (["tasks", "rm", "-f", container], ["containers", "rm", container]):
            subprocess.run([*address, *command], capture_output=True, check=False)


def _import_pause(layout: Layout) -> None:
    """The sandbox image: one static program. A docker archive is simple enough to write by hand."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(program("pause"), "pause")
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer.getvalue())}"]},
    }
    files = {
        "layer.tar": layer.getvalue(),
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(
            [{"Config": "config.json", "RepoTags": [PAUSE_IMAGE], "Layers": ["layer.tar"]}]
        ).encode(),
    }
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        with tarfile.open(archive.name, "w") as tar:
            for name, data in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        ctr(layout, "images", "import", archive.name)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def start_registry(layout: Layout, processes: Processes) -> None:
    """The registry that images are pushed to; only changed layers travel."""
    layout.registry_root.mkdir(parents=True, exist_ok=True)
    config = layout.state / "registry.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "version": 0.1,
                "log": {"level": "warn", "accesslog": {"disabled": True}},
                "storage": {"filesystem": {"rootdirectory": str(layout.registry_root)}, "delete": {"enabled": True}},
                "http": {"addr": REGISTRY},
            }
        )
    )
    processes.start("registry", ["docker-registry", "serve", str(config)])


def start_kubelet(layout: Layout, processes: Processes) -> None:
    """kubelet, which registers the node."""
    pki = layout.pki
    config = layout.state / "kubelet.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "kubelet.config.k8s.io/v1beta1",
                "kind": "KubeletConfiguration",
                "address": NODE_IP,
                "authentication": {
                    "anonymous": {"enabled": False},
                    "webhook": {"enabled": True},
                    "x509": {"clientCAFile": str(pki / "ca.crt")},
                },
                "authorization": {"mode": "Webhook"},
                "tlsCertFile": str(pki / "kubelet-server.crt"),
                "tlsPrivateKeyFile": str(pki / "kubelet-server.key"),
                "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
                "cgroupDriver": "cgroupfs",
                "clusterDNS": [NODE_IP],
                "clusterDomain": "cluster.local",
                "failSwapOn": False,
                "healthzBindAddress": "127.0.0.1",
                # A nearly full disk is common on such machines; images are ours to remove, not the kubelet's.
                "imageGCHighThresholdPercent": 100,
                "imageGCLowThresholdPercent": 99,
                "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
                "maxPods": 100,
                "registerNode": True,
                "syncFrequency": "10s",
                "volumePluginDir": str(layout.state / "volume-plugins"),
            }
        )
    )
    processes.start(
        "kubelet",
        [
            program("kubelet"),
            f"--config={config}",
            f"--kubeconfig={pki / 'kubelet.kubeconfig'}",
            f"--hostname-override={NODE_NAME}",
            f"--node-ip={NODE_IP}",
            f"--root-dir={layout.state / 'kubelet'}",
        ],
    )


def start_kube_proxy(layout: Layout, processes: Processes) -> None:
    """kube-proxy; the conntrack settings are left alone, since such machines do not allow them."""
    processes.start(
        "kube-proxy",
        [
            program("kube-proxy"),
            f"--kubeconfig={layout.pki / 'kube-proxy.kubeconfig'}",
            f"--hostname-override={NODE_NAME}",
            f"--cluster-cidr={POD_CIDR}",
            "--proxy-mode=iptables",
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--metrics-bind-address=127.0.0.1:10249",
            "--healthz-bind-address=127.0.0.1:10256",
        ],
    )


def start_dns(layout: Layout, processes: Processes) -> None:
    """CoreDNS on the node's address: Services and pods by name, the rest by the machine's own resolver."""
    corefile = layout.state / "Corefile"
    corefile.write_text(
        f""".:53 {{
    bind {NODE_IP}
    errors
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {layout.pki / "admin.kubeconfig"} finetune-embedded
        pods verified
        ttl 5
    }}
    forward . /etc/resolv.conf
    loop
}}
"""
    )
    processes.start("coredns", [program("coredns"), f"-conf={corefile}"])


def start_volumes(layout: Layout, processes: Processes) -> None:
    """The provisioner of local volumes."""
    processes.start(
        "volumes",
        [str(ROOT / ".venv/bin/python"), "-m", "embedded.volumes", str(layout.state)],
        environment={"PYTHONPATH": str(ROOT / "hack/cluster")},
    )
