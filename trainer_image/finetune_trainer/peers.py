"""What launcher and workers of one node know of each other, without importing torch.

Each worker writes its process id and, at its end, its report into a directory of the launcher's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_api.failures import ExitCode
from finetune_api.reports import TerminationReport

DIRECTORY_ENV = "FINETUNE_PEERS"
"""The launcher's directory; set in workers alone."""
COLLECTIVE_SECONDS = 1800
"""Longest that a process waits for its peers in one operation. Rank 0 hashes a checkpoint meanwhile, at about a
gigabyte a second."""
_TOLD = "told"
_PR_SET_PDEATHSIG = 1
_LOST = re.compile(
    r"gloo.*(connection (closed|reset)|timed? ?out|broken pipe|socket|unexpected end)"
    r"|connection (closed|reset) by peer|broken pipe"
    r"|timed out waiting|nccl (communicator|error|operation)|ncclremoteerror|collective.*timeout|wait timeout",
    re.IGNORECASE | re.DOTALL,
)


def is_worker() -> bool:
    """Whether the launcher started this process."""
    return DIRECTORY_ENV in os.environ


def die_with_parent() -> None:
    """Be killed when the launcher is: it has no time to end its workers then, and they would hold their GPUs."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before
            os.kill(os.getpid(), signal.SIGKILL)


def lost_peer(error: BaseException) -> bool:
    """Whether ``error`` follows from another process's end or silence, and is no cause of its own."""
    seen: BaseException | None = error
    while seen is not None:
        name = type(seen).__name__
        if name in ("DistBackendError", "DistNetworkError", "DistStoreError"):
            return True
        if isinstance(seen, RuntimeError) and _LOST.search(str(seen)):
            return True
        seen = seen.__cause__
    return False


@dataclass(frozen=True)
class Ended:
    """How a process of this node ended."""

    rank: int
    time: float
    """Unix time."""
    report: TerminationReport


class Peers:
    """The directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    # -- a worker's side ---------------------------------------------------------------------------------------

    def enter(self, rank: int) -> bool:
        """Say that the worker of ``rank`` is there and takes signals; whether it was told to end before."""
        (self._directory / f"{rank}.pid").write_text(str(os.getpid()))
        return (self._directory / _TOLD).exists()

    def leave(self, rank: int, report: TerminationReport) -> None:
        """Leave the last word of ``rank``."""
        body = {"time": time.time(), "report": report.model_dump(mode="json", by_alias=True, exclude_none=True)}
        aside = self._directory / f".{rank}.json"
        aside.write_text(json.dumps(body))
        aside.replace(self._directory / f"{rank}.json")

    # -- the launcher's side -----------------------------------------------------------------------------------

    def tell(self) -> None:
        """Tell all workers to end, also those that are about to enter."""
        (self._directory / _TOLD).touch()
        for file in self._directory.glob("*.pid"):
            with contextlib.suppress(ValueError, ProcessLookupError):  # it is being written: it will see the file
                os.kill(int(file.read_text()), signal.SIGTERM)

    def ended(self, exits: Mapping[int, tuple[int, float]]) -> list[Ended]:
        """All that left word, and those that died without.

        Args:
            exits: exit code (negative: the signal) and Unix time of processes that failed, by rank.
        """
        found = {int(file.stem): self._read(file) for file in self._directory.glob("[0-9]*.json")}
        for rank, (code, moment) in exits.items():
            if rank not in found:
                found[rank] = Ended(rank, moment, _died(rank, code))
        return sorted(found.values(), key=lambda one: one.rank)

    @staticmethod
    def _read(file: Path) -> Ended:
        body = json.loads(file.read_text())
        return Ended(int(file.stem), body["time"], TerminationReport.model_validate(body["report"]))


def _died(rank: int, code: int) -> TerminationReport:
    """The report of a process that could not write one."""
    if code == -signal.SIGABRT:
        exit_code = ExitCode.COLLECTIVE_TIMEOUT
        how = f"aborted, as NCCL's watchdog does after {COLLECTIVE_SECONDS} s without its peers"
    elif code == -signal.SIGKILL:
        exit_code = ExitCode.TRAINER_CRASH
        how = "was killed (SIGKILL), as the kernel does to a process when memory is short"
    else:
        exit_code = ExitCode.TRAINER_CRASH
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return TerminationReport(step="train", exit_code=exit_code, rank=rank, message=f"rank {rank} {how}")


def verdict(ended: list[Ended], *, told: bool) -> TerminationReport:
    """One report for the node: the lowest rank's when all is well, else that of the first cause.

    A process whose peer is gone, or that the launcher ended for that, is no cause.

    Args:
        ended: every process that left word or died; at least one.
        told: whether the launcher itself was told to end.
    """
    failed = [one for one in ended if one.report.exit_code != ExitCode.OK]
    if not failed:
        return min(ended, key=lambda one: one.rank).report
    follows = [ExitCode.INTERRUPTED, ExitCode.COLLECTIVE_TIMEOUT]
    if not told and any(one.report.exit_code == ExitCode.COLLECTIVE_TIMEOUT for one in failed):
        follows.reverse()  # it was the launcher that told the others

    def order(one: Ended) -> tuple[int, float]:
        code = one.report.exit_code
        return (follows.index(ExitCode(code)) + 1 if code in follows else 0, one.time)

    first = min(failed, key=order)
    return first.report.model_copy(update={"rank": first.rank})
