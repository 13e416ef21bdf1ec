"""Who may act: a Lease (coordination.k8s.io/v1) as its holder writes it, and when another one may take it.

Clocks of two machines are never compared. The holder promises to stop ``leaseDurationSeconds`` after it last wrote; a
candidate counts these seconds by its own clock, from the moment at which it saw the Lease change. It cannot have
seen that before it was written, so the promise is over when it takes the Lease, whatever either's clock shows. The
times within are for people.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune_operator.core import names

Body = dict[str, Any]
ADDRESS_ANNOTATION = f"{names.DOMAIN}/progress-address"
"""Where the holder takes progress, ``host:port``: the others hand on to it what they are sent."""


@dataclass(frozen=True)
class Candidate:
    """One that would act."""

    identity: str
    """Of one process at a time: a pod's name, say."""
    seconds: int
    """How long the Lease is good for after each write."""
    address: str | None = None
    """Where it takes progress; None where nobody can reach it."""


@dataclass(frozen=True)
class Sight:
    """A Lease, and since when it has been as it is."""

    spec: Body
    address: str | None
    since: float
    """Seconds of the onlooker's own clock."""

    @property
    def holder(self) -> str:
        """Identity of the holder; empty where it was given up."""
        return str(self.spec.get("holderIdentity") or "")

    @property
    def over(self) -> float:
        """When anybody may take it, of the clock that ``since`` is of, if it stays as it is."""
        return self.since + float(self.spec.get("leaseDurationSeconds") or 0) if self.holder else self.since

    def is_free(self, now: float) -> bool:
        """Whether anybody may take it at ``now``."""
        return now >= self.over


def sighted(before: Sight | None, lease: Body | None, now: float) -> Sight | None:
    """What is to be made of ``lease`` as it was read at ``now``; None where there never was one.

    A Lease that somebody deleted counts as it was last seen: its holder acts on, and makes it anew in a moment.
    """
    if lease is None:
        return before
    spec = lease.get("spec") or {}
    if before is not None and before.spec == spec:
        return before
    address = (lease["metadata"].get("annotations") or {}).get(ADDRESS_ANNOTATION)
    return Sight(copy.deepcopy(spec), address, now)


def taken(lease: Body | None, candidate: Candidate, now: datetime, *, namespace: str, name: str) -> Body:
    """The Lease with ``candidate`` as its holder, or with its time renewed where it holds it already."""
    body = _kept(lease, namespace, name)
    spec = body["spec"]
    again = spec.get("holderIdentity") == candidate.identity
    if not again:
        spec["acquireTime"] = _stamp(now)
        # How often it changed hands; the first one to hold it changed nothing.
        spec["leaseTransitions"] = spec.get("leaseTransitions", 0) + 1 if lease else 0
    spec |= {
        "holderIdentity": candidate.identity,
        "leaseDurationSeconds": candidate.seconds,
        "renewTime": _stamp(now),
    }
    annotations = {key: value for key, value in _annotations(body).items() if key != ADDRESS_ANNOTATION}
    body["metadata"]["annotations"] = annotations | (
        {ADDRESS_ANNOTATION: candidate.address} if candidate.address else {}
    )
    return body


def given_up(lease: Body, now: datetime) -> Body:
    """``lease`` without a holder: the next one need not wait."""
    body = copy.deepcopy(lease)
    body["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _stamp(now)}
    _annotations(body).pop(ADDRESS_ANNOTATION, None)
    return body


def _kept(lease: Body | None, namespace: str, name: str) -> Body:
    body: Body = copy.deepcopy(lease) if lease else {"metadata": {"name": name, "namespace": namespace}}
    body |= {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    body.setdefault("spec", {})
    body["metadata"].setdefault("labels", {})[names.MANAGED_BY_LABEL] = names.MANAGER
    return body


def _annotations(body: Body) -> dict[str, str]:
    found: dict[str, str] = body["metadata"].get("annotations") or {}
    return found


def _stamp(moment: datetime) -> str:
    """A MicroTime: two writes in one second differ."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
