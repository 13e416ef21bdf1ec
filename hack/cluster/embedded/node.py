"""The node: containerd, kubelet, kube-proxy, DNS, the image registry and the network they share."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import yaml

from embedded.build import program
from embedded.health import containerd_answers
from embedded.layout import BRIDGE, NODE_NAME, REGISTRY, ROOT, Layout
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
RULE_MARK = "finetune-embedded"
_SYSCTLS = ("net/ipv4/ip_forward", "net/ipv4/conf/all/route_localnet", "net/bridge/bridge-nf-call-iptables")


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


def routed_networks() -> list[str]:
    """Networks this machine has routes to, which the cluster has to keep clear of."""
    routes = json.loads(run(["ip", "-j", "-4", "route", "show", "table", "all"]))
    networks = [route["dst"] for route in routes if route["dst"] != "default"]
    # A default route written as two halves is a default route still.
    return [network for network in networks if not network.endswith("/1")]


def start_network(layout: Layout) -> None:
    """The bridge whose address is the node's; pods get the rest of its net.

    Raises:
        ClusterError: another embedded cluster runs.
    """
    if subprocess.run(["ip", "link", "show", BRIDGE], capture_output=True, check=False).returncode == 0:
        raise ClusterError(
            f"the interface {BRIDGE} is there already: another embedded cluster runs, with another --dir or "
            "FINETUNE_CLUSTER_DIR. Stop it by hack/cluster/cluster down --dir ITS_DIR"
        )
    if modprobe := shutil.which("modprobe"):  # absent where the kernel has everything built in
        subprocess.run([modprobe, "br_netfilter"], capture_output=True, check=False)
    settings = {name: Path("/proc/sys") / name for name in _SYSCTLS}
    before = {name: path.read_text().strip() for name, path in settings.items() if path.exists()}
    (layout.state / "sysctls.json").write_text(json.dumps(before))
    run(["ip", "link", "add", BRIDGE, "type", "bridge"])
    run(["ip", "addr", "add", f"{layout.node_ip}/24", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    settings["net/ipv4/ip_forward"].write_text("1")
    bridged = settings["net/bridge/bridge-nf-call-iptables"]
    if bridged.exists():  # pods reach Services whose pods are on the same bridge
        bridged.write_text("1")
    pods, mark = layout.pod_cidr, ["-m", "comment", "--comment", RULE_MARK, "-j"]
    run(["iptables", "-w", "-t", "nat", "-A", "POSTROUTING", "-s", pods, "!", "-d", pods, *mark, "MASQUERADE"])
    # First in line: the machine's own firewall, or Docker's, may drop what it does not know.
    for chain, direction in (("FORWARD", "-i"), ("FORWARD", "-o"), ("INPUT", "-i")):
        run(["iptables", "-w", "-I", chain, direction, BRIDGE, *mark, "ACCEPT"])


def restore_sysctls(layout: Layout) -> None:
    """Give the kernel's settings back as they were found."""
    try:
        before = json.loads((layout.state / "sysctls.json").read_text())
    except (OSError, ValueError):
        return
    for name, value in before.items():
        if name in _SYSCTLS:
            (Path("/proc/sys") / name).write_text(value)


def start_containerd(layout: Layout, processes: Processes) -> None:
    """containerd with root, state and socket of its own."""
    directory = layout.containerd
    hosts = directory / "certs.d" / REGISTRY
    hosts.mkdir(parents=True, exist_ok=True)
    (hosts / "hosts.toml").write_text(f'server = "http://{REGISTRY}"\n[host."http://{REGISTRY}"]\n')
    cni = directory / "cni"
    cni.mkdir(exist_ok=True)
    (cni / "10-finetune.conflist").write_text(json.dumps(_cni(layout)))
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
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        Root = "{directory / "runc"}"
"""
    )
    _run_containerd(layout, processes)
    if remove_containers(layout):  # what a killed cluster left in the persistent root
        processes.stop("containerd")  # its CRI part read them at its start, and is not told of their end
        _run_containerd(layout, processes)
    if PAUSE_IMAGE not in ctr(layout, "images", "ls", "-q").split():
        _import_pause(layout)


def _run_containerd(layout: Layout, processes: Processes) -> None:
    processes.start(
        "containerd", ["containerd", "--config", str(layout.containerd / "config.toml"), "--log-level", "warn"]
    )
    processes.wait_for("containerd", lambda: containerd_answers(layout), seconds=30)


def _cni(layout: Layout) -> dict[str, object]:
    pods = ipaddress.ip_network(layout.pod_cidr)
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
                    "dataDir": str(layout.containerd / "ipam"),
                    "ranges": [[{"subnet": layout.pod_cidr, "rangeStart": str(pods[10]), "gateway": layout.node_ip}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def ctr(layout: Layout, *arguments: str) -> str:
    """containerd's own client, on our socket and in Kubernetes' namespace."""
    return run(["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io", *arguments])


def remove_containers(layout: Layout) -> bool:
    """End and remove all containers of our containerd; whether there was any."""
    containers = ctr(layout, "containers", "ls", "-q").split()
    for container in containers:
        address = ["ctr", "--address", str(layout.containerd_socket), "--namespace", "k8s.io"]
        for command in (["tasks", "rm", "-f", container], ["containers", "rm", container]):
            subprocess.run([*address, *command], capture_output=True, check=False)
    return bool(containers)


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
                "address": layout.node_ip,
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
                "clusterDNS": [layout.node_ip],
                "clusterDomain": "cluster.local",
                "failSwapOn": False,
                "healthzBindAddress": "127.0.0.1",
                # A nearly full disk is common on such machines; images are ours to remove, not the kubelet's.
                "imageGCHighThresholdPercent": 100,
                "imageGCLowThresholdPercent": 99,
                "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
                "maxPods": 100,
                "podLogsDir": str(layout.pod_logs),
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
            f"--node-ip={layout.node_ip}",
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
            f"--cluster-cidr={layout.pod_cidr}",
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
    bind {layout.node_ip}
    errors
    ready 127.0.0.1:10254
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
