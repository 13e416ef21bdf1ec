"""Checkpoints that are complete or not there: written aside, flushed, renamed, with sizes and hashes of every file.

``<output>/checkpoints/checkpoint-<step>/`` holds what transformers.Trainer writes, and ``manifest.json``. Only one
whose manifest agrees with its files is resumed from; a torn one is passed over, and an older one taken.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api.status import CheckpointStatus

from finetune_trainer.errors import writing_to
from finetune_trainer.files import read_json, sha256_file, whole_directory, write_json
from finetune_trainer.log import log
from finetune_trainer.world import ALONE, World

DIRECTORY = "checkpoints"
MANIFEST = "manifest.json"
_NAME = re.compile(r"^checkpoint-(\d+)$")


class Checkpoints:
    """The checkpoints of one job."""

    def __init__(self, output: Path, keep: int) -> None:
        self.directory = output / DIRECTORY
        self._keep = keep

    @contextmanager
    def writing(self, step: int, facts: dict[str, Any], world: World = ALONE) -> Iterator[Path]:
        """Yield a directory that becomes the checkpoint of ``step`` when the block ends well.

        Older ones than the newest ``keep`` are removed after that, never before.

        Args:
            step: optimizer steps done.
            facts: kept in the manifest, see :meth:`facts_of`.
            world: whose processes all write into the directory; the main one makes it whole when all are done.

        Raises:
            TrainerError: the volume is full or cannot be written; earlier checkpoints stay.
        """
        target = self.path_of(step)
        if not world.main:
            with writing_to(target, "output"):
                yield Path(world.share(None))
            world.barrier()  # written
            world.barrier()  # whole
            return
        with writing_to(target, "output"), whole_directory(target) as aside:
            world.share(str(aside))
            yield aside
            world.barrier()
            files = sorted(path for path in aside.rglob("*") if path.is_file())
            listed = {
                str(path.relative_to(aside)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                for path in files
            }
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            write_json(aside / MANIFEST, {"step": step, "time": now, "facts": facts, "files": listed})
        for old in self._steps()[self._keep :]:
            shutil.rmtree(self.path_of(old), ignore_errors=True)
        world.barrier()

    def newest(self) -> Path | None:
        """The newest complete checkpoint; None where there is none."""
        for step in self._steps():
            path = self.path_of(step)
            problem = _problem(path)
            if problem is None:
                return path
            log.warning("%s is passed over: %s", path.name, problem)
        return None

    def path_of(self, step: int) -> Path:
        """Directory of the checkpoint of ``step``."""
        return self.directory / f"checkpoint-{step}"

    def status_of(self, path: Path) -> CheckpointStatus:
        """What the resource says of it."""
        manifest = read_json(path / MANIFEST)
        return CheckpointStatus(step=manifest["step"], path=f"{DIRECTORY}/{path.name}", time=manifest["time"])

    def facts_of(self, path: Path) -> dict[str, Any]:
        """What was given to :meth:`writing`."""
        facts: dict[str, Any] = read_json(path / MANIFEST)["facts"]
        return facts

    def _steps(self) -> list[int]:
        """Steps that have a directory, newest first."""
        if not self.directory.is_dir():
            return []
        found = (_NAME.match(path.name) for path in self.directory.iterdir())
        return sorted((int(match.group(1)) for match in found if match), reverse=True)


def _problem(path: Path) -> str | None:
    try:
        manifest = read_json(path / MANIFEST)
    except ValueError:
        return f"its {MANIFEST} is torn"
    if manifest is None:
        return f"it has no {MANIFEST}"
    for name, facts in manifest["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != facts["bytes"]:
            return f"{name} is missing or cut off"
        if sha256_file(file) != facts["sha256"]:
            return f"{name} is damaged"
    return None
