"""``finetune run``: the manifest's training on this machine, by the same trainer, with no cluster."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from finetune_api.failures import REASONS, ExitCode, reason_of_exit_code
from finetune_api.job import FineTuneJob
from finetune_api.reports import TERMINATION_PATH_ENV, TerminationReport
from finetune_api.status import Failure
from finetune_api.trainer_config import (
    ATTEMPT_ENV,
    PROGRESS_CA_FILE_ENV,
    PROGRESS_TOKEN_FILE_ENV,
    PROGRESS_URL_ENV,
    TrainerConfig,
)
from pydantic import ValidationError
from rich.text import Text

from finetune_cli.console import note, out
from finetune_cli.curve import PROGRESS_FILE, read_curve
from finetune_cli.documents import read_documents
from finetune_cli.errors import CliError
from finetune_cli.local_job import LocalPlan, cache_directory, find_job, plan, threads
from finetune_cli.progress_view import ProgressView
from finetune_cli.results import describe_dataset, held_out, show_failure, show_samples
from finetune_cli.trainer_process import Ended, Follower, TrainerProcess

TRAINER = (sys.executable, "-m", "finetune_trainer.cli")
WORK = ".finetune"
"""Our own directory in the output: configuration, sources, logs, reports. The rest is the trainer's."""
INTERRUPTED = 130


def run(
    paths: list[str],
    *,
    job: str | None = None,
    output: Path | None = None,
    cache: Path | None = None,
    trainer: Sequence[str] = TRAINER,
) -> int:
    """Prepare and train the job in ``paths``; the exit code.

    Args:
        paths: files, directories, or ``-``.
        job: name of the FineTuneJob, where there are several.
        output: directory of checkpoints and result; None: ``runs/<name>``.
        cache: directory of models and prepared data; None: see :func:`cache_directory`.
        trainer: command line of ``finetune-train``.

    Raises:
        CliError: the manifest cannot be run here, or the directory is another run's.
    """
    documents = read_documents(paths)
    document, found = find_job(documents, job)
    target = (output or Path("runs") / found.metadata.name).absolute()
    made = plan(
        found, documents, output=target, cache=(cache or cache_directory()).absolute(), work=target / WORK
    )  # fmt: skip
    if tuple(trainer) == TRAINER:
        require_trainer()
    with _held(target):
        _require_same(made, target, document.file)
        made.lay_out()
        for line in made.notes:
            note(line)
        command = f"finetune run {' '.join(f'-f {shlex.quote(path)}' for path in paths)}"
        return _Run(found, made.config, target, trainer, command).go()


def require_trainer() -> None:
    """Refuse to begin where the trainer's libraries are not installed.

    Raises:
        CliError: it names them.
    """
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise CliError(f"training here needs the trainer's libraries, and {', '.join(missing)} is not installed: "
                       "pip install 'finetune-operator[trainer]'")  # fmt: skip


@contextmanager
def _held(target: Path) -> Iterator[None]:
    """Keep a second run out of the directory. The trainer inherits the lock, so it holds as long as either lives."""
    try:
        (target / WORK).mkdir(parents=True, exist_ok=True)
        lock = (target / WORK / "lock").open("w")
    except OSError as error:
        raise CliError(f"{target} cannot be written: {error.strerror}; name another directory with -o") from error
    with lock:
        os.set_inheritable(lock.fileno(), True)  # noqa: FBT003 - the library's signature
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CliError(f"another finetune run is at work in {target}") from error
        yield


def _require_same(made: LocalPlan, target: Path, file: str) -> None:
    """A directory belongs to one manifest, as a FineTuneJob's spec is immutable: else old checkpoints would go on
    with new numbers."""
    path = target / WORK / "config.json"
    sources_differ = any(place.exists() and place.read_bytes() != content for place, content in made.files.items())
    try:
        before = TrainerConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return
    except ValidationError:
        before = None
    if before is None or sources_differ or before.model_copy(update={"paths": made.config.paths}) != made.config:
        raise CliError(f"{target} holds a run of another version of {file}; name another directory with -o, or "
                       "remove it")  # fmt: skip


class _Run:
    """One attempt: both steps and what is said of them."""

    def __init__(
        self, job: FineTuneJob, config: TrainerConfig, target: Path, trainer: Sequence[str], command: str
    ) -> None:
        self.job, self.target, self.trainer, self.command = job, target, trainer, command
        self.work = target / WORK
        self.config_file = self.work / "config.json"
        self.config_file.write_text(config.to_json())
        self.attempt = self._next_attempt()

    def go(self) -> int:
        """Run; the exit code."""
        with ProgressView(self.job.metadata.name) as view:
            view.phase("Preparing")
            ended = self._step("prepare", view)
            if ended.report is not None and ended.code == ExitCode.OK and not ended.asked:
                if ended.report.dataset:
                    view.say(describe_dataset(ended.report.dataset), "dim")
                if ended.report.model and ended.report.model.trained:
                    view.say(ended.report.model.trained, "dim")
                if self.attempt > 1:
                    view.say(f"attempt {self.attempt}")
                view.phase("Running")
                ended = self._step("train", view)
        if ended.interrupted:
            kept = ended.report.checkpoint if ended.report else None
            what = f"with a checkpoint of step {kept.step}" if kept else "before the first checkpoint"
            note(f"stopped {what}; the same command goes on from there: {self.command}")
            return INTERRUPTED
        if ended.code != ExitCode.OK or ended.report is None:
            show_failure(self._failure(ended))
            note(f"whole log: {ended.log}")
            return 1
        self._show(ended.report)
        return 0

    def _step(self, step: str, view: ProgressView) -> Ended:
        report = self.work / f"{step}-report.json"
        report.unlink(missing_ok=True)
        process = TrainerProcess(
            command=[*self.trainer, step, "--config", str(self.config_file)],
            environment=self._environment(report),
            log=self.work / f"{step}.log",
            report=report,
        )
        return process.run(view, Follower(self.target, view))

    def _environment(self, report: Path) -> dict[str, str]:
        """As a pod's, as far as results may depend on it."""
        wanted, present = threads(self.job.spec.resources.cpu), os.cpu_count() or 1
        if wanted > present and self.attempt == 1:
            note(f"spec.resources.cpu asks for {wanted} CPUs and this machine has {present}")
        environment = dict(os.environ)
        for name in (PROGRESS_URL_ENV, PROGRESS_TOKEN_FILE_ENV, PROGRESS_CA_FILE_ENV):
            environment.pop(name, None)
        environment |= {
            TERMINATION_PATH_ENV: str(report),
            ATTEMPT_ENV: str(self.attempt),
            "OMP_NUM_THREADS": str(min(wanted, present)),
            "PYTHONUNBUFFERED": "1",
        }
        if self.job.spec.distributed.gpus_per_node == 0:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return environment

    def _next_attempt(self) -> int:
        path = self.work / "attempt"
        try:
            attempt = int(path.read_text()) + 1
        except (OSError, ValueError):
            attempt = 1
        path.write_text(str(attempt))
        return attempt

    def _failure(self, ended: Ended) -> Failure:
        reason = reason_of_exit_code(ended.code)
        report = ended.report
        return Failure(
            reason=reason,
            message=(report.message if report else None) or ended.told,
            exit_code=ended.code,
            retryable=REASONS[reason].retryable,
            attempt=self.attempt,
            log_tail=(report.log_tail if report else None) or ended.log_tail(),
        )

    def _show(self, report: TerminationReport) -> None:
        result = self.target / report.output.path if report.output else self.target
        out.print(Text.assemble(("Succeeded: ", "bold green"), str(_short(result))))
        if loss := held_out(report.progress):
            out.print(f"held-out loss: {loss}")
        if report.samples:
            show_samples(report.samples)
        if (self.target / PROGRESS_FILE).exists():
            out.print(read_curve(self.target).draw(out.width))


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
