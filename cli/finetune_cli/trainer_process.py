"""The trainer as a child process: its log to a file, its progress to the terminal, our signals to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from finetune_api.failures import ExitCode
from finetune_api.reports import TerminationReport

from finetune_cli.curve import PROGRESS_FILE, read_progress
from finetune_cli.errors import CliError
from finetune_cli.progress_view import ProgressView

_LOOK_SECONDS = 0.2
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TAIL_LINES = 20
_CHECKPOINT = "checkpoint-"
_NEWEST_BYTES = 4096
_OWN_LINE = re.compile(r"\d\d:\d\d:\d\d I (.+)")


@dataclass(frozen=True)
class Ended:
    """How a step ended."""

    code: int
    report: TerminationReport | None
    log: Path
    asked: bool
    """Whether we were told to stop it."""

    @property
    def interrupted(self) -> bool:
        """Whether it stopped because it was told to."""
        done = self.code == ExitCode.OK and self.report is not None and self.report.step == "train"
        return self.code == ExitCode.INTERRUPTED or (self.asked and not done)

    @property
    def told(self) -> str:
        """What is known where the trainer could not say it."""
        if self.code < 0:
            name = signal.Signals(-self.code).name
            hint = ": most often because memory ran out" if -self.code == signal.SIGKILL else ""
            return f"the trainer was ended by {name}{hint}"
        if self.code == ExitCode.OK:
            return "the trainer ended without a report"
        return f"the trainer ended with exit code {self.code} and no report"

    def log_tail(self) -> str:
        """The log's last lines."""
        with suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        return ""


class Follower:
    """Shows what the trainer writes into the output directory."""

    def __init__(self, output: Path, view: ProgressView) -> None:
        self._view, self._progress, self._checkpoints = view, output / PROGRESS_FILE, output / "checkpoints"
        # What an earlier attempt wrote is no news.
        self._offset = self._progress.stat().st_size if self._progress.exists() else 0
        self._seen = self._listed()

    def look(self) -> None:
        """Show what is new."""
        for line in self._new_lines():
            if progress := read_progress(line):
                self._view.progress(progress)
        listed = self._listed()
        for step in sorted(listed - self._seen):
            self._view.say(f"checkpoint at step {step}", "dim")
        self._seen |= listed

    def _new_lines(self) -> list[str]:
        try:
            with self._progress.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]  # the last line may still be in writing
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()

    def _listed(self) -> set[int]:
        """Steps of checkpoints: a directory has its name only when it is complete."""
        with suppress(FileNotFoundError):
            names = [path.name.removeprefix(_CHECKPOINT) for path in self._checkpoints.glob(f"{_CHECKPOINT}*")]
            return {int(name) for name in names if name.isdigit()}
        return set()


@dataclass
class TrainerProcess:
    """One step."""

    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    report: Path

    def run(self, view: ProgressView, follower: Follower) -> Ended:
        """Run it to its end. What tells us to end (SIGHUP too: the terminal was closed) becomes SIGTERM to it, which
        saves a checkpoint; a second time ends it at once.

        Raises:
            CliError: it cannot be started.
        """
        asked = 0

        def pass_on(_number: int, _frame: FrameType | None) -> None:
            nonlocal asked
            asked += 1
            process.send_signal(signal.SIGTERM if asked == 1 else signal.SIGKILL)

        process = self._start()
        heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
        before = {number: signal.signal(number, pass_on) for number in heard}
        try:
            said = False
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)
                follower.look()
                view.doing(self._newest_line())
                if asked and not said:
                    said = True
                    view.say("stopping; a checkpoint is saved first, a second Ctrl-C does without", "yellow")
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if process.poll() is None:
                process.terminate()
                process.wait()
        return Ended(process.returncode, self._read_report(), self.log, asked > 0)

    def _newest_line(self) -> str:
        """The log's last line that the trainer itself wrote, without its time."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _NEWEST_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
        told = (_OWN_LINE.match(line) for line in reversed(lines))
        return next((found.group(1) for found in told if found), "")

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            try:
                return subprocess.Popen(
                    list(self.command),
                    env=dict(self.environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C goes to the terminal's whole group: the trainer hears of it from us alone.
                    start_new_session=True,
                    close_fds=False,  # it inherits the lock of the output directory
                )
            except OSError as error:
                raise CliError(f"{self.command[0]} cannot be started: {error.strerror}") from error

    def _read_report(self) -> TerminationReport | None:
        try:
            return TerminationReport.decode(self.report.read_bytes())
        except FileNotFoundError:
            return None
