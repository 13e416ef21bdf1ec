"""Take the cluster away so that nothing of it is left: processes, containers, mounts, interfaces, rules, cgroups.

Everything that is ended is known to be ours: programs by pid and start time, containers by our containerd's socket
in their shim's command line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from embedded.layout import BRIDGE, Layout
from embedded.node import MASQUERADE
from embedded.processes import Processes, end_process

_ORDER = ("volumes", "coredns", "kube-proxy", "kubelet", "kube-scheduler", "kube-controller-manager")


def tear_down(layout: Layout, processes: Processes) -> None:
    """Idempotent; also cleans up after a machine that was switched off."""
    was_node = (layout.state / "containerd").exists()
    for name in _ORDER:
        processes.stop(name)
    _end_containers(layout)
    for name in processes.names():
        processes.stop(name)
    _unmount_below(layout.state)
    if was_node:
        _unmount_below(layout.containerd_root)
        _remove_network()
        _remove_cgroups()
    shutil.rmtree(layout.state, ignore_errors=True)


def _end_containers(layout: Layout) -> None:
    """Kill the processes of every container whose shim serves our containerd, then the shims."""
    marker = f"-address\0{layout.containerd_socket}\0".encode()
    shims = [pid for pid in _pids() if marker in _command_line(pid) + b"\0"]
    children = [pid for pid in _pids() if _parent(pid) in shims]
    for pid in children:
        for descendant in [*_descendants(pid), pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(descendant, signal.SIGKILL)
    for shim in shims:
        end_process(shim, grace_seconds=3)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def _descendants(pid: int) -> list[int]:
    found = [child for child in _pids() if _parent(child) == pid]
    return [deeper for child in found for deeper in [*_descendants(child), child]]


def _unmount_below(directory: Path) -> None:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted(mounts, reverse=True):
        if mount.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", mount], capture_output=True, check=False)


def _remove_network() -> None:
    subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)
    subprocess.run(["iptables", "-t", "nat", "-D", *MASQUERADE], capture_output=True, check=False)
    for family in ("iptables", "ip6tables"):
        _remove_chains(family)


def _remove_chains(family: str) -> None:
    """Drop the KUBE- chains of kubelet and kube-proxy, and CNI's host port chains, with all that jumps to them."""
    for table in ("nat", "filter", "mangle", "raw"):
        saved = subprocess.run([f"{family}-save", "-t", table], capture_output=True, text=True, check=False).stdout
        lines = saved.splitlines()
        kept = [line for line in lines if not any(word in line for word in ("KUBE-", "CNI-"))]
        if kept != lines:
            subprocess.run([f"{family}-restore", "-T", table], input="\n".join(kept) + "\n", text=True, check=False)


def _remove_cgroups() -> None:
    roots = [Path("/sys/fs/cgroup/kubepods"), *Path("/sys/fs/cgroup").glob("*/kubepods")]
    for root in roots:
        for directory, _, _ in os.walk(root, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
