"""A product and another on top of it, which cuBLAS adds while it writes: an adapter's thin one on that of its layer.

As operations of their own, since torch.compile makes ``torch.addmm`` of such a sum, into new memory: it copies the
first product, of up to 400 MB, and reads and writes it twice more than is needed. What is made on the way, weights out
of 4 bits above all, is gone at the end of each: the compiler would keep it from forward to backward.
"""

from __future__ import annotations

import torch

from finetune_trainer.fp8 import multiply_scaled

_LIBRARY = torch.library.Library("finetune_trainer", "FRAGMENT")
_LIBRARY.define("extended(Tensor gradient, Tensor weight, Tensor down) -> Tensor")
_LIBRARY.define(
    "fp8(Tensor packed, Tensor own, Tensor weight, Tensor scale, Tensor inner, Tensor outer) -> Tensor",
)
_LIBRARY.define(
    "four_bits(Tensor rows, Tensor packed, Tensor largest, int blocksize, str kind, SymInt[] shape, "
    "Tensor inner, Tensor outer, *, bool transposed=False) -> Tensor"
)
extended = torch.ops.finetune_trainer.extended
fp8 = torch.ops.finetune_trainer.fp8
four_bits = torch.ops.finetune_trainer.four_bits


@torch.library.impl(_LIBRARY, "extended", "CompositeExplicitAutograd")
def _extended(gradient: torch.Tensor, weight: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """Of ``[rows, rows down^T] weight^T``: gradients of ``rows`` and, beside them, of what the adapters read.

    Args:
        gradient: (tokens, out), of the product.
        weight: (out, in + columns).
        down: (columns, in).
    """
    both = gradient @ weight
    width = down.shape[1]
    both[:, :width].addmm_(both[:, width:], down)
    return both


@torch.library.register_fake("finetune_trainer::extended")
def _(gradient: torch.Tensor, weight: torch.Tensor, _down: torch.Tensor) -> torch.Tensor:
    return gradient.new_empty(gradient.shape[0], weight.shape[1])


@torch.library.impl(_LIBRARY, "fp8", "CompositeExplicitAutograd")
def _fp8(  # noqa: PLR0917 - as it is declared
    packed: torch.Tensor,
    own: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    inner: torch.Tensor,
    outer: torch.Tensor,
) -> torch.Tensor:
    """``packed weight + inner outer`` in bf16, the first as :func:`finetune_trainer.fp8.multiply_scaled` has it;
    ``inner`` (tokens, columns), ``outer`` (columns, out)."""
    return multiply_scaled(packed, own, weight, scale).addmm_(inner, outer)


@torch.library.register_fake("finetune_trainer::fp8")
def _(
    packed: torch.Tensor, _own: object, _weight: object, _scale: object, inner: torch.Tensor, outer: torch.Tensor
) -> torch.Tensor:
    return inner.new_empty(packed.shape[0], outer.shape[1])


@torch.library.impl(_LIBRARY, "four_bits", "CompositeExplicitAutograd")
def _four_bits(  # noqa: PLR0917 - as it is declared
    rows: torch.Tensor,
    packed: torch.Tensor,
    largest: torch.Tensor,
    blocksize: int,
    kind: str,
    shape: list[int],
    inner: torch.Tensor,
    outer: torch.Tensor,
    *,
    transposed: bool = False,
) -> torch.Tensor:
    """``rows weight + inner outer``, or with the weight ``transposed``.

    Args:
        rows: (tokens, one side of the weight).
        packed: the weight in 4 bits, as bitsandbytes has it.
        largest: fp32, of each block.
        blocksize: values to a block.
        kind: nf4 or fp4.
        shape: of the weight.
        inner: (tokens, columns).
        outer: (columns, the weight's other side).
        transposed: whether it is.
    """
    weight = torch.ops.bitsandbytes.dequantize_4bit(packed, largest, blocksize, kind, shape, rows.dtype)
    return (inner @ outer).addmm_(rows, weight.t() if transposed else weight)


@torch.library.register_fake("finetune_trainer::four_bits")
def _(
    rows: torch.Tensor, _packed: object, _largest: object, _size: object, _kind: object, _shape: object, _inner: object,
    outer: torch.Tensor, *, transposed: bool = False,
) -> torch.Tensor:  # fmt: skip
    del transposed
    return rows.new_empty(rows.shape[0], outer.shape[1])
