"""Products of frozen weights and adapters, for each way in which a weight is held: the arithmetic of
:mod:`finetune_trainer.fused_adapters`.

``rows`` are (tokens, in), in the base's type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from bitsandbytes.functional import dequantize_blockwise
from bitsandbytes.nn import Linear4bit
from torch import nn

from finetune_trainer import added_products
from finetune_trainer.fp8 import GRADIENTS, VALUES, Fp8Linear, scaled


@dataclass(frozen=True)
class Adapters:
    """Those of layers that are computed as one."""

    down: torch.Tensor
    """(columns, in): their A below each other, scaled."""
    up: torch.Tensor
    """(out, columns): their B, each at its place."""
    ups: list[torch.Tensor]
    """[(out of one, rank)]: the parameters that ``up`` repeats, which take its gradient."""
    sizes: list[int]
    """Out of each."""
    ranks: list[int]
    """Of each."""


class Base(Protocol):
    """Frozen weights below each other."""

    dtype: torch.dtype
    """Of activations and of adapters in products."""

    def up(self, columns: int) -> torch.Tensor:
        """Where B is to lie, zero so far; may be called once."""

    def product(self, rows: torch.Tensor, adapters: Adapters) -> tuple[torch.Tensor, ...]:
        """Output of each layer, (tokens, out of one)."""

    def separate(self, layers: list[Any]) -> None:
        """Give ``layers``, whose weights these are, weights of their own."""


def base_of(layers: list[Any]) -> Base | None:
    """What holds the weights of ``layers`` as one; none where there is no product for that."""
    first = layers[0]
    if any(type(layer) is not type(first) or (layer.bias is None) != (first.bias is None) for layer in layers):
        return None
    if type(first) is nn.Linear and len({layer.weight.dtype for layer in layers}) == 1:
        return Whole(layers)
    if type(first) is Fp8Linear and len({float(layer.get_buffer("scale")) for layer in layers}) == 1:
        return InFp8(layers)
    if type(first) is Linear4bit and all(_dequantizes_alike(layer, first) for layer in layers):
        return In4Bits(layers)
    return None


def _bias(layers: list[Any], dtype: torch.dtype) -> torch.Tensor | None:
    return None if layers[0].bias is None else torch.cat([layer.bias.detach().to(dtype) for layer in layers])


def _operands(adapters: Adapters) -> tuple[Any, ...]:
    return (adapters.down, adapters.up, adapters.sizes, adapters.ranks, *adapters.ups)


def _split(output: torch.Tensor, bias: torch.Tensor | None, sizes: list[int]) -> tuple[torch.Tensor, ...]:
    return tuple((output if bias is None else output + bias).split(sizes, dim=-1))


def _gradients_of_ups(
    gradient: torch.Tensor, inner: torch.Tensor, sizes: list[int], ranks: list[int], kinds: list[torch.dtype]
) -> list[torch.Tensor]:
    """Of ``gradient`` (tokens, out) and what the adapters read, ``inner`` (tokens, columns): for each B its own. One
    product gives them all, and what lies between them, which costs less than reading ``gradient`` again."""
    whole = gradient.t() @ inner
    found, row, column = [], 0, 0
    for size, rank, kind in zip(sizes, ranks, kinds, strict=True):
        found.append(whole[row : row + size, column : column + rank].to(kind))
        row, column = row + size, column + rank
    return found


# -- in 16 or 32 bits ------------------------------------------------------------------------------------------------


class Whole:
    """Weights as they were loaded, and beside them the place of B."""

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self.dtype = layers[0].weight.dtype
        self._width = layers[0].in_features
        self._weight = torch.empty(0)
        self._bias = _bias(layers, self.dtype)

    def up(self, columns: int) -> torch.Tensor:
        """Weights move to memory of ``columns`` more, and what the layers have are views of it."""
        out = sum(layer.out_features for layer in self._layers)
        self._weight = torch.zeros(out, self._width + columns, dtype=self.dtype, device=self._layers[0].weight.device)
        row = 0
        for layer in self._layers:
            place = self._weight[row : row + layer.out_features, : self._width]
            place.copy_(layer.weight.detach())
            layer.weight.data = place
            row += layer.out_features
        return self._weight[:, self._width :]

    def product(self, rows: torch.Tensor, adapters: Adapters) -> tuple[torch.Tensor, ...]:
        """Of layers and adapters in one."""
        sizes = adapters.sizes
        output = _WholeProduct.apply(rows, self._weight, adapters.down, sizes, adapters.ranks, *adapters.ups)
        return _split(output, self._bias, sizes)

    def separate(self, layers: list[Any]) -> None:
        """Copies of the views."""
        for layer in layers:
            layer.weight.data = layer.weight.data.contiguous()
        self._weight = torch.empty(0)


class _WholeProduct(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - as autograd has it
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        down: torch.Tensor,
        sizes: list[int],
        ranks: list[int],
        *ups: torch.Tensor,
    ) -> torch.Tensor:
        extended = torch.cat([rows, rows @ down.t()], dim=-1)
        ctx.save_for_backward(extended, weight, down)
        ctx.sizes, ctx.ranks, ctx.kinds = sizes, ranks, [up.dtype for up in ups]
        return extended @ weight.t()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        extended, weight, down = ctx.saved_tensors
        (gradient,) = gradients
        width = down.shape[1]
        both = added_products.extended(gradient, weight, down)
        return (
            both[:, :width].contiguous(),  # attention's kernels compute wrong gradients from parts of rows
            None,
            both[:, width:].t() @ extended[:, :width],
            None,
            None,
            *_gradients_of_ups(gradient, extended[:, width:], ctx.sizes, ctx.ranks, ctx.kinds),
        )


# -- in 8-bit floats -------------------------------------------------------------------------------------------------


class InFp8:
    """Weights in 8-bit floats of one scale."""

    dtype = torch.bfloat16

    def __init__(self, layers: list[Any]) -> None:
        self._weight = torch.cat([layer.weight for layer in layers])
        self._scale = layers[0].scale
        self._bias = _bias(layers, self.dtype)
        row = 0
        for layer in layers:
            layer.weight = self._weight[row : row + layer.out_features]
            row += layer.out_features

    def up(self, columns: int) -> torch.Tensor:
        """Beside the weights."""
        return torch.zeros(self._weight.shape[0], columns, dtype=self.dtype, device=self._weight.device)

    def product(self, rows: torch.Tensor, adapters: Adapters) -> tuple[torch.Tensor, ...]:
        """Of the layers, then of the adapters on top."""
        output = _Fp8Product.apply(rows, self._weight, self._scale, *_operands(adapters))
        return _split(output, self._bias, adapters.sizes)

    def separate(self, layers: list[Any]) -> None:
        """Copies of the views."""
        for layer in layers:
            layer.weight = layer.weight.clone()


class _Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - as autograd has it
        ctx: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        down: torch.Tensor,
        up: torch.Tensor,
        sizes: list[int],
        ranks: list[int],
        *ups: torch.Tensor,
    ) -> torch.Tensor:
        inner = rows @ down.t()
        ctx.save_for_backward(rows, inner, weight, scale, down, up)
        ctx.sizes, ctx.ranks, ctx.kinds = sizes, ranks, [part.dtype for part in ups]
        return added_products.fp8(*scaled(rows, VALUES), weight.t(), scale, inner, up.t())

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, inner, weight, scale, down, up = ctx.saved_tensors
        (gradient,) = gradients
        gradient_of_inner = gradient @ up
        columns = weight.t().contiguous().t()  # as the kernel wants its second operand
        return (
            added_products.fp8(*scaled(gradient, GRADIENTS), columns, scale, gradient_of_inner, down),
            None,
            None,
            gradient_of_inner.t() @ rows,
            None,
            None,
            None,
            *_gradients_of_ups(gradient, inner, ctx.sizes, ctx.ranks, ctx.kinds),
        )


# -- in 4 bits -------------------------------------------------------------------------------------------------------


def _dequantizes_alike(layer: Any, first: Any) -> bool:
    """Whether ``layer`` and ``first`` can be dequantized in one call."""
    one, other = layer.weight.quant_state, first.weight.quant_state
    return (
        (one.blocksize, one.quant_type, one.dtype, one.nested)
        == (other.blocksize, other.quant_type, other.dtype, other.nested)
        and layer.compute_dtype in (None, one.dtype)
        and layer.in_features % one.blocksize == 0
    )


class In4Bits:
    """Weights in bitsandbytes' 4 bits, dequantized for each product."""

    def __init__(self, layers: list[Any]) -> None:
        self._states = [layer.weight.quant_state for layer in layers]
        first = self._states[0]
        self.dtype = first.dtype
        self._blocksize, self._type = first.blocksize, first.quant_type
        self._shape = [sum(layer.out_features for layer in layers), layers[0].in_features]
        self._bias = _bias(layers, self.dtype)
        packed = [layer.weight.data.reshape(-1) for layer in layers]
        self._packed = torch.cat(packed).reshape(-1, 1)
        begin = 0
        for layer, part in zip(layers, packed, strict=True):
            layer.weight.data = self._packed[begin : begin + part.numel()]
            begin += part.numel()

    def up(self, columns: int) -> torch.Tensor:
        """Beside the weights."""
        return torch.zeros(self._shape[0], columns, dtype=self.dtype, device=self._packed.device)

    def product(self, rows: torch.Tensor, adapters: Adapters) -> tuple[torch.Tensor, ...]:
        """Of the layers, then of the adapters on top."""
        largest = torch.cat([_largest(state) for state in self._states])
        how = (self._blocksize, self._type, self._shape)
        output = _FourBitProduct.apply(rows, self._packed, largest, how, *_operands(adapters))
        return _split(output, self._bias, adapters.sizes)

    def separate(self, layers: list[Any]) -> None:
        """Copies of the views."""
        for layer in layers:
            layer.weight.data = layer.weight.data.clone()


def _largest(state: Any) -> torch.Tensor:
    """Largest value of each block, fp32; with double quantization these are quantized themselves."""
    if not state.nested:
        return state.absmax.float()  # type: ignore[no-any-return]
    return (dequantize_blockwise(state.absmax, state.state2) + state.offset).float()


class _FourBitProduct(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - as autograd has it
        ctx: Any,
        rows: torch.Tensor,
        packed: torch.Tensor,
        largest: torch.Tensor,
        how: tuple[int, str, list[int]],
        down: torch.Tensor,
        up: torch.Tensor,
        sizes: list[int],
        ranks: list[int],
        *ups: torch.Tensor,
    ) -> torch.Tensor:
        inner = rows @ down.t()
        ctx.save_for_backward(rows, inner, packed, largest, down, up)
        ctx.how, ctx.sizes, ctx.ranks, ctx.kinds = how, sizes, ranks, [part.dtype for part in ups]
        return added_products.four_bits(rows, packed, largest, *how, inner, up.t(), transposed=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        rows, inner, packed, largest, down, up = ctx.saved_tensors
        (gradient,) = gradients
        gradient_of_inner = gradient @ up
        return (
            added_products.four_bits(gradient, packed, largest, *ctx.how, gradient_of_inner, down),
            None,
            None,
            None,
            gradient_of_inner.t() @ rows,
            None,
            None,
            None,
            *_gradients_of_ups(gradient, inner, ctx.sizes, ctx.ranks, ctx.kinds),
        )
