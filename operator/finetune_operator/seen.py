"""What the watches told of FineTuneJobs that have not ended, and of their Jobs and pods.

Thousands may be there at a time, so that each is kept as JSON, without what no decision reads: an object of four
kilobytes takes four, where as a dictionary it takes twenty.
"""

from __future__ import annotations

import json
from typing import Any

Body = dict[str, Any]
Key = tuple[str, str]
"""Namespace and name of a FineTuneJob."""
_META = frozenset({
    "name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp",
    "deletionGracePeriodSeconds", "labels", "annotations", "ownerReferences",
})  # fmt: skip
_JOB_STATUS: tuple[str, ...] = ("conditions", "active", "failed")
_POD_STATUS: tuple[str, ...] = ("phase", "reason", "message", "conditions", "containerStatuses", "startTime")


class Seen:
    """The newest that was heard of each; older news are passed over."""

    def __init__(self) -> None:
        self._jobs: dict[Key, tuple[int, bytes]] = {}
        self._children: dict[Key, dict[str, tuple[int, bytes]]] = {}

    def note(self, key: Key, body: Body) -> None:
        """Keep the FineTuneJob ``body``."""
        version = version_of(body)
        kept = self._jobs.get(key)
        if kept is None or kept[0] <= version:
            self._jobs[key] = (version, _packed({**body, "metadata": _meta(body)}))

    def note_child(self, key: Key, child: Body, *, deleted: bool = False) -> bool:
        """Keep a Job or pod of a FineTuneJob; whether anything that a decision reads is new in it."""
        children = self._children.setdefault(key, {})
        uid, version = child["metadata"]["uid"], version_of(child)
        kept = children.get(uid)
        if kept is not None and kept[0] > version:
            return False
        if deleted:
            children.pop(uid, None)
            return True
        packed = _packed(trimmed(child))
        children[uid] = (version, packed)
        return kept is None or kept[1] != packed

    def forget(self, key: Key) -> None:
        """Nothing more is asked of this FineTuneJob."""
        self._jobs.pop(key, None)
        self._children.pop(key, None)

    def job(self, key: Key) -> Body | None:
        """The FineTuneJob; None where it was not heard of, or has ended."""
        kept = self._jobs.get(key)
        return json.loads(kept[1]) if kept else None

    def uids(self, key: Key) -> set[str]:
        """Of its Jobs and its pods."""
        return set(self._children.get(key, ()))

    def children(self, key: Key) -> tuple[list[Body], list[Body]]:
        """Its Jobs and its pods."""
        found = [json.loads(packed) for _, packed in self._children.get(key, {}).values()]
        pods = [child for child in found if child["kind"] == "Pod"]
        return [child for child in found if child["kind"] != "Pod"], pods


def trimmed(child: Body) -> Body:
    """The part of a Job or pod that decisions read. Its version is left out too: it changes when nothing else does."""
    spec, status = child.get("spec") or {}, child.get("status") or {}
    meta = {key: value for key, value in _meta(child).items() if key not in ("resourceVersion", "generation")}
    if child.get("kind") == "Pod":
        containers = [
            {key: container.get(key) for key in ("name", "image", "resources")}
            for container in spec.get("containers") or ()
        ]
        part = {"containers": containers, **({"nodeName": spec["nodeName"]} if spec.get("nodeName") else {})}
        kept = _POD_STATUS
    else:
        part = {"completions": spec.get("completions"), "suspend": spec.get("suspend")}
        kept = _JOB_STATUS
    told = {key: status[key] for key in kept if key in status}
    return {"kind": child.get("kind") or "Job", "metadata": meta, "spec": part, "status": told}


def _meta(body: Body) -> Body:
    return {key: value for key, value in body["metadata"].items() if key in _META}


def _packed(body: Body) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def version_of(body: Body) -> int:
    """Number of the write that made ``body`` what it is: of two states of one object the greater is the newer."""
    text = str(body["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdecimal() else 0
