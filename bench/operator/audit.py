"""What the API server's audit log tells: who asked for what, how often, and when."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})
Call = tuple[str, str]
"""Verb and resource, such as ("patch", "finetunejobs/status")."""


@dataclass
class Account:
    """Requests since a point of the log."""

    operator: Counter[Call] = field(default_factory=Counter)
    """The operator's, by verb and resource."""
    refused: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Those of them that were answered by an error, with its code."""
    everybody: Counter[str] = field(default_factory=Counter)
    """Writes by user, whoever it is."""
    created: dict[tuple[str, str], list[datetime]] = field(default_factory=dict)
    """When what was created, by resource and name."""
    asked: dict[str, datetime] = field(default_factory=dict)
    """When each FineTuneJob's creation arrived."""
    ended: dict[str, datetime] = field(default_factory=dict)
    """When the last status of each FineTuneJob was written."""

    @property
    def writes(self) -> int:
        """Of the operator."""
        return sum(count for (verb, _), count in self.operator.items() if verb in WRITES)

    @property
    def reads(self) -> int:
        """Of the operator, watches included."""
        return sum(self.operator.values()) - self.writes


def read(path: Path, operator: str, *, offset: int = 0) -> Account:
    """Account of the log from byte ``offset`` on; ``operator`` is the operator's user name."""
    account = Account()
    for event in _events(path, offset):
        user, verb = event["user"]["username"], event["verb"]
        target = event.get("objectRef") or {}
        resource, name = _resource(target), target.get("name", "")
        code = (event.get("responseStatus") or {}).get("code", 0)
        if user == operator:
            account.operator[verb, resource] += 1
            if code >= 400:
                account.refused[verb, resource, code] += 1
        if verb in WRITES:
            account.everybody[user] += 1
        if code >= 300:
            continue
        if verb == "create":
            account.created.setdefault((resource, name), []).append(_time(event["stageTimestamp"]))
            if resource == "finetunejobs":
                account.asked[name] = _time(event["requestReceivedTimestamp"])
        elif verb == "patch" and resource == "finetunejobs/status":
            account.ended[name] = _time(event["stageTimestamp"])
    return account


def _events(path: Path, offset: int) -> Iterator[dict[str, Any]]:
    with path.open("rb") as log:
        log.seek(offset)
        for line in log:
            if line.endswith(b"\n"):  # else it is still being written
                yield json.loads(line)


def _resource(target: dict[str, Any]) -> str:
    sub = target.get("subresource")
    return f"{target.get('resource', 'other')}{f'/{sub}' if sub else ''}"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
