"""The operator that is measured: a process of its own, with the rights that the chart gives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from furnish import SYSTEM, apply, until
from plane import Plane, Usage

from chart import of_kind, render  # isort: skip - plane makes it importable
from operator_process import free_ports  # isort: skip - as above
from finetune_operator.cluster.client import ApiClient, path_of

ACCOUNT = "tuner-finetune-operator"
USER = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


class Operator:
    """The operator while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], metrics_port: int) -> None:
        self.process, self._port = process, metrics_port
        self.usage = Usage({"operator": process.pid})

    def phases(self) -> Counter[str]:
        """FineTuneJobs by phase, as its metrics tell."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the operator ended with exit code {self.process.returncode}")
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=30) as response:
            text = response.read().decode()
        found = re.findall(r'^finetune_jobs\{phase="(\w+)"\} ([\d.e+]+)$', text, re.MULTILINE)
        return Counter({phase: int(float(count)) for phase, count in found})

    async def reaches(self, phase: str, count: int, seconds: float) -> None:
        """Wait until so many jobs are in ``phase``."""

        async def reached() -> bool:
            return (await asyncio.to_thread(self.phases))[phase] >= count

        await until(f"{count} jobs are {phase}", reached, seconds, every=1)


@contextlib.asynccontextmanager
async def running_operator(
    api: ApiClient, plane: Plane, *, log: Path, profile: Path | None = None
) -> AsyncIterator[Operator]:
    """Run it for the length of the block, its output in ``log``; ``profile`` takes cProfile's data."""
    for body in of_kind(render(namespace=SYSTEM), *RIGHTS):
        await apply(api, body)
    path = path_of("api/v1", "serviceaccounts", SYSTEM, ACCOUNT, "token")
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 21600}}
    token = (await api.request("POST", path, body=request))["status"]["token"]
    metrics_port, progress_port = free_ports(2)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FINETUNE_")}
    environment = kept | {
        "KUBECONFIG": str(plane.kubeconfig_of(ACCOUNT, token)),
        "FINETUNE_NAMESPACE": SYSTEM,
        "FINETUNE_TLS_SECRET": f"{ACCOUNT}-tls",
        "FINETUNE_LEASE": ACCOUNT,
        # Where all of a control plane shares two cores with others, an answer may take longer than a Lease is patient.
        "FINETUNE_LEASE_SECONDS": "60",
        "FINETUNE_TRAINER_IMAGE": "registry/trainer:1",
        "FINETUNE_PROGRESS_URL": f"https://localhost:{progress_port}",
        "FINETUNE_PROGRESS_PORT": str(progress_port),
        "FINETUNE_METRICS_PORT": str(metrics_port),
    }
    profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
    process = _start([sys.executable, *profiler, "-m", "finetune_operator"], environment, log)
    operator = Operator(process, metrics_port)
    try:
        await until("the operator is ready", lambda: asyncio.to_thread(_ready, operator, metrics_port), 60)
        yield operator
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 60)


def _start(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=file)


def _ready(operator: Operator, port: int) -> bool:
    if operator.process.poll() is not None:
        raise RuntimeError(f"the operator ended with exit code {operator.process.returncode}")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
