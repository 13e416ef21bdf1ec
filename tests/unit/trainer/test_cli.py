"""The program as a pod runs it: exit codes, the termination report, SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TextIO

import pytest
from finetune_api.failures import ExitCode
from finetune_api.reports import TERMINATION_PATH_ENV, TerminationReport
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import cli
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.interruption import Interruption
from trainings import at, configure, output_of


class Pod:
    """Runs ``finetune-train`` as its container does, in a fork of this process: importing torch and transformers
    anew takes longer than all that is tested here."""

    def __init__(self, directory: Path, config: TrainerConfig) -> None:
        self.config, self.termination = directory / "config.json", directory / "termination-log"
        self.config.write_text(config.to_json())

    def start(self, step: str) -> tuple[int, TextIO]:
        """Process id and output."""
        self.termination.unlink(missing_ok=True)
        read, write = os.pipe()
        pid = os.fork()
        if pid:
            os.close(write)
            return pid, os.fdopen(read)
        code = 99
        try:
            os.dup2(write, 1)
            os.dup2(write, 2)
            sys.stdout = sys.stderr = os.fdopen(write, "w", buffering=1)
            os.environ |= {TERMINATION_PATH_ENV: str(self.termination), "FINETUNE_ATTEMPT": "1"}
            cli.main([step, "--config", str(self.config)])
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            os._exit(code)

    def run(self, step: str) -> tuple[int, TerminationReport]:
        """Exit code and last word."""
        pid, output = self.start(step)
        with output:
            output.read()
        return self.wait(pid), self.report()

    @staticmethod
    def wait(pid: int) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def report(self) -> TerminationReport:
        found = TerminationReport.decode(self.termination.read_bytes())
        assert found is not None
        return found


def test_a_pod_that_is_told_to_end_saves_and_the_next_goes_on(tmp_path: Path, tiny: Path) -> None:
    steps = {"maxSteps": 400, "globalBatchSize": 2}
    config = configure(tmp_path, tiny, hyperparameters=steps, checkpoint={"everySteps": 1000, "keep": 2})
    pod = Pod(tmp_path, config)
    code, report = pod.run("prepare")
    assert (code, report.step) == (0, "prepare")
    assert report.model is not None
    assert report.model.trainable_parameters

    pid, output = pod.start("train")
    with output:
        await_line(output, "step 3/400")
        os.kill(pid, signal.SIGTERM)
        rest = output.read()
    assert pod.wait(pid) == ExitCode.INTERRUPTED, rest
    report = pod.report()
    saved = Checkpoints(output_of(config), keep=2).newest()
    assert saved is not None
    assert report.checkpoint is not None
    assert report.checkpoint.path == f"checkpoints/{saved.name}"
    assert report.exit_code == ExitCode.INTERRUPTED
    assert report.progress is not None
    assert 3 <= report.checkpoint.step < 100

    pid, output = pod.start("train")
    with output:
        log = await_line(output, f"step {report.checkpoint.step + 1}/400")
        os.kill(pid, signal.SIGKILL)
    assert pod.wait(pid) == -signal.SIGKILL
    assert f"going on from {saved.name}" in log


def test_a_killed_pod_leaves_nothing_that_changes_the_result(tmp_path: Path, tiny: Path) -> None:
    """The kernel ends it between two lines, with a step behind the checkpoint in progress."""
    killed = configure(
        tmp_path,
        tiny,
        method={"lora": {"rank": 4, "dropout": 0.1}},
        hyperparameters={"maxSteps": 20},
        checkpoint={"everySteps": 3, "keep": 2},
    )
    whole = at(killed, tmp_path / "whole")
    results = []
    for name, config in (("killed", killed), ("whole", whole)):
        (tmp_path / f"{name}-pod").mkdir()
        pod = Pod(tmp_path / f"{name}-pod", config)
        assert pod.run("prepare")[0] == 0
        if config is killed:
            pid, output = pod.start("train")
            with output:
                await_line(output, "step 4/20")
                os.kill(pid, signal.SIGKILL)
            assert pod.wait(pid) == -signal.SIGKILL
            saved = Checkpoints(output_of(config), keep=2).newest()
            assert saved is not None
            assert not output_of(config, "adapter").exists()
        code, report = pod.run("train")
        assert code == 0, report.message
        results.append(output_of(config, "adapter", "adapter_model.safetensors").read_bytes())
    assert results[0] == results[1]


def await_line(output: TextIO, text: str) -> str:
    """What was written up to the line with ``text``."""
    log = ""
    for line in output:
        log += line
        if text in line:
            return log
    raise AssertionError(f"no {text!r} in:\n{log}")


def test_a_failure_says_why_with_its_code(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a", \n')
    code, report = Pod(tmp_path, config).run("prepare")
    assert code == report.exit_code == ExitCode.DATASET_INVALID
    assert report.message is not None
    assert "rows.jsonl:2" in report.message
    assert report.log_tail is not None


def test_training_without_prepared_data_says_so(tmp_path: Path, tiny: Path) -> None:
    pod = Pod(tmp_path, configure(tmp_path, tiny))
    assert cli.run("train", pod.config, Interruption()).exit_code == ExitCode.PREPARED_DATA_MISSING


@pytest.mark.parametrize(
    ("text", "named"),
    [("{", "config.json"), ('{"version": 2}', "version"), (None, "cannot be read")],
    ids=["no JSON", "another version", "missing"],
)
def test_a_configuration_that_is_none_is_told(tmp_path: Path, text: str | None, named: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    report = cli.run("train", path, Interruption())
    assert report.exit_code == ExitCode.CONFIG_INVALID
    assert named in (report.message or "")


def test_what_this_trainer_cannot_do_is_refused_not_left_out(tmp_path: Path, tiny: Path) -> None:
    config = json.loads(configure(tmp_path, tiny).to_json())
    config["template"]["ref"] = "mine"
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    report = cli.run("prepare", path, Interruption())
    assert report.exit_code == ExitCode.CONFIG_INVALID
    assert "template.ref" in (report.message or "")


def test_a_crash_is_reported_with_its_kind(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text(configure(tmp_path, tiny).to_json())

    def crash(_config: TrainerConfig) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(cli, "check_supported", crash)
    report = cli.run("train", path, Interruption())
    assert report.exit_code == ExitCode.TRAINER_CRASH
    assert "KeyError" in (report.message or "")
