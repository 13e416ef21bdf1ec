"""``hack/cluster/cluster build | up | down | status | kubeconfig | logs``."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from embedded import build, node, teardown
from embedded.control_plane import api_ready, start_control_plane
from embedded.layout import NODE_NAME, Layout, cache_dir, default_state_dir
from embedded.pki import make_pki
from embedded.processes import ClusterError, Processes

COMPONENTS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "registry",
    "containerd",
    "kubelet",
    "kube-proxy",
    "coredns",
    "volumes",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="cluster", description="The embedded one-node Kubernetes.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build what is missing").add_argument("targets", nargs="*")
    up = commands.add_parser("up", help="start, or do nothing where it runs")
    up.add_argument("--control-plane-only", action="store_true", help="etcd and kube-apiserver alone; needs no root")
    down = commands.add_parser("down", help="stop and leave nothing behind but caches")
    down.add_argument("--purge", action="store_true", help="remove the caches too")
    status = commands.add_parser("status", help="say how each part is")
    kubeconfig = commands.add_parser("kubeconfig", help="print the path of the kubeconfig")
    which = commands.add_parser("which", help="print the path of a built program")
    which.add_argument("program")
    logs = commands.add_parser("logs", help="print the end of a part's log")
    logs.add_argument("part")
    for command in (up, down, status, kubeconfig, logs):
        command.add_argument("--dir", type=Path, default=None, help="state directory")
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except (ClusterError, build.BuildError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "build":
        if not arguments.targets:
            _require_root()
            node.install_packages()
        build.build(arguments.targets)
        return 0
    if arguments.command == "which":
        print(build.program(arguments.program))
        return 0
    layout = Layout(arguments.dir or default_state_dir())
    processes = Processes(layout)
    if arguments.command == "up":
        if arguments.control_plane_only:
            _up_control_plane(layout.state)
        else:
            _up(layout, processes)
        print(layout.kubeconfig)
    elif arguments.command == "down":
        if layout.state.exists() or layout.state == default_state_dir():
            teardown.tear_down(layout, processes)
        if arguments.purge:
            shutil.rmtree(cache_dir(), ignore_errors=True)
    elif arguments.command == "status":
        for name in COMPONENTS:
            print(f"{name:24} {'runs' if processes.pid(name) else 'does not run'}")
        return 0 if _healthy(layout, processes) else 1
    elif arguments.command == "kubeconfig":
        print(layout.kubeconfig)
    elif arguments.command == "logs":
        print(processes.tail(arguments.part, 200))
    return 0


def _require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("the embedded node needs root; set KUBECONFIG to use a cluster of yours instead")


def _healthy(layout: Layout, processes: Processes) -> bool:
    return all(processes.pid(name) for name in COMPONENTS) and api_ready(layout)


def _up(layout: Layout, processes: Processes) -> None:
    _require_root()
    layout.state.parent.mkdir(parents=True, exist_ok=True)
    with (layout.state.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _healthy(layout, processes):
            return
        node.install_packages()
        build.build()
        teardown.tear_down(layout, processes)
        started = time.monotonic()
        layout.state.mkdir(parents=True)
        make_pki(layout)
        node.start_network()
        node.start_registry(layout, processes)
        node.start_containerd(layout, processes)
        start_control_plane(layout, processes, controllers=True)
        node.start_kubelet(layout, processes)
        node.start_kube_proxy(layout, processes)
        node.start_dns(layout, processes)
        from embedded.volumes import apply_classes  # noqa: PLC0415 - the client is slow to import

        apply_classes(layout.kubeconfig)
        node.start_volumes(layout, processes)
        processes.wait_for("kubelet", lambda: _node_ready(layout), seconds=120)
        print(f"cluster up after {time.monotonic() - started:.0f} s", file=sys.stderr)


def _node_ready(layout: Layout) -> bool:
    path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    command = [str(build.program("kubectl")), "--kubeconfig", str(layout.kubeconfig), "get", "node", NODE_NAME, "-o"]
    return subprocess.run([*command, path], capture_output=True, text=True, check=False).stdout == "True"


def _up_control_plane(state: Path) -> None:
    build.build(["etcd", "kubernetes"])
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        for listener in (first, second, third):
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in (first, second, third)]
    layout = Layout(state, "127.0.0.1", *ports)
    state.mkdir(parents=True, exist_ok=True)
    make_pki(layout)
    start_control_plane(layout, Processes(layout), controllers=False)


if __name__ == "__main__":
    sys.exit(main())
