"""A second node, which is nothing but a heartbeat.

Where every node falls silent the control plane suspects itself and evicts nothing ("master disruption mode" of
Kubernetes' node lifecycle controller). One that still speaks makes the other a lost node.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from kubernetes import client

NAME = "finetune-witness"
_NAMESPACE = "kube-node-lease"
_BEAT_SECONDS = 5.0
"""A node is given up when it has not renewed its Lease for 40 s."""


@contextmanager
def witness_node(api: client.ApiClient) -> Iterator[None]:
    """There is such a node, on which no pod can be."""
    core, leases = client.CoreV1Api(api), client.CoordinationV1Api(api)
    taint = {"key": "finetune.dev/witness", "effect": "NoExecute"}
    core.create_node({"metadata": {"name": NAME}, "spec": {"unschedulable": True, "taints": [taint]}})
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(leases, over), name="witness")
    try:
        ready = {"type": "Ready", "status": "True", "reason": "Speaks", "message": "", "lastHeartbeatTime": _now()}
        core.patch_node_status(NAME, {"status": {"conditions": [ready]}})
        leases.create_namespaced_lease(_NAMESPACE, _lease())
        beating.start()
        yield
    finally:
        over.set()
        if beating.ident is not None:
            beating.join()
        core.delete_node(NAME)
        leases.delete_collection_namespaced_lease(_NAMESPACE, field_selector=f"metadata.name={NAME}")


def _beat(leases: client.CoordinationV1Api, over: threading.Event) -> None:
    while not over.wait(_BEAT_SECONDS):
        leases.patch_namespaced_lease(NAME, _NAMESPACE, _lease())


def _lease() -> dict[str, Any]:
    spec = {"holderIdentity": NAME, "leaseDurationSeconds": 40, "renewTime": _now()}
    return {"metadata": {"name": NAME}, "spec": spec}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
