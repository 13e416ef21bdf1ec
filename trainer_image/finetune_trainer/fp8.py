"""Arithmetic in 8-bit floats: a frozen base held in them under adapters, and torchao's linear layers for full training.

Scales are a tensor's (Micikevicius et al., arXiv 2209.05433): largest value to the format's largest. A frozen weight is
scaled and cast once, which halves its memory; activations and gradients are scaled at each product. Layers whose sides
are no multiples of 16, and the output head, stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch
from finetune_api.failures import ExitCode
from torch import nn

from finetune_trainer.errors import TrainerError

VALUES, GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2
LEAST_CAPABILITY = (8, 9)
"""Ada and Hopper: the first GPUs with products of 8-bit floats."""
_SIDES = 16
_TINY = 1e-12


def check_fp8(device: torch.device) -> None:
    """Refuse hardware without products of 8-bit floats.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY:
        return
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    raise TrainerError(
        ExitCode.ACCELERATION_UNAVAILABLE,
        f"precision fp8: {name} cannot multiply 8-bit floats; GPUs from Ada and Hopper on can. Use precision: bf16",
    )


def fits(layer: nn.Module) -> bool:
    """Whether ``layer`` can compute in 8-bit floats."""
    return isinstance(layer, nn.Linear) and layer.in_features % _SIDES == 0 and layer.out_features % _SIDES == 0


def freeze_in_fp8(groups: Iterable[list[Any]]) -> int:
    """Hold the base layers under adapters in 8-bit floats; how many there are.

    Args:
        groups: layers with adapters; the weights of one group get one scale, so that they can be one operand.
    """
    count = 0
    for layers in groups:
        chosen = [layer for layer in layers if fits(layer.base_layer)]
        if not chosen:
            continue
        scale = torch.stack([scale_of(layer.base_layer.weight.detach(), VALUES) for layer in chosen]).amax()
        for layer in chosen:
            layer.base_layer = Fp8Linear(layer.base_layer, scale)
        count += len(chosen)
    return count


def train_in_fp8(model: Any) -> None:
    """Have the linear layers of ``model``, but its output head, compute in 8-bit floats by torchao; their weights stay
    what they are."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # noqa: PLC0415 - for this wish alone

    head = model.get_output_embeddings()
    # The gradient of a weight is a product over the tokens, whose number need be no multiple of 16.
    recipe = dataclasses.replace(Float8LinearConfig.from_recipe_name("tensorwise"), pad_inner_dim=True)
    convert_to_float8_training(
        model,
        config=recipe,
        module_filter_fn=lambda layer, _name: layer is not head and fits(layer),
    )


class Fp8Linear(nn.Module):
    """A frozen linear layer: ``weight`` float8 (out, in), ``scale`` fp32, what one of its units stands for."""

    def __init__(self, layer: nn.Linear, scale: torch.Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("weight", (layer.weight.detach() / scale).to(VALUES))
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self.dtype = layer.weight.dtype

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(…, in) to (…, out), in bf16."""
        output: torch.Tensor = _Product.apply(inputs, self.weight, self.scale)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def dequantize(self) -> torch.Tensor:
        """The weight (out, in) that it computes with, fp32."""
        weight, scale = self.get_buffer("weight"), self.get_buffer("scale")
        return weight.to(torch.float32) * scale


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.dtype = inputs.dtype
        rows = inputs.reshape(-1, inputs.shape[-1])
        return multiply(rows, VALUES, weight.t(), scale).reshape(*inputs.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        weight, scale = ctx.saved_tensors
        (gradient,) = gradients
        rows = gradient.reshape(-1, gradient.shape[-1])
        # The kernel wants its second operand by columns: a byte a weight is moved, which the product hides.
        columns = weight.t().contiguous().t()
        product = multiply(rows, GRADIENTS, columns, scale)
        return product.reshape(*gradient.shape[:-1], weight.shape[1]).to(ctx.dtype), None, None


def multiply(rows: torch.Tensor, kind: torch.dtype, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``rows`` (tokens, in), in bf16 and cast to ``kind``, times ``weight`` (in, out) by columns, in bf16."""
    return multiply_scaled(*scaled(rows, kind), weight, scale)


def scaled(rows: torch.Tensor, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """``rows`` in units of their scale, as ``kind``, and that scale, fp32."""
    own = scale_of(rows, kind)
    return (rows.to(torch.float32) / own).to(kind), own


def multiply_scaled(packed: torch.Tensor, own: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``packed`` (tokens, in), of which a unit stands for ``own``, times ``weight`` (in, out) by columns, in bf16.
    Products of gradients are summed up exactly."""
    fast = packed.dtype is VALUES
    return torch._scaled_mm(packed, weight, own, scale, out_dtype=torch.bfloat16, use_fast_accum=fast)  # noqa: SLF001


def scale_of(values: torch.Tensor, kind: torch.dtype) -> torch.Tensor:
    """What one unit of ``kind`` stands for, fp32, so that the largest of ``values`` is the largest that it has."""
    return (values.abs().amax().to(torch.float32) / torch.finfo(kind).max).clamp(min=_TINY)
