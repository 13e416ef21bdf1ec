#!/usr/bin/env python3
"""How the operator fares with many jobs: a real control plane, kwok's nodes and pods, the real flow.

    python bench/operator/scale.py --jobs 1000                   a burst: all applied at once, until all have ended
    python bench/operator/scale.py --jobs 500 --present 5000 --running 500
                                            and then copies of those that ended, the burst again beside them, and so
                                            many that train and report

Prints one JSON object with the figures, and what is wrong: a Job that is missing or there twice, a status that is not
as it should be. Exit code 1 where anything is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import audit
import fleet
from furnish import JOBS, each, furnish
from plane import Body, Plane, Usage, running_plane
from seed import multiply
from subject import USER, Operator, running_operator

from finetune_operator.cluster.client import ApiClient, path_of  # isort: skip - plane makes it importable


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
            stages = fleet.stages(prepare_seconds=options.prepare_seconds, train_seconds=options.train_seconds)
            await furnish(api, plane, stages, options.nodes)
            async with running_operator(api, plane, log=options.log, profile=options.profile) as operator:
                figures["idle"] = {"rss MiB": _round(operator.usage.mebibytes("VmRSS"))["operator"]}
                for done in range(0, options.jobs, options.wave):
                    count = min(options.wave, options.jobs - done)
                    names = [f"job-{index:05}" for index in range(done, done + count)]
                    figures.setdefault("bursts", []).append(await _burst(api, plane, operator, names, wrong))
                    print(json.dumps(figures["bursts"][-1]), file=sys.stderr, flush=True)
                wrong += await _check(api, options.jobs)
                if options.present > options.jobs + options.running:
                    figures["seeding"] = await _seed(plane, operator, options)
                    print(json.dumps(figures["seeding"]), file=sys.stderr, flush=True)
                    names = [f"beside-{index:05}" for index in range(min(options.jobs, options.wave))]
                    figures["burst beside these"] = await _burst(api, plane, operator, names, wrong)
                    print(json.dumps(figures["burst beside these"]), file=sys.stderr, flush=True)
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


async def _burst(api: ApiClient, plane: Plane, operator: Operator, names: Sequence[str], wrong: list[str]) -> Body:
    """Apply all at once and wait for their ends."""
    ended = operator.phases()["Succeeded"]
    offset = plane.audit_log.stat().st_size
    usage, ours = Usage(plane.pids), Usage({"operator": operator.process.pid})
    begun = time.monotonic()
    await each(names, lambda name: api.request("POST", JOBS, body=fleet.finetunejob(name)))
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


async def _seed(plane: Plane, operator: Operator, options: argparse.Namespace) -> Body:
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
    api: ApiClient, plane: Plane, operator: Operator, options: argparse.Namespace, wrong: list[str]
) -> Body:
    """Jobs that train and report, beside all that ended."""
    names = [f"{fleet.LONG}{index:05}" for index in range(options.running)]
    await each(names, lambda name: api.request("POST", JOBS, body=fleet.finetunejob(name)))
    await operator.reaches("Running", len(names), seconds=120 + 2 * len(names))
    script = Path(__file__).with_name("simulator.py")
    command = [sys.executable, str(script), "--kubeconfig", str(plane.kubeconfig), "--namespace", fleet.NAMESPACE]
    simulator = _start([*command, "--seconds", str(options.progress_seconds)])
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


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def _round(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
