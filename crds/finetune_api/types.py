"""Scalar types with the bounds that both pydantic and the CRD schema enforce.

Every string, list and map carries an upper bound: the API server estimates the cost of a CEL rule from them
and refuses a CRD whose rules it cannot bound.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints, WithJsonSchema

ShortText = Annotated[str, StringConstraints(max_length=256)]
LongText = Annotated[str, StringConstraints(max_length=16384)]

DnsName = Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""An RFC 1123 name, as Kubernetes objects have."""

LabelName = Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The same, where it is also a label's value."""

ModuleName = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_.*-]+$")]
"""A torch module's name or the end of one, such as ``q_proj``."""

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
Quantity = Annotated[str, StringConstraints(max_length=32, pattern=QUANTITY_PATTERN)]
"""A Kubernetes quantity as a string: ``"2"``, ``"500m"``, ``"16Gi"``."""

PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**31 - 1)]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""What is counted or measured: bytes, tokens and parameters outgrow 32 bits, and doubles are exact up to this."""
NonNegativeFloat = Annotated[float, Field(ge=0.0, le=1e9)]

IntOrAuto = Annotated[
    int | str,
    Field(union_mode="left_to_right"),
    WithJsonSchema({"x-kubernetes-int-or-string": True}),
]
"""A positive integer, or the word ``auto``; a rule in :mod:`finetune_api.rules` refuses anything else."""

FreeForm = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""A map passed on as it is (a DeepSpeed configuration): its own consumer validates it."""
