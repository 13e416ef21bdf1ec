"""The merge patch that turns one status into another, or nothing where they are equal."""

from __future__ import annotations

from typing import Any

from finetune_api.status import FineTuneJobStatus

OWN_KEYS = frozenset(field.alias or name for name, field in FineTuneJobStatus.model_fields.items())
"""Fields of the status that we write; what a newer operator added is left alone."""


def status_patch(current: dict[str, Any], wanted: FineTuneJobStatus) -> dict[str, Any] | None:
    """Merge patch (RFC 7386) of the status; keys that are no longer set become null. None: nothing to write."""
    target = wanted.to_dict()
    known = {key: value for key, value in current.items() if key in OWN_KEYS}
    return _difference(known, target) or None


def _difference(current: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = dict.fromkeys(current.keys() - wanted.keys())
    for key, value in wanted.items():
        before = current.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if inner := _difference(before, value):
                patch[key] = inner
        elif before != value or key not in current:
            patch[key] = value
    return patch
