"""A checkpoint is complete or passed over, whatever happened while it was written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from finetune_api.failures import ExitCode
from finetune_trainer.checkpoints import MANIFEST, Checkpoints
from finetune_trainer.errors import TrainerError


def save(checkpoints: Checkpoints, step: int, content: bytes = b"weights") -> None:
    with checkpoints.writing(step, {"tokens": step * 10}) as directory:
        (directory / "adapter_model.safetensors").write_bytes(content)
        (directory / "sub").mkdir()
        (directory / "sub" / "optimizer.pt").write_bytes(b"state")


def fill_the_volume(checkpoints: Checkpoints, step: int) -> None:
    with checkpoints.writing(step, {}) as directory:
        (directory / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")


def test_the_newest_is_by_number_and_keeps_its_facts(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9)
    for step in (9, 10, 100):
        save(checkpoints, step)
    newest = checkpoints.newest()
    assert newest == checkpoints.path_of(100)
    assert checkpoints.facts_of(newest) == {"tokens": 1000}
    status = checkpoints.status_of(newest)
    assert (status.step, status.path) == (100, "checkpoints/checkpoint-100")


def test_none_where_nothing_was_written(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path, keep=1).newest() is None


def test_older_ones_go_when_a_newer_one_is_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        save(checkpoints, step)
    assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: (path / "adapter_model.safetensors").write_bytes(b"weight"),
        lambda path: (path / "adapter_model.safetensors").write_bytes(b"WEIGHTS"),
        lambda path: (path / "sub" / "optimizer.pt").unlink(),
        lambda path: (path / MANIFEST).unlink(),
        lambda path: (path / MANIFEST).write_text('{"step": 2, "fi'),
    ],
    ids=["cut off", "changed", "missing", "no manifest", "torn manifest"],
)
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: object) -> None:
    checkpoints = Checkpoints(tmp_path, keep=9)
    save(checkpoints, 1)
    save(checkpoints, 2)
    damage(checkpoints.path_of(2))  # type: ignore[operator]
    assert checkpoints.newest() == checkpoints.path_of(1)


def test_a_failed_write_leaves_the_older_one_and_no_trace(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1)
    with pytest.raises(TrainerError) as raised:
        fill_the_volume(checkpoints, 2)
    assert raised.value.exit_code is ExitCode.VOLUME_FULL
    assert checkpoints.newest() == checkpoints.path_of(1)
    assert [path.name for path in checkpoints.directory.iterdir()] == ["checkpoint-1"]


def test_one_that_is_killed_in_mid_write_is_not_there(tmp_path: Path) -> None:
    save(Checkpoints(tmp_path, keep=1), 1)
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from finetune_trainer.checkpoints import Checkpoints
        with Checkpoints(Path(sys.argv[1]), keep=1).writing(2, {}) as directory:
            (directory / "adapter_model.safetensors").write_bytes(b"half")
            print("written", flush=True)
            sys.stdin.read()
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.newest() == checkpoints.path_of(1)
    save(checkpoints, 2)
    assert checkpoints.newest() == checkpoints.path_of(2)
