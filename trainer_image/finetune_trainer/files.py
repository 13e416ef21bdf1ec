"""Writing that cannot be torn: aside, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STALE_SECONDS = 24 * 3600
"""A directory aside that is older belongs to a process that died."""


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file, or a directory's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_tree(directory: Path) -> None:
    """Flush all files and directories below ``directory``, and itself."""
    for path in sorted(directory.rglob("*"), reverse=True):
        fsync_path(path)
    fsync_path(directory)


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON, whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        fsync_path(aside)
        aside.replace(path)
        fsync_path(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """The JSON in ``path``; None where there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Yield a directory aside that becomes ``target`` when the block ends well, and vanishes when it does not.

    An existing ``target`` is replaced only then; it stays as it was until the new one is complete on the disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target.parent)
    # Random, since the process ids of two pods that share a volume are often the same.
    mark = secrets.token_hex(6)
    aside = target.with_name(f".{target.name}.{mark}.part")
    aside.mkdir()
    try:
        yield aside
        fsync_tree(aside)
        if target.exists():
            old = target.with_name(f".{target.name}.{mark}.old.part")
            target.rename(old)
            aside.rename(target)
            shutil.rmtree(old)
        else:
            aside.rename(target)
        fsync_path(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(directory: Path) -> None:
    for path in directory.glob(".*.part"):
        with contextlib.suppress(OSError):  # another process may be at the same cleaning
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
