"""Writing that is whole or not there, and what a volume's refusal means."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from finetune_api.failures import ExitCode
from finetune_trainer import errors
from finetune_trainer.errors import TrainerError, writing_to
from finetune_trainer.files import STALE_SECONDS, read_json, whole_directory, write_json
from finetune_trainer.volumes import check_room, check_writable


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_directory_appears_when_it_is_whole(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "made") as aside:
        (aside / "a").write_text("1")
        assert not (tmp_path / "made").exists()
    assert names(tmp_path) == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "1"


def test_a_directory_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "made") as aside:
        (aside / "a").write_text("old")

    def fail() -> None:
        with whole_directory(tmp_path / "made") as aside:
            (aside / "a").write_text("new")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert names(tmp_path) == ["made"]
    assert (tmp_path / "made" / "a").read_text() == "old"


def test_a_directory_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with whole_directory(tmp_path / "made") as aside:
            (aside / name).write_text(name)
    assert names(tmp_path) == ["made"]
    assert names(tmp_path / "made") == ["b"]


def test_what_the_dead_left_behind_is_cleared_and_what_others_write_is_not(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".x.1.part", tmp_path / ".x.2.part"
    dead.mkdir()
    alive.mkdir()
    long_ago = time.time() - STALE_SECONDS - 60
    os.utime(dead, (long_ago, long_ago))
    with whole_directory(tmp_path / "made"):
        pass
    assert names(tmp_path) == [".x.2.part", "made"]


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    assert read_json(file) is None
    write_json(file, {"a": "ü"})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert read_json(file) == {"a": "ü"}
    assert names(tmp_path) == ["a.json"]


class LibraryError(Exception):
    """As safetensors raises: the system's message, no errno."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.VOLUME_FULL),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ExitCode.VOLUME_FULL),
        (LibraryError("I/O error: No space left on device (os error 28)"), ExitCode.VOLUME_FULL),
        (OSError(errno.EROFS, "Read-only file system"), ExitCode.VOLUME_NOT_WRITABLE),
        (PermissionError(errno.EACCES, "Permission denied"), ExitCode.VOLUME_NOT_WRITABLE),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_volume_that_refuses_is_named(error: Exception, code: ExitCode, *, wrapped: bool) -> None:
    def write() -> None:
        with writing_to("/finetune/output/x", "output"):
            if wrapped:
                raise RuntimeError("could not save") from error
            raise error

    with pytest.raises(TrainerError, match=r"the output volume .*/finetune/output/x") as failure:
        write()
    assert failure.value.exit_code is code


@pytest.mark.parametrize("said", ["basic_ios::clear: iostream error", "PytorchStreamWriter failed writing file data/1"])
def test_a_writer_that_does_not_say_why_is_asked_how_much_room_there_is(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.save, on a volume that fills while it writes."""

    def fail() -> None:
        with writing_to(tmp_path / "checkpoint-5", "output"):
            raise RuntimeError(said)

    for free, expected in ((2**20, TrainerError), (2**40, RuntimeError)):
        monkeypatch.setattr(errors.shutil, "disk_usage", lambda _path, free=free: SimpleNamespace(free=free))
        with pytest.raises(expected):
            fail()


def test_other_failures_stay_what_they_are() -> None:
    def fail(error: Exception) -> None:
        with writing_to("/x", "output"):
            raise error

    with pytest.raises(ValueError, match="a bug"):
        fail(ValueError("a bug"))
    with pytest.raises(OSError, match="Input/output error"):
        fail(OSError(errno.EIO, "Input/output error"))
    inner = TrainerError(ExitCode.DATASET_INVALID, "known already")
    with pytest.raises(TrainerError, match="known already"):
        fail(inner)


def test_a_writable_volume_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "volume", "cache")
    assert names(tmp_path / "new" / "volume") == []


def test_room_is_checked_before_it_is_needed(tmp_path: Path) -> None:
    check_room(tmp_path, "cache", needed=1, purpose="a byte")
    with pytest.raises(TrainerError, match=r"the cache volume has .* free .* the model needs about .* GiB") as failure:
        check_room(tmp_path, "cache", needed=2**60, purpose="the model")
    assert failure.value.exit_code is ExitCode.VOLUME_FULL
