"""torch's varlen kernel where there is none: its operation for the CPU, by plain attention sample by sample."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import varlen


def install() -> None:
    """Have torch's operation computed on the CPU too; for the rest of the process."""
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)


def _samples(starts: torch.Tensor, *parts: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Each sample of ``parts``, (heads, its tokens, width) in fp32."""
    for begin, end in itertools.pairwise(starts.tolist()):
        yield [part[begin:end].transpose(0, 1).float() for part in parts]


def _weights(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """(heads, tokens, tokens): what each token takes of those up to itself."""
    scores = query @ key.transpose(1, 2) * scale
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


@torch.autocast("cpu", enabled=False)
def _forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    _starts: torch.Tensor,
    _longest: int,
    _longest_key: int,
    _causal: bool = False,
    scale: float | None = None,
    *_rest: Any,
    **_options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width, groups = query.shape[-1] ** -0.5, query.shape[1] // key.shape[1]
    found = []
    for q, k, v in _samples(starts, query, *(part.repeat_interleave(groups, 1) for part in (key, value))):
        found.append((_weights(q, k, scale or width) @ v).transpose(0, 1))
    output = torch.cat(found).to(query.dtype).contiguous()
    return output, torch.zeros(query.shape[1], query.shape[0]), torch.zeros(2, dtype=torch.uint64)


@torch.autocast("cpu", enabled=False)
def _backward(  # noqa: PLR0917 - torch's signature
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _output: torch.Tensor,
    _sums: torch.Tensor,
    starts: torch.Tensor,
    _starts: torch.Tensor,
    _longest: int,
    _longest_key: int,
    _causal: bool,
    _state: torch.Tensor,
    scale: float | None = None,
    *_rest: Any,
    **_options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups, factor = query.shape[1] // key.shape[1], scale or query.shape[-1] ** -0.5
    found: list[list[torch.Tensor]] = [[], [], []]
    for q, k, v, grad in _samples(
        starts, query, *(part.repeat_interleave(groups, 1) for part in (key, value)), gradient
    ):
        weights = _weights(q, k, factor)
        of_weights = grad @ v.transpose(1, 2)
        of_scores = weights * (of_weights - (weights * of_weights).sum(-1, keepdim=True)) * factor
        parts = (of_scores @ k, of_scores.transpose(1, 2) @ q, weights.transpose(1, 2) @ grad)
        for place, part in zip(found, parts, strict=True):
            place.append(part.transpose(0, 1))
    of_query, of_key, of_value = (torch.cat(parts) for parts in found)
    shared = [part.unflatten(1, (-1, groups)).sum(2) for part in (of_key, of_value)]
    return of_query.to(query.dtype), shared[0].to(key.dtype), shared[1].to(value.dtype)
