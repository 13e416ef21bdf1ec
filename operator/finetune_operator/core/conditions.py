"""Conditions, ours and kstatus's. ``lastTransitionTime`` moves when ``status`` does, and only then."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.status import Condition, ConditionType

from finetune_operator.core import times

MESSAGE_CHARACTERS = 4096


class Conditions:
    """The conditions of a status, changed in place and read at the end."""

    def __init__(self, previous: Sequence[Condition], *, generation: int | None, now: datetime) -> None:
        self._previous = {condition.type: condition for condition in previous}
        self._current = dict(self._previous)
        self._generation = generation
        self._now = now

    def set(self, kind: ConditionType, *, holds: bool | None, reason: str, message: str = "") -> None:
        """Say of ``kind`` whether it holds; None is not known yet."""
        status: Condition = Condition(
            type=kind,
            status="Unknown" if holds is None else "True" if holds else "False",
            reason=reason,
            message=message if len(message) <= MESSAGE_CHARACTERS else message[: MESSAGE_CHARACTERS - 1] + "…",
            last_transition_time=times.stamp(self._now),
            observed_generation=self._generation,
        )
        before = self._previous.get(kind)
        if before is not None and before.status == status.status:
            status = status.model_copy(update={"last_transition_time": before.last_transition_time})
        self._current[kind] = status

    def holds(self, kind: ConditionType) -> bool:
        """Whether ``kind`` is True."""
        condition = self._current.get(kind)
        return condition is not None and condition.status == "True"

    def get(self, kind: ConditionType) -> Condition | None:
        """Condition ``kind`` as it is now; None where nothing was said of it yet."""
        return self._current.get(kind)

    def touch(self) -> None:
        """Say that all conditions are true of the present generation too."""
        self._current = {
            kind: condition.model_copy(update={"observed_generation": self._generation})
            for kind, condition in self._current.items()
        }

    def listed(self) -> list[Condition]:
        """All conditions, in the order in which they first appeared."""
        return list(self._current.values())


def progress_to_kstatus(conditions: Conditions, *, reason: str, message: str) -> None:
    """Under way: what ``kstatus`` calls InProgress."""
    conditions.set("Complete", holds=False, reason=reason, message=message)
    conditions.set("Failed", holds=False, reason=reason)
    conditions.set("Ready", holds=False, reason=reason, message=message)
    conditions.set("Reconciling", holds=True, reason=reason, message=message)
    conditions.set("Stalled", holds=False, reason=reason)


def suspended(conditions: Conditions, message: str) -> None:
    """At rest by its owner's wish: neither ready nor stalled, and nothing goes on."""
    conditions.set("Suspended", holds=True, reason="Suspended", message=message)
    conditions.set("Complete", holds=False, reason="Suspended")
    conditions.set("Failed", holds=False, reason="Suspended")
    conditions.set("Ready", holds=False, reason="Suspended", message=message)
    conditions.set("Reconciling", holds=False, reason="Suspended")
    conditions.set("Stalled", holds=False, reason="Suspended")


def succeeded(conditions: Conditions, message: str) -> None:
    """Done: what ``kstatus`` calls Current."""
    conditions.set("Complete", holds=True, reason="Succeeded", message=message)
    conditions.set("Failed", holds=False, reason="Succeeded")
    conditions.set("Ready", holds=True, reason="Succeeded", message=message)
    conditions.set("Reconciling", holds=False, reason="Succeeded")
    conditions.set("Stalled", holds=False, reason="Succeeded")


def failed(conditions: Conditions, reason: str, message: str) -> None:
    """Ended in failure: what ``kstatus`` calls Failed."""
    conditions.set("Complete", holds=False, reason=reason)
    conditions.set("Failed", holds=True, reason=reason, message=message)
    conditions.set("Ready", holds=False, reason=reason, message=message)
    conditions.set("Reconciling", holds=False, reason=reason)
    conditions.set("Stalled", holds=True, reason=reason, message=message)
