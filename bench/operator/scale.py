#!/usr/bin/env python3
"""How the operator fares with many jobs: a real control plane, kwok's nodes and pods, the real flow.

    python bench/operator/scale.py --jobs 1000                   a burst: all applied at once, until all have ended
    python bench/operator/scale.py --jobs 500 --present 5000 --running 500
                                            and then copies of those that ended, and so many that train and report

Prints one JSON object with the figures, and what is wrong: a Job that is missing or there twice, a status that is not
as it should be. Exit code 1 where anything is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import audit
import fleet
import yaml
from plane import ROOT, Body, Plane, Usage, free_ports, running_plane
from seed import multiply

from chart import of_kind, render  # isort: skip - plane makes it importable
from finetune_operator.cluster.client import APPLY_PATCH, ApiClient, path_of

SYSTEM, ACCOUNT = "finetune-system", "tuner-finetune-operator"
USER = f"system:serviceaccount:{SYSTEM}:{ACCOUNT}"
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
JOBS = path_of("apis/finetune.dev/v1alpha1", "finetunejobs", fleet.NAMESPACE)
AT_ONCE = 32
"""Requests of the benchmark's own client at a time."""


async def main() -> int:
    """Run what the command line says."""
    options = _options()
    running = asyncio.current_task()
    assert running is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)  # so that nothing is left behind
    wrong: list[str] = []
    figures: Body = {"jobs": options.jobs, "nodes": options.nodes}
    with tempfile.TemporaryDirectory(prefix="finetune-scale-") as scratch, running_plane(Path(scratch) / "s") as plane:
        os.environ["KUBECONFIG"] = str(plane.kubeconfig)
        api = await ApiClient.connect()
        try:
            await _furnish(api, plane, options)
            async with _operator(api, plane, options) as operator:
                figures["idle"] = {"rss MiB": _round(operator.usage.mebibytes("VmRSS"))["operator"]}
                for done in range(0, options.jobs, options.wave):
                    count = min(options.wave, options.jobs - done)
                    names = [f"job-{index:05}" for index in range(done, done + count)]
                    figures.setdefault("bursts", []).append(await _burst(api, plane, operator, names, wrong))
                    print(json.dumps(figures["bursts"][-1]), file=sys.stderr, flush=True)
                wrong += await _check(api, options.jobs)
                if options.present > options.jobs + options.running:
                    figures["seeding"] = await _seed(plane, operator, options)
                if options.running:
                    figures["steady"] = await _steady(api, plane, operator, options, wrong)
        finally:
            await api.close()
    figures["wrong"] = wrong[:20]
    print(json.dumps(figures, indent=1))
    return 1 if wrong else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000, help="jobs that are applied and end")
    parser.add_argument("--wave", type=int, default=1000, help="so many of them at once")
    parser.add_argument("--present", type=int, default=0, help="jobs in all; what lacks are copies of ended ones")
    parser.add_argument("--running", type=int, default=0, help="jobs that train afterwards, until the end")
    parser.add_argument("--steady-seconds", type=float, default=120, help="how long these are watched")
    parser.add_argument("--progress-seconds", type=float, default=10, help="between two posts of one job")
    parser.add_argument("--nodes", type=int, default=500, help="nodes of eight GPUs")
    parser.add_argument("--prepare-seconds", type=float, default=2, help="how long a prepare pod takes")
    parser.add_argument("--train-seconds", type=float, default=5, help="how long a training pod takes")
    parser.add_argument("--profile", type=Path, help="write cProfile's data of the operator here")
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="the operator's log")
    return parser.parse_args()


# -- the cluster -----------------------------------------------------------------------------------------------------


async def _furnish(api: ApiClient, plane: Plane, options: argparse.Namespace) -> None:
    """CRDs, nodes, namespaces, volumes."""
    crds = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in (SYSTEM, fleet.NAMESPACE)]
    await _each(crds, lambda crd: _apply(api, crd))
    await _each(namespaces, lambda body: _apply(api, body))
    await _each(fleet.volumes(), lambda body: _apply(api, body))
    await _each(fleet.nodes(options.nodes), lambda node: api.request("POST", "/api/v1/nodes", body=node))
    plane.start_kwok(fleet.stages(prepare_seconds=options.prepare_seconds, train_seconds=options.train_seconds))
    await _until("the CRDs are established", lambda: _answers(api, JOBS))
    await _until("the nodes are ready", lambda: _nodes_ready(api, options.nodes))
    claim = path_of("api/v1", "persistentvolumeclaims", fleet.NAMESPACE, fleet.CLAIM)
    await _until("the claim is bound", lambda: _field(api, claim, "status", "phase", wanted="Bound"))
    account = path_of("api/v1", "serviceaccounts", fleet.NAMESPACE, "default")
    await _until("the service account is there", lambda: _answers(api, account))


_PLURALS = {
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "Namespace": ("api/v1", "namespaces"),
    "PersistentVolume": ("api/v1", "persistentvolumes"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    **{
        kind: ("apis/rbac.authorization.k8s.io/v1", f"{kind.lower()}s")
        for kind in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")
    },
}


async def _apply(api: ApiClient, body: Body) -> None:
    group, plural = _PLURALS[body["kind"]]
    path = path_of(group, plural, body["metadata"].get("namespace"), body["metadata"]["name"])
    query = {"fieldManager": "bench", "force": "true"}
    await api.request("PATCH", path, query=query, body=body, content_type=APPLY_PATCH)


async def _each(items: Iterable[Any], work: Callable[[Any], Any]) -> None:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(item: Any) -> None:
        async with slots:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(one(item))


async def _until(what: str, holds: Callable[[], Any], seconds: float = 120, every: float = 0.5) -> None:
    deadline = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s it is not so that {what}")
        await asyncio.sleep(every)


async def _answers(api: ApiClient, path: str) -> bool:
    with contextlib.suppress(Exception):
        await api.request("GET", path, query={"limit": 1})
        return True
    return False


async def _field(api: ApiClient, path: str, *keys: str, wanted: str) -> bool:
    value: Any = await api.request("GET", path)
    for key in keys:
        value = (value or {}).get(key)
    return bool(value == wanted)


async def _nodes_ready(api: ApiClient, count: int) -> bool:
    nodes = await api.list_all("/api/v1/nodes")
    able = [node for node in nodes if node["status"].get("allocatable", {}).get("nvidia.com/gpu")]
    return sum(not node["spec"].get("taints") for node in able) == count


# -- the operator ----------------------------------------------------------------------------------------------------


class _Operator:
    """The operator as a process of its own, with the rights that the chart gives it."""

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

        await _until(f"{count} jobs are {phase}", reached, seconds, every=1)


@contextlib.asynccontextmanager
async def _operator(api: ApiClient, plane: Plane, options: argparse.Namespace) -> AsyncIterator[_Operator]:
    for body in of_kind(render(namespace=SYSTEM), *RIGHTS):
        await _apply(api, body)
    path = path_of("api/v1", "serviceaccounts", SYSTEM, ACCOUNT, "token")
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 21600}}
    token = (await api.request("POST", path, body=request))["status"]["token"]
    metrics_port, progress_port = free_ports(2)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FINETUNE_")}
    environment = kept | {
        "KUBECONFIG": str(plane.kubeconfig_of(ACCOUNT, token)),
        "FINETUNE_NAMESPACE": SYSTEM,
        "FINETUNE_TLS_SECRET": f"{ACCOUNT}-tls",
        "FINETUNE_TRAINER_IMAGE": "registry/trainer:1",
        "FINETUNE_PROGRESS_URL": f"https://localhost:{progress_port}",
        "FINETUNE_PROGRESS_PORT": str(progress_port),
        "FINETUNE_METRICS_PORT": str(metrics_port),
    }
    profiler = ["-m", "cProfile", "-o", str(options.profile)] if options.profile else []
    with options.log.open("wb") as log:
        command = [sys.executable, *profiler, "-m", "finetune_operator"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        operator = _Operator(process, metrics_port)
        try:
            await _until("the operator is ready", lambda: asyncio.to_thread(_ready, operator, metrics_port), 60)
            yield operator
        finally:
            process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(process.wait, 60)


def _ready(operator: _Operator, port: int) -> bool:
    if operator.process.poll() is not None:
        raise RuntimeError(f"the operator ended with exit code {operator.process.returncode}")
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


# -- what is measured ------------------------------------------------------------------------------------------------


async def _burst(api: ApiClient, plane: Plane, operator: _Operator, names: Sequence[str], wrong: list[str]) -> Body:
    """Apply all at once and wait for their ends."""
    ended = operator.phases()["Succeeded"]
    offset = plane.audit_log.stat().st_size
    usage, ours = Usage(plane.pids), Usage({"operator": operator.process.pid})
    begun = time.monotonic()
    await _each(names, lambda name: api.request("POST", JOBS, body=fleet.finetunejob(name)))
    applied = time.monotonic() - begun
    try:
        await operator.reaches("Succeeded", ended + len(names), seconds=120 + len(names))
    except TimeoutError as error:
        wrong.append(str(error))
    wall = time.monotonic() - begun
    spent = ours.seconds()["operator"]
    await asyncio.sleep(3)  # what is asked for after the last status, such as events; and the log's own buffer
    account = audit.read(plane.audit_log, USER, offset=offset)
    wrong += _twice(account, names)
    count = len(names)
    return {
        "jobs": count,
        "applied within s": round(applied, 1),
        "all ended after s": round(wall, 1),
        "apply to prepare Job s": _delays(account, names, "prepare"),
        "apply to training Job s": _delays(account, names, "train-1"),
        "training Jobs a second": _rate(account, names),
        "writes a job": round(account.writes / count, 2),
        "reads a job": round(account.reads / count, 2),
        "calls a job": {f"{verb} {what}": round(n / count, 3) for (verb, what), n in account.operator.most_common()},
        "refused": {" ".join(map(str, call)): n for call, n in account.refused.most_common(5)},
        "writes a job, whole system": round(sum(account.everybody.values()) / count, 1),
        "operator cpu s": round(spent, 2),
        "operator cpu ms a job": round(1000 * spent / count, 1),
        "operator rss MiB": _round(operator.usage.mebibytes("VmRSS"))["operator"],
        "operator peak rss MiB": _round(operator.usage.mebibytes("VmHWM"))["operator"],
        "others' cpu s": _round(usage.seconds()),
    }


def _child(name: str, step: str) -> tuple[str, str]:
    return "jobs", f"{name}-{step}"


def _twice(account: audit.Account, names: Sequence[str]) -> list[str]:
    wrong = []
    for name in names:
        for step in ("prepare", "train-1"):
            times = len(account.created.get(_child(name, step), ()))
            if times != 1:
                wrong.append(f"Job {name}-{step} was created {times} times")
    return wrong


def _delays(account: audit.Account, names: Sequence[str], step: str) -> Body:
    seconds = sorted(
        (account.created[child][0] - account.asked[name]).total_seconds()
        for name in names
        if (child := _child(name, step)) in account.created
    )
    if not seconds:
        return {}
    last = len(seconds) - 1
    return {f"p{share}": round(seconds[round(last * share / 100)], 2) for share in (50, 99, 100)}


def _rate(account: audit.Account, names: Sequence[str]) -> float | None:
    made = [account.created[child][0] for name in names if (child := _child(name, "train-1")) in account.created]
    if not made:
        return None
    seconds = (max(made) - min(account.asked[name] for name in names)).total_seconds()
    return round(len(made) / seconds, 1)


async def _check(api: ApiClient, count: int) -> list[str]:
    """What is not as it should be, once all have ended."""
    jobs = await api.list_all(JOBS)
    children = Counter(
        (job["metadata"]["labels"]["finetune.dev/job"], job["metadata"]["labels"]["finetune.dev/component"])
        for job in await api.list_all(path_of("apis/batch/v1", "jobs", fleet.NAMESPACE))
    )
    wrong = [] if len(jobs) == count else [f"there are {len(jobs)} FineTuneJobs and not {count}"]
    for job in jobs:
        name, status = job["metadata"]["name"], job.get("status") or {}
        held = {condition["type"] for condition in status.get("conditions", ()) if condition["status"] == "True"}
        wanted = {
            "phase": (status.get("phase"), "Succeeded"),
            "attempt": (status.get("attempt"), 1),
            "conditions": (held, {"Accepted", "Prepared", "Complete", "Ready"}),
            "samples": ((status.get("dataset") or {}).get("samples"), fleet.SAMPLES),
            "step": ((status.get("progress") or {}).get("step"), fleet.STEPS),
            "digest": (
                (status.get("output") or {}).get("digest"),
                fleet.TRAINED.output and fleet.TRAINED.output.digest,
            ),
            "observed generation": (status.get("observedGeneration"), job["metadata"]["generation"]),
            "failure": (status.get("failure"), None),
            "Jobs": ((children[name, "prepare"], children[name, "train"]), (1, 1)),
        }
        wrong += [f"{name}: {what} is {is_!r}" for what, (is_, should) in wanted.items() if is_ != should]
    return wrong


async def _seed(plane: Plane, operator: _Operator, options: argparse.Namespace) -> Body:
    """Copies of ended jobs, as of a cluster that has done its work for months."""
    ended = options.present - options.running
    usage = Usage({"operator": operator.process.pid})
    await multiply(plane, options.jobs, ended)
    await operator.reaches("Succeeded", ended, seconds=300)
    await asyncio.sleep(10)
    spent = usage.seconds()["operator"]
    return {
        "ended jobs": ended,
        "operator cpu ms a copy": round(1000 * spent / (ended - options.jobs), 1),
        "operator rss MiB": _round(operator.usage.mebibytes("VmRSS"))["operator"],
    }


async def _steady(
    api: ApiClient, plane: Plane, operator: _Operator, options: argparse.Namespace, wrong: list[str]
) -> Body:
    """Jobs that train and report, beside all that ended."""
    names = [f"{fleet.LONG}{index:05}" for index in range(options.running)]
    await _each(names, lambda name: api.request("POST", JOBS, body=fleet.finetunejob(name)))
    await operator.reaches("Running", len(names), seconds=300)
    script = Path(__file__).with_name("simulator.py")
    command = [sys.executable, str(script), "--kubeconfig", str(plane.kubeconfig), "--namespace", fleet.NAMESPACE]
    simulator = subprocess.Popen([*command, "--seconds", str(options.progress_seconds)], stdout=subprocess.PIPE)
    try:
        await asyncio.sleep(3 * options.progress_seconds)  # tokens are reviewed once, at the first post
        offset = plane.audit_log.stat().st_size
        usage, ours = Usage(plane.pids), Usage({"operator": operator.process.pid})
        begun = time.monotonic()
        await asyncio.sleep(options.steady_seconds)
        seconds = time.monotonic() - begun
        spent = ours.seconds()["operator"]
        await asyncio.sleep(3)
    finally:
        simulator.terminate()
        told = simulator.communicate()[0].decode().splitlines()
    account = audit.read(plane.audit_log, USER, offset=offset)
    jobs = [job for job in await api.list_all(JOBS) if job["metadata"]["name"].startswith(fleet.LONG)]
    for job in jobs:
        status = job["status"]
        if status.get("phase") != "Running" or (status.get("progress") or {}).get("step", 0) < 10:
            wrong.append(f"{job['metadata']['name']}: {status.get('phase')}, {status.get('progress')}")
    return {
        "present": len(await api.list_all(JOBS)),
        "running": options.running,
        "seconds": round(seconds, 1),
        "operator cores": round(spent / seconds, 3),
        "operator rss MiB": _round(operator.usage.mebibytes("VmRSS"))["operator"],
        "operator peak rss MiB": _round(operator.usage.mebibytes("VmHWM"))["operator"],
        "writes a second": round(account.writes / seconds, 1),
        "reads a second": round(account.reads / seconds, 1),
        "calls a second": {
            f"{verb} {what}": round(n / seconds, 2) for (verb, what), n in account.operator.most_common()
        },
        "posts": json.loads(told[-1]) if told else None,
        "others' cores": {name: round(value / seconds, 2) for name, value in usage.seconds().items()},
    }


def _round(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
