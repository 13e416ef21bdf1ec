"""The volumes, tried before anything is spent: are they writable, and is there room?"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError, writing_to


def check_writable(directory: Path, volume: str) -> None:
    """Make ``directory`` and write a block to it, through to the disk.

    Raises:
        TrainerError: VOLUME_NOT_WRITABLE or VOLUME_FULL, naming ``volume``.
    """
    probe = directory / f".write-test.{secrets.token_hex(6)}"
    with writing_to(directory, volume):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)


def check_room(directory: Path, volume: str, *, needed: int, purpose: str) -> None:
    """Refuse a volume with less than ``needed`` bytes free.

    Raises:
        TrainerError: VOLUME_FULL, with both figures.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise TrainerError(
            ExitCode.VOLUME_FULL,
            f"the {volume} volume has {megabytes(free)} free at {directory}, and {purpose} needs about "
            f"{megabytes(needed)}. Enlarge the claim or free space",
        )


def megabytes(size: int) -> str:
    """``size`` bytes for a person."""
    return f"{size / 2**20:,.0f} MiB" if size < 10 * 2**30 else f"{size / 2**30:,.1f} GiB"
