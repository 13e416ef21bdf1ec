"""The loss of models that take images or sounds: each supervised token counts the same, as in every other model.

Some of these take the mean of a batch whatever they are told of the others (Qwen2-Audio), so that with gradient
accumulation a short answer would weigh more than a long one, and the gradient would be as many times too large.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

IGNORED = -100


def count_tokens_alike(model: PreTrainedModel) -> None:
    """Have ``model.forward`` compute the loss of its labels (batch, length) as the sum of -log p in nats over the
    tokens that are not ignored, by ``num_items_in_batch`` where that is given, else by their number. Its instance
    alone is changed."""
    plain = model.forward

    @functools.wraps(plain)  # generate() asks for the signature
    def forward(
        *arguments: Any,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **inputs: Any,
    ) -> Any:
        output = plain(*arguments, **inputs)
        if labels is None:
            return output
        targets = labels[:, 1:].reshape(-1).to(output.logits.device)
        logits = output.logits[:, :-1].flatten(0, 1).float()
        total = functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        count = (targets != IGNORED).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        output.loss = total / count
        return output

    model.forward = forward  # type: ignore[method-assign]
    model.accepts_loss_kwargs = True  # type: ignore[assignment] # what transformers' Trainer asks
