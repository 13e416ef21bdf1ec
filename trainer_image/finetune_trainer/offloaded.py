"""Activations that wait in host memory (`acceleration.activationOffload`): TRL's, which come back as they went.

TRL brings back what it took in the order of its indices. What a compiled layer keeps of attention lies in another, and
so its backward pass expects it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from finetune_api.trainer_config import TrainerConfig


def offloading(config: TrainerConfig, model: Any) -> AbstractContextManager[Any]:
    """Where forward and backward run: with activations held in host memory, or as usual."""
    if not config.acceleration.activation_offload:
        return nullcontext()
    from trl.models.activation_offloading import get_act_offloading_ctx_manager  # noqa: PLC0415 - for this wish alone

    context: Any = get_act_offloading_ctx_manager(model, warn_if_no_head=False)
    context.pack_hook, context.unpack_hook = as_they_lie(context.pack_hook, context.unpack_hook)
    return context  # type: ignore[no-any-return]


def as_they_lie(
    pack: Callable[[torch.Tensor], Any], unpack: Callable[[Any], torch.Tensor]
) -> tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]:
    """Hooks for torch.autograd.graph.saved_tensors_hooks that give tensors back with the strides that they had.

    Args:
        pack: takes a tensor away; what is not contiguous it copies.
        unpack: gives it back, contiguous.
    """

    def packed(tensor: torch.Tensor) -> tuple[Any, tuple[list[int], tuple[int, ...]] | None]:
        if tensor.is_contiguous() or 0 in tensor.stride():  # repeated values TRL knows
            return pack(tensor), None
        order = sorted(range(tensor.dim()), key=lambda dimension: -tensor.stride(dimension))
        return pack(tensor.permute(order)), (order, tensor.stride())

    def unpacked(kept: tuple[Any, tuple[list[int], tuple[int, ...]] | None]) -> torch.Tensor:
        found, layout = kept
        tensor = unpack(found)
        if layout is None:
            return tensor
        order, strides = layout
        tensor = tensor.permute([order.index(dimension) for dimension in range(len(order))])
        if tensor.stride() == strides:
            return tensor
        return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)

    return packed, unpacked
