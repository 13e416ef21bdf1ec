"""What must be set before torch and the Hugging Face libraries are imported: they read it once, at import."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def set_up(cache: Path) -> None:
    """Set the environment of this process: caches on the cache volume, no telemetry, threads as the limit allows.

    Args:
        cache: the cache volume; `cache/hub` holds models as huggingface_hub lays them out.
    """
    scratch = tempfile.gettempdir()
    os.environ.update(
        {
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            # A writable home of one pod's own: dynamic modules and xet chunks are no part of the shared cache.
            "HF_MODULES_CACHE": f"{scratch}/hf-modules",
            "HF_XET_CACHE": f"{scratch}/hf-xet",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # only the token that the manifest names is sent
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "TOKENIZERS_PARALLELISM": "false",
            # Where KUBEFLOW_TRAINER_SERVER_URL is set, transformers adds its KubeflowCallback whatever report_to says:
            # a second reporter, that knows less and posts from within the training loop.
            "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            # What is compiled once serves the next attempt and the next job.
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "compiled" / "inductor"),
            "TRITON_CACHE_DIR": str(cache / "compiled" / "triton"),
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
            "MPLBACKEND": "agg",
            "MPLCONFIGDIR": f"{scratch}/matplotlib",
            "TRANSFORMERS_VERBOSITY": os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        }
    )
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "10")
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", "30")
    os.environ["OMP_NUM_THREADS"] = str(threads(os.environ))


def threads(environment: Mapping[str, str], cgroup: Path = _CGROUP) -> int:
    """Threads for arithmetic: as OMP_NUM_THREADS says, else the container's CPU limit, else the cores we may use.

    Without this torch takes all of a node's cores and the kernel throttles it to the limit.
    """
    said = environment.get("OMP_NUM_THREADS", "")
    if said.isdigit() and int(said) > 0:
        return int(said)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit(cgroup)
    return max(1, min(cores, math.ceil(limit))) if limit else cores


def cpu_limit(cgroup: Path) -> float | None:
    """Cores that the cgroup (v2 or v1) allows; None where it sets no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        except OSError:
            return None
    if quota == "max" or int(quota) <= 0:
        return None
    return int(quota) / int(period)
