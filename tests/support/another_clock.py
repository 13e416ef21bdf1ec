"""A process whose clock is minutes off, by Debian's libfaketime."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PACKAGE = "libfaketime"


def minutes_ahead(minutes: int) -> dict[str, str]:
    """Environment of a process whose wall clock is ``minutes`` ahead of this machine's."""
    library = _library()
    if library is None:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", PACKAGE]):
            subprocess.run(["apt-get", *command], env=environment, capture_output=True, check=True)
        library = _library()
    assert library is not None, f"the package {PACKAGE} brings no library where it is looked for"
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{minutes * 60:+d}s", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def _library() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
