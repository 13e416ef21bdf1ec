"""Makes the benchmark's cluster ready: CRDs, nodes, namespaces, volumes; and small helpers for requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import fleet
import yaml
from plane import ROOT, Body, Plane

from finetune_operator.cluster.client import APPLY_PATCH, ApiClient, path_of  # isort: skip - plane makes it importable

SYSTEM = "finetune-system"
"""The operator's own namespace."""
JOBS = path_of("apis/finetune.dev/v1alpha1", "finetunejobs", fleet.NAMESPACE)
AT_ONCE = 32
"""Requests of the benchmark's own client at a time."""


async def furnish(api: ApiClient, plane: Plane, stages: list[Body], nodes: int) -> None:
    """Make what the operator and its jobs need, and start kwok with ``stages``."""
    crds = [yaml.safe_load(path.read_text()) for path in sorted((ROOT / "crds").glob("*.yaml"))]
    namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": n}} for n in (SYSTEM, fleet.NAMESPACE)]
    await each(crds, lambda crd: apply(api, crd))
    await each(namespaces, lambda body: apply(api, body))
    await each(fleet.volumes(), lambda body: apply(api, body))
    await each(fleet.nodes(nodes), lambda node: api.request("POST", "/api/v1/nodes", body=node))
    plane.start_kwok(stages)
    await until("the CRDs are established", lambda: answers(api, JOBS))
    await until("the nodes are ready", lambda: _nodes_ready(api, nodes))
    claim = path_of("api/v1", "persistentvolumeclaims", fleet.NAMESPACE, fleet.CLAIM)
    await until("the claim is bound", lambda: _field(api, claim, "status", "phase", wanted="Bound"))
    account = path_of("api/v1", "serviceaccounts", fleet.NAMESPACE, "default")
    await until("the service account is there", lambda: answers(api, account))


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


async def apply(api: ApiClient, body: Body) -> None:
    """Apply ``body`` server-side."""
    group, plural = _PLURALS[body["kind"]]
    path = path_of(group, plural, body["metadata"].get("namespace"), body["metadata"]["name"])
    query = {"fieldManager": "bench", "force": "true"}
    await api.request("PATCH", path, query=query, body=body, content_type=APPLY_PATCH)


async def each(items: Iterable[Any], work: Callable[[Any], Awaitable[Any]]) -> None:
    """Work on all items, some at a time."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(item: Any) -> None:
        async with slots:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for item in items:
            group.create_task(one(item))


async def until(what: str, holds: Callable[[], Awaitable[bool]], seconds: float = 120, every: float = 0.5) -> None:
    """Wait until ``holds()``.

    Raises:
        TimeoutError: it did not in time; ``what`` is in the message.
    """
    deadline = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s it is not so that {what}")
        await asyncio.sleep(every)


async def answers(api: ApiClient, path: str) -> bool:
    """Whether a GET of ``path`` succeeds."""
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
