"""How many processors this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def usable_cores(cgroups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Processors that the affinity, the cgroup's quota and ``OMP_NUM_THREADS`` leave, at least 1.

    A pod without a limit sees all of its node: there the operator says by ``OMP_NUM_THREADS`` what was asked for.
    """
    bounds = [float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)]
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit():
        bounds.append(float(asked))
    bounds += _quotas(cgroups, own)
    return max(1, int(min(bounds)))


def _quotas(cgroups: Path, own: Path) -> list[float]:
    """CPU quotas of this process's cgroup and of those above it, in processors."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        unified = not controllers
        if not unified and "cpu" not in controllers.split(","):
            continue
        base = cgroups if unified else cgroups / "cpu"
        place = base / path.strip("/")
        for directory in (place, *place.parents):
            if directory == base.parent:
                break
            quota = _quota(directory, unified=unified)
            if quota is not None:
                found.append(quota)
    return found


def _quota(directory: Path, *, unified: bool) -> float | None:
    """https://docs.kernel.org/admin-guide/cgroup-v2.html, cpu.max; and of version 1 cpu.cfs_quota_us."""
    try:
        if unified:
            quota, period = (directory / "cpu.max").read_text().split()
        else:
            quota, period = ((directory / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
