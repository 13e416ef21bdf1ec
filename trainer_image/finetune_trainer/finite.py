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


class LossScaling:
    """Tells whether a step was left out because its gradients only overflowed fp16.

    By the scaler's factor, which falls then: fused optimizers (torch's AdamW) take the verdict on the device and return
    as if they had stepped, so that accelerate does not see it.
    """

    def __init__(self, accelerator: Any, *, fp16: bool) -> None:
        self._accelerator, self._fp16 = accelerator, fp16
        self._before = self._factor()

    def left_out(self) -> bool:
        """Whether the step since the last call was left out, so that the loss is scaled by less from here on. To be
        called at every step. Without loss scaling nothing makes gradients finite."""
        before, self._before = self._before, self._factor()
        if self._before is None or before is None:
            return self._fp16 and bool(self._accelerator.optimizer_step_was_skipped)  # DeepSpeed scales by itself
        return SMALLEST_SCALE <= self._before < before

    def _factor(self) -> float | None:
        scaler = self._accelerator.scaler if self._fp16 else None
        return None if scaler is None else float(scaler.get_scale())


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
