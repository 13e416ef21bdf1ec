"""Whether what a step leaves behind are numbers: its loss, its gradients, the weights that a checkpoint would hold."""

from __future__ import annotations

import math
from typing import Any

import torch

SMALLEST_SCALE = 1.0
"""Loss scaling under fp16 (Micikevicius et al., arXiv 1710.03740) halves its factor at each overflow. Where gradients
overflow without any factor, no smaller one helps: DeepSpeed gives up here, and torch's scaler would go on for ever."""
DEEPSPEED_GIVES_UP = "loss scale already at minimum"
"""What DeepSpeed raises then, as a plain Exception."""


def is_finite_norm(norm: float) -> bool:
    """Whether gradients of this norm can be applied. DeepSpeed writes -1 for one that is infinite or NaN."""
    return math.isfinite(norm) and norm >= 0


def overflow_was_skipped(accelerator: Any, *, fp16: bool) -> bool:
    """Whether the last step's gradients only overflowed fp16, so that the step was left out and the loss is scaled by
    less from here on. Without loss scaling nothing makes them finite."""
    if not (fp16 and accelerator.optimizer_step_was_skipped):
        return False
    return accelerator.scaler is None or accelerator.scaler.get_scale() >= SMALLEST_SCALE


def trained_weights_are_finite(model: torch.nn.Module) -> bool:
    """Whether no trained weight of ``model`` that this process holds is infinite or NaN. Waits for the device once."""
    extremes = [
        torch.stack(torch.aminmax(held)).float()
        for held in (_held(parameter) for parameter in model.parameters() if parameter.requires_grad)
        if held.numel()
    ]
    devices = {extreme.device for extreme in extremes}
    return all(
        bool(torch.stack([extreme for extreme in extremes if extreme.device == device]).isfinite().all())
        for device in devices
    )


def _held(parameter: Any) -> torch.Tensor:
    """What lies here of a parameter: its shard under ZeRO-3 and FSDP2."""
    if hasattr(parameter, "ds_tensor"):
        return torch.as_tensor(parameter.ds_tensor.data)
    found: torch.Tensor = parameter.detach()
    return found.to_local() if hasattr(found, "to_local") else found  # type: ignore[no-any-return, operator]
