"""Long-lived programs: started apart from the shell, remembered by pid and start time, ended by us alone."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from embedded.layout import Layout

# In the environment of all that we start: a process is then ours even where its record was lost.
_MARK = "FINETUNE_CLUSTER_STATE"


class ClusterError(RuntimeError):
    """Something of the cluster does not work; the message says what and where to look."""


def _start_time(pid: int) -> str | None:
    """Clock ticks since boot at which ``pid`` started: with the pid it names a process for good."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


class Processes:
    """The programs of one cluster, by name."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def _record(self, name: str) -> Path:
        return self._layout.run / f"{name}.json"

    def start(self, name: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> None:
        """Start ``command`` as ``name`` in a session of its own, its output in logs/NAME.log."""
        self._layout.run.mkdir(parents=True, exist_ok=True)
        self._layout.logs.mkdir(parents=True, exist_ok=True)
        with (self._layout.logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self._layout.state,
                env={**os.environ, **(environment or {}), _MARK: str(self._layout.state)},
            )
        record = json.dumps({"pid": process.pid, "start": _start_time(process.pid)})
        self._record(name).write_text(record)

    def pid(self, name: str) -> int | None:
        """Pid of ``name`` while it runs and is the process we started."""
        try:
            record = json.loads(self._record(name).read_text())
        except (OSError, ValueError):
            return None
        alive = record["start"] is not None and _start_time(record["pid"]) == record["start"]
        return int(record["pid"]) if alive else None

    def names(self) -> list[str]:
        """Every program that was started and not yet stopped."""
        return sorted(path.stem for path in self._layout.run.glob("*.json"))

    def stop(self, *names: str, grace_seconds: float = 5.0) -> None:
        """End ``names`` together: SIGTERM, and SIGKILL when the grace is over."""
        end_processes([pid for name in names if (pid := self.pid(name)) is not None], grace_seconds=grace_seconds)
        for name in names:
            self._record(name).unlink(missing_ok=True)

    def stop_unrecorded(self) -> None:
        """End what carries our mark and no record: the leftovers of a start that was itself killed."""
        mark = f"{_MARK}={self._layout.state}".encode()
        found = []
        for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        end_processes(found, grace_seconds=5)

    def tail(self, name: str, lines: int = 15) -> str:
        """Last lines of a program's log."""
        try:
            text = (self._layout.logs / f"{name}.log").read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def wait_for(self, name: str, ready: Callable[[], bool], *, seconds: float) -> None:
        """Wait until ``ready()``.

        Raises:
            ClusterError: the program ended, or was not ready in time; its last log lines are in the message.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            if self.pid(name) is None:
                raise ClusterError(f"{name} ended at its start:\n{self.tail(name)}")
            if time.monotonic() > deadline:
                raise ClusterError(f"{name} was not ready after {seconds:.0f} s:\n{self.tail(name)}")
            time.sleep(0.1)


def end_processes(pids: Iterable[int], *, grace_seconds: float) -> None:
    """SIGTERM to all, wait on the processes themselves, SIGKILL to what is left after ``grace_seconds``; at once
    SIGKILL where these are 0.

    By descriptors, so that a pid that is given out anew meanwhile is never hit.
    """
    with contextlib.ExitStack() as stack:
        handles = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(pid))
                stack.callback(os.close, handles[-1])
        for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
            if not seconds:
                continue
            for handle in handles:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
            handles = _still_running(handles, seconds)


def _still_running(handles: list[int], seconds: float) -> list[int]:
    poller = select.poll()
    for handle in handles:
        poller.register(handle, select.POLLIN)
    running, deadline = set(handles), time.monotonic() + seconds
    while running and (left := deadline - time.monotonic()) > 0:
        for handle, _ in poller.poll(left * 1000):
            poller.unregister(handle)
            running.discard(handle)
    return sorted(running)
