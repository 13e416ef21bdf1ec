"""The loss without the logits: Liger's fused linear cross entropy (arXiv 2410.10989) on the tokens that are trained on.

A model's own loss holds logits of every token in 16 and 32 bits and their gradient: at a vocabulary of 150,000 that is
most of the memory. Here the output head runs over supervised tokens only, chunk by chunk. Whether it is the model's own
loss depends on the model's code (some scale or cap their logits), so it is tried on data before the first step.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from finetune_api.heads import fused_loss_scale
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from finetune_trainer.media_models import media_model

NAME = "fused-loss"


def fuse_loss(model: PreTrainedModel) -> None:
    """Have ``model.forward`` compute the loss so wherever it is given ``loss_positions`` and ``targets``.

    Its instance alone is changed. Inputs (from :class:`finetune_trainer.batches.Collator`): ``loss_positions`` int64
    (n,), indices into the flattened (batch, length) of the tokens that predict one; ``targets`` int64 (n,), those that
    are predicted.
    """
    plain = model.forward
    # What takes images in is beside the language model, within the base.
    decoder = model.get_decoder() if media_model(model.config) is None else model.base_model

    def forward(
        *arguments: Any,
        loss_positions: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs: Any,
    ) -> Any:
        if loss_positions is None or targets is None:
            counted = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            return plain(*arguments, labels=labels, **counted, **inputs)
        hidden = decoder(*arguments, **inputs).last_hidden_state
        head = model.get_output_embeddings()  # as it is now: peft puts a copy in its place where it is to be trained
        chosen = hidden.flatten(0, 1).index_select(0, loss_positions)
        total = linear_cross_entropy(chosen, head.weight, targets, head.bias)
        return CausalLMOutputWithPast(
            loss=total / (targets.numel() if num_items_in_batch is None else num_items_in_batch)
        )

    if media_model(model.config) is not None:
        functools.update_wrapper(forward, plain)  # generate() asks for the signature
    model.forward = forward  # type: ignore[method-assign]


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Sum over tokens of -log softmax(hidden weight^T + bias)[target], in nats.

    Args:
        hidden: (n, width).
        weight: (vocabulary, width).
        targets: int64 (n,).
        bias: (vocabulary,) or none.
    """
    from liger_kernel.ops.fused_linear_cross_entropy import (  # noqa: PLC0415 - Triton, for GPUs alone
        LigerFusedLinearCrossEntropyFunction as Function,
    )

    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = bias if bias is None else bias.to(dtype)
    options = {
        "target": targets,
        "bias": bias,
        "reduction": "sum",
        "accum_dtype": torch.float32,
        # Liger's own chunks are too thin to fill a GPU
        "chunk_mem_const": fused_loss_scale(hidden.shape[0], hidden.shape[1], weight.shape[0]),
    }
    result = Function.apply(hidden, weight, *_positional(Function.forward, options))
    loss: torch.Tensor = result[0] if isinstance(result, tuple) else result
    return loss


def _positional(function: Callable[..., Any], options: dict[str, Any]) -> Iterator[Any]:
    """``options`` in the order of ``function``'s parameters, the others by their defaults: autograd functions take no
    keywords."""
    for name, parameter in list(inspect.signature(function).parameters.items())[3:]:
        yield options.get(name, parameter.default)
