"""The operator's replicas on the embedded node: who acts, and how one is killed for real."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from chart import CHART, helm
from finetune_cli.kubectl import Kubectl
from installed import DEPLOYMENT, NAMESPACE, RELEASE
from kubernetes import client, watch

SELECTOR = f"app.kubernetes.io/instance={RELEASE}"
PROGRAM = b"finetune_operator"
ROLLED_SECONDS = 180


class Replicas:
    """Pods of the release that :mod:`installed` installed, and their Lease."""

    def __init__(self, api: client.ApiClient, kubectl: Kubectl) -> None:
        self._core, self._coordination = client.CoreV1Api(api), client.CoordinationV1Api(api)
        self._kubectl = kubectl

    @contextlib.contextmanager
    def of(self, count: int) -> Iterator[None]:
        """Have ``count`` replicas for the length of the block."""
        _upgrade(f"replicas={count}")
        try:
            yield
        finally:
            _upgrade("replicas=1")

    def names(self) -> set[str]:
        """Names of the pods that are there and are not told to end."""
        return set(self._uids())

    def _uids(self) -> dict[str, str]:
        pods = self._core.list_namespaced_pod(NAMESPACE, label_selector=SELECTOR).items
        return {pod.metadata.name: pod.metadata.uid for pod in pods if pod.metadata.deletion_timestamp is None}

    def leader(self) -> str:
        """Who holds the Lease; empty where nobody does."""
        return self.lease().spec.holder_identity or ""

    def lease(self) -> Any:
        """The Lease."""
        return self._coordination.read_namespaced_lease(DEPLOYMENT, NAMESPACE)

    def until(self, holds: Callable[[str], bool], seconds: float) -> str:
        """The holder once ``holds`` of its name."""
        stream = watch.Watch().stream(
            self._coordination.list_namespaced_lease,
            NAMESPACE,
            field_selector=f"metadata.name={DEPLOYMENT}",
            timeout_seconds=int(seconds),
        )
        for event in stream:
            holder = event["object"].spec.holder_identity or ""
            if holds(holder):
                return holder
        raise AssertionError(f"{seconds:.0f} s later the holder is {self.leader()!r}")

    def changes(self, since: str, until: Callable[[str], bool]) -> list[tuple[str, datetime]]:
        """Holders one after the other, each with the time at which it wrote so, from version ``since`` of the Lease
        until ``until`` holds of one."""
        stream = watch.Watch().stream(
            self._coordination.list_namespaced_lease,
            NAMESPACE,
            field_selector=f"metadata.name={DEPLOYMENT}",
            resource_version=since,
            timeout_seconds=60,
        )
        found: list[tuple[str, datetime]] = []
        for event in stream:
            spec = event["object"].spec
            holder = spec.holder_identity or ""
            if not found or found[-1][0] != holder:
                found.append((holder, spec.renew_time))
            if until(holder):
                return found
        raise AssertionError(found)

    def kill(self, pod: str, *, with_its_pod: bool = False) -> float:
        """SIGKILL to the operator's process in ``pod``; gives the time.monotonic() of that.

        Args:
            pod: the pod's name.
            with_its_pod: delete the pod too, so that its container does not start again.
        """
        uid = self._core.read_namespaced_pod(pod, NAMESPACE).metadata.uid
        pids = _pids_in(uid)
        assert pids, f"no process of the operator in pod {pod}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        if with_its_pod:
            self._core.delete_namespaced_pod(pod, NAMESPACE, grace_period_seconds=0)
        return killed

    def kill_any(self, chance: random.Random) -> str:
        """Kill one of those whose process has started, pod and all; gives its name."""
        while True:
            running = sorted(name for name, uid in self._uids().items() if _pids_in(uid))
            if running:
                victim = chance.choice(running)
                self.kill(victim, with_its_pod=True)
                return victim
            time.sleep(0.1)  # a pod of the Deployment's is on its way; its process sends no event

    def metrics(self, pod: str) -> str:
        """What the metrics port of ``pod`` answers, through the API server."""
        return self._kubectl.run("get", "--raw", f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:8080/proxy/metrics")

    def roll(self) -> None:
        """Replace all pods as an upgrade does, and wait for its end."""
        deployment = ("--namespace", NAMESPACE, f"deployment/{DEPLOYMENT}")
        self._kubectl.run("rollout", "restart", *deployment)
        self._kubectl.run("rollout", "status", *deployment, f"--timeout={ROLLED_SECONDS}s")


def _upgrade(value: str) -> None:
    helm(
        "upgrade", RELEASE, str(CHART), "--namespace", NAMESPACE, "--reuse-values", "--set", value,
        "--wait", "--timeout", f"{ROLLED_SECONDS}s",
    )  # fmt: skip


def _pids_in(uid: str) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                ours = f"pod{uid}" in (process / "cgroup").read_text()
                if ours and PROGRAM in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
    return found
