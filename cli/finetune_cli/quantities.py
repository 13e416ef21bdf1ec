"""Kubernetes quantities of bytes."""

from __future__ import annotations

import re
from decimal import Decimal

from finetune_cli.errors import CliError

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(k|M|G|T|Ki|Mi|Gi|Ti)?")


def parse_bytes(text: str, place: str) -> int:
    """Bytes of ``text``, such as ``80Gi``.

    Raises:
        CliError: it is none, or of none; ``place`` names where it was given.
    """
    match = _QUANTITY.fullmatch(text)
    count = int(Decimal(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if count <= 0:
        raise CliError(f"{place}: {text!r} is no size in bytes, such as 80Gi", exit_code=2)
    return count
