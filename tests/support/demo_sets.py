"""LLaMA-Factory's demo sets: what people have in front of them as they write their first rows.

Its source archive on the package index carries them (Apache-2.0). It is pinned by hash and read once; the sets are kept
in the cache, outside the checkout.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from functools import cache
from pathlib import Path

from package_archives import cache_directory, download

REQUIREMENT = "llamafactory==0.9.5"
SHA256 = "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f"


@cache
def demo_set(name: str) -> Path:
    """The file ``name`` of the archive's ``data`` folder, such as ``alpaca_en_demo.json``."""
    kept = cache_directory("demo-sets") / SHA256[:16]
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".download-") as directory:
            unpacked = _unpack(download(REQUIREMENT, "sdist", SHA256, Path(directory)), Path(directory) / "sets")
            if not kept.exists():
                unpacked.rename(kept)
    return kept / name


def _unpack(archive: Path, target: Path) -> Path:
    target.mkdir()
    with tarfile.open(archive) as members:
        for member in members:
            folder, name = os.path.split(member.name)
            if folder.endswith("/data") and folder.count("/") == 1 and (stream := members.extractfile(member)):
                (target / name).write_bytes(stream.read())
    return target
