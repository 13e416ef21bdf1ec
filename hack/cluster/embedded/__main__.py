"""``hack/cluster/cluster packages | build | up | down | status | kubeconfig | logs | stop | start``."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from embedded import build, node, teardown
from embedded.control_plane import restart_part, start_control_plane
from embedded.health import CONTROL_PLANE, healthy, ill, parts, wait_until_healthy
from embedded.layout import NODE_NAME, Layout, default_state_dir, free_network, pod_networks, service_networks
from embedded.pki import make_pki
from embedded.processes import ClusterError, Processes


def main() -> int:
    parser = argparse.ArgumentParser(prog="cluster", description="The embedded one-node Kubernetes.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("packages", help="install what is missing by apt")
    commands.add_parser("build", help="build what is missing").add_argument("targets", nargs="*")
    up = commands.add_parser("up", help="start, or do nothing where it runs")
    up.add_argument("--control-plane-only", action="store_true", help="etcd and kube-apiserver alone; needs no root")
    down = commands.add_parser("down", help="stop and leave nothing behind but caches")
    down.add_argument("--purge", action="store_true", help="remove the caches too")
    status = commands.add_parser("status", help="say how each part is")
    kubeconfig = commands.add_parser("kubeconfig", help="print the path of the kubeconfig")
    which = commands.add_parser("which", help="print the path of a built program")
    which.add_argument("program")
    logs = commands.add_parser("logs", help="print the end of a part's log, or of all")
    logs.add_argument("part", nargs="?")
    stop = commands.add_parser("stop", help="stop one part of the control plane, as a fault would")
    stop.add_argument("--kill", action="store_true", help="give it no time")
    start = commands.add_parser("start", help="start it again")
    for command in (stop, start):
        command.add_argument("part", choices=CONTROL_PLANE)
    for command in (up, down, status, kubeconfig, logs, stop, start):
        command.add_argument("--dir", type=Path, default=None, help="state directory")
    arguments = parser.parse_args()
    try:
        return _run(arguments)
    except (ClusterError, build.BuildError) as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "packages" or (arguments.command == "build" and not arguments.targets):
        _require_root()
        node.install_packages()
    if arguments.command == "packages":
        return 0
    if arguments.command == "build":
        build.build(arguments.targets)
        return 0
    if arguments.command == "which":
        print(build.program(arguments.program))
        return 0
    state = (arguments.dir or default_state_dir()).absolute()
    layout = Layout.load(state)
    processes = Processes(layout)
    if arguments.command == "up":
        with _locked(state):
            up = _up_control_plane if arguments.control_plane_only else _up
            if not healthy(layout, processes) or layout.control_plane_only != arguments.control_plane_only:
                up(layout, processes)
        print(layout.kubeconfig)
    elif arguments.command == "down":
        with _locked(state) as lock:
            teardown.tear_down(layout, processes)
            lock.unlink()
        if arguments.purge:
            teardown.purge()
    elif arguments.command == "status":
        verdicts = {name: ill(layout, processes, name) for name in parts(layout)}
        for name, verdict in verdicts.items():
            print(f"{name:24} {verdict or 'ready'}")
        return 1 if any(verdicts.values()) else 0
    elif arguments.command == "stop":
        with _locked(state):
            processes.stop(arguments.part, grace_seconds=0 if arguments.kill else 15)
    elif arguments.command == "start":
        with _locked(state):
            if processes.pid(arguments.part) is None:
                restart_part(layout, processes, arguments.part)
    elif arguments.command == "kubeconfig":
        print(layout.kubeconfig)
    elif arguments.command == "logs":
        for name in [arguments.part] if arguments.part else parts(layout):
            print(f"--- {name}\n{processes.tail(name, 200 if arguments.part else 20)}")
    return 0


@contextlib.contextmanager
def _locked(state: Path) -> Iterator[Path]:
    """Two commands on one state directory come after each other; the lock is beside what they may remove."""
    path = state.with_name(f".{state.name}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield path
                return


def _require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("the embedded node needs root; set KUBECONFIG to use a cluster of yours instead")


def _up(old: Layout, processes: Processes) -> None:
    _require_root()
    node.install_packages()
    build.build()
    teardown.tear_down(old, processes)
    started = time.monotonic()
    pods, services = _free_networks()
    layout = _make_state(Layout(old.state, pod_cidr=pods, service_cidr=services))
    node.start_network(layout)
    node.start_registry(layout, processes)
    node.start_containerd(layout, processes)
    start_control_plane(layout, processes)
    node.start_kubelet(layout, processes)
    node.start_kube_proxy(layout, processes)
    node.start_dns(layout, processes)
    from embedded.volumes import apply_classes  # noqa: PLC0415 - the client is slow to import

    apply_classes(layout.kubeconfig)
    node.start_volumes(layout, processes)
    wait_until_healthy(layout, processes, seconds=60)
    processes.wait_for("kubelet", lambda: _takes_pods(layout), seconds=120)
    print(f"cluster up after {time.monotonic() - started:.0f} s", file=sys.stderr)


def _free_networks() -> tuple[str, str]:
    """Networks for pods and Services."""
    routed = node.routed_networks()
    pods = free_network(pod_networks(), routed)
    services = free_network(service_networks(), routed)
    if pods is None or services is None:
        raise ClusterError("this machine routes all of 10.0.0.0/8, so no network is left for pods and Services")
    return pods, services


def _make_state(layout: Layout) -> Layout:
    layout.state.mkdir(parents=True)
    layout.save()
    make_pki(layout)
    return layout


def _takes_pods(layout: Layout) -> bool:
    """Whether the node is ready, and the controllers so far that pods can be made in the default namespace."""

    def get(*what: str) -> str:
        command = [str(build.program("kubectl")), "--kubeconfig", str(layout.kubeconfig), "get", *what]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    return get("node", NODE_NAME, "-o", ready) == "True" and bool(get("serviceaccount", "default", "-o", "name"))


def _up_control_plane(old: Layout, processes: Processes) -> None:
    build.build(["etcd", "kubernetes"])
    teardown.tear_down(old, processes)
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(3)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        ports = [listener.getsockname()[1] for listener in listeners]
    start_control_plane(
        _make_state(
            Layout(old.state, control_plane_only=True, api_port=ports[0], etcd_port=ports[1], etcd_peer_port=ports[2])
        ),
        processes,
    )


if __name__ == "__main__":
    sys.exit(main())
