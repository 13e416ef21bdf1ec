"""kopf: what is watched. Every event only says which job to look at; :mod:`finetune_operator.reconciler` looks.

``on.event`` alone: no finalizers, no annotations of kopf's in users' objects, no state that could be stale, and
nothing that blocks deletion while the operator is down.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kopf
from finetune_api.base import GROUP, VERSION

from finetune_operator.cluster.client import PAGE
from finetune_operator.core import names
from finetune_operator.reconciler import Reconciler

WATCHED = (GROUP, VERSION, "finetunejobs"), ("batch", "v1", "jobs"), ("", "v1", "pods")
"""Kinds that are watched."""
WATCHER = "watcher for "
"""How kopf names the task of a watch, the kind follows."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def make_registry(reconciler: Reconciler) -> kopf.OperatorRegistry:
    """Handlers that feed ``reconciler``."""
    registry = kopf.OperatorRegistry()
    finetunejobs, jobs, pods = WATCHED

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> Any:
        return _service_account() or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(*finetunejobs, registry=registry)
    async def finetunejob(body: kopf.Body, type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's name
        reconciler.saw_job(_plain(body), deleted=type == "DELETED")

    @kopf.on.event(*jobs, labels={names.JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def job(body: kopf.Body, type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's name
        reconciler.saw_child({"kind": "Job", **_plain(body)}, deleted=type == "DELETED")

    @kopf.on.event(*pods, labels={names.JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def pod(body: kopf.Body, type: str | None, **_: Any) -> None:  # noqa: A002 - kopf's name
        reconciler.saw_child({"kind": "Pod", **_plain(body)}, deleted=type == "DELETED")

    return registry


def make_settings() -> kopf.OperatorSettings:
    """kopf's settings: bounded watches, nothing posted, nothing stored."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # needs no right to list CRDs and namespaces
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 330
    settings.watching.connect_timeout = 30
    settings.watching.chunk_size = PAGE
    settings.watching.label_selectors["batch", "v1", "jobs"] = names.JOB_LABEL
    settings.watching.label_selectors["", "v1", "pods"] = names.JOB_LABEL
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    # kopf compares each object with its last state, deep copies and all, though no handler asks what has changed.
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoStates()
    # Else each object's queue and task stay for five seconds after its last event, and a start with thousands of
    # objects makes so many tasks that the Lease waits in turn with all of them.
    settings.queueing.idle_timeout = 0.02
    settings.queueing.worker_limit = 16
    settings.persistence.finalizer = f"{names.DOMAIN}/finalizer"
    return settings


class _NoProgress(kopf.ProgressStorage):
    """Keeps no progress of handlers: there are none that have any."""

    def fetch(self, **_: Any) -> None:
        """There is none."""

    def store(self, **_: Any) -> None:
        """It is not kept."""

    def purge(self, **_: Any) -> None:
        """There is none."""

    def touch(self, **_: Any) -> None:
        """Nobody waits for it."""

    def clear(self, *, essence: Any) -> Any:
        """``essence`` as it is."""
        return essence


class _NoStates(kopf.DiffBaseStorage):
    """Keeps no last states of objects."""

    def build(self, **_: Any) -> Any:
        """Of nothing."""
        return {}

    def fetch(self, **_: Any) -> None:
        """There is none."""

    def store(self, **_: Any) -> None:
        """It is not kept."""


def _service_account() -> kopf.ConnectionInfo | None:
    """As kopf's own, but by the address that the kubelet gives: it needs no DNS."""
    token = SERVICE_ACCOUNT / "token"
    if not token.exists():
        return None
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    address = f"[{host}]" if ":" in host else host
    return kopf.ConnectionInfo(
        server=f"https://{address}:{port}",
        ca_path=str(SERVICE_ACCOUNT / "ca.crt"),
        token=token.read_text().strip(),
    )


def _plain(body: kopf.Body) -> dict[str, Any]:
    return dict(body)
