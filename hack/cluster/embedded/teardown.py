"""Take the cluster away so that nothing of it is left: processes, containers, mounts, interfaces, rules, cgroups.

Everything that is ended is known to be ours: programs by pid and start time, containers by our containerd's socket
in their shim's command line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from embedded.health import containerd_answers
from embedded.layout import BRIDGE, Layout, cache_dir, default_state_dir
from embedded.node import RULE_MARK, remove_containers, restore_sysctls
from embedded.processes import ClusterError, Processes, end_processes

# These would make anew what is taken away, so they go first.
_ACTORS = ("volumes", "coredns", "kube-proxy", "kubelet", "kube-scheduler", "kube-controller-manager")


def tear_down(layout: Layout, processes: Processes) -> None:
    """Idempotent; also cleans up after a machine that was switched off."""
    # Where somebody removed the state directory by hand, the bridge still tells.
    bridge = Path("/sys/class/net", BRIDGE).exists()
    was_node = layout.containerd.exists() or (bridge and layout.state == default_state_dir())
    processes.stop(*_ACTORS)
    if was_node and processes.pid("containerd") and containerd_answers(layout):
        remove_containers(layout)
    _end_containers(layout)
    processes.stop(*processes.names(), grace_seconds=2)  # what they would save is removed below
    processes.stop_unrecorded()
    _unmount_below(layout.state)
    if was_node:
        _unmount_below(layout.containerd_root)
        _remove_network()
        restore_sysctls(layout)
        _remove_cgroups()
        _remove_fixed_places(layout)
    shutil.rmtree(layout.state, ignore_errors=True)
    if layout.state.exists():
        raise ClusterError(f"{layout.state} cannot be removed: see what still uses it by fuser -vm {layout.state}")


def purge() -> None:
    """Remove all that we keep between starts. By name: FINETUNE_CACHE may be a directory that others use too."""
    cache = cache_dir()
    _unmount_below(cache)
    for pattern in ("bin", "buildah", "containerd", "registry", "model", "go-*", "uv*"):
        for path in cache.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        cache.rmdir()


def _end_containers(layout: Layout) -> None:
    """Kill the processes of every container whose shim serves our containerd, then the shims."""
    marker = f"-address\0{layout.containerd_socket}\0".encode()
    shims = [pid for pid in _pids() if marker in _command_line(pid) + b"\0"]
    children = [pid for pid in _pids() if _parent(pid) in shims]
    for pid in children:
        for descendant in [*_descendants(pid), pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(descendant, signal.SIGKILL)
    end_processes(shims, grace_seconds=3)


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
    for family in ("iptables", "ip6tables"):
        _remove_chains(family)


def _remove_chains(family: str) -> None:
    """Drop our rules, the KUBE- chains of kubelet and kube-proxy, CNI's host port chains, and all jumps to them."""
    for table in ("nat", "filter", "mangle", "raw"):
        saved = subprocess.run([f"{family}-save", "-t", table], capture_output=True, text=True, check=False).stdout
        lines = saved.splitlines()
        kept = [line for line in lines if not any(word in line for word in ("KUBE-", "CNI-", RULE_MARK))]
        if kept != lines:
            subprocess.run(
                [f"{family}-restore", "-w", "-T", table], input="\n".join(kept) + "\n", text=True, check=False
            )


def _remove_cgroups() -> None:
    roots = [Path("/sys/fs/cgroup/kubepods"), *Path("/sys/fs/cgroup").glob("*/kubepods")]
    for root in roots:
        for directory, _, _ in os.walk(root, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def _remove_fixed_places(layout: Layout) -> None:
    """What containerd, CNI and the kubelet put into places that no setting of theirs moves."""
    for address in layout.containerd.glob("state/io.containerd.runtime.v2.task/*/*/address"):
        Path(address.read_text().removeprefix("unix://")).unlink(missing_ok=True)
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(layout.pod_logs):
            link.unlink()
    for result in Path("/var/lib/cni/results").glob("*"):
        if str(layout.state) in result.read_text(errors="replace"):  # it names the pod's network namespace
            result.unlink()
    plugins = Path("/var/lib/kubelet/device-plugins")
    if not _is_listened(plugins / "kubelet.sock"):
        (plugins / "kubelet.sock").unlink(missing_ok=True)
    for directory in (
        "/run/containerd/s", "/run/containerd/runc", "/run/containerd", "/var/lib/cni/results", "/var/lib/cni",
        "/var/log/containers", "/var/log/pods", plugins, "/var/lib/kubelet",
    ):  # fmt: skip
        with contextlib.suppress(OSError):  # somebody else's things are in it
            Path(directory).rmdir()


def _is_listened(path: Path) -> bool:
    """Whether a program has this socket open: another kubelet's, say."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
