"""Processes of pods, as the node sees them: on the embedded cluster that is this machine."""

from __future__ import annotations

import os
from pathlib import Path


def processes_of(pod_uid: str, word: str) -> list[int]:
    """Process ids in the cgroups of a pod whose command line has ``word``."""
    found = []
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        try:
            cgroup, command = (directory / "cgroup").read_text(), (directory / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if pod_uid in cgroup and word.encode() in command:
            found.append(int(directory.name))
    return sorted(found)


def signal_all(processes: list[int], number: int) -> None:
    """Send each of ``processes`` a signal.

    Raises:
        AssertionError: there is none, so nothing would be tested.
    """
    assert processes, "no such process"
    for process in processes:
        os.kill(process, number)
