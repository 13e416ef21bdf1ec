"""LoRA's adapters computed with the layers that they are on, and layers that read the same input as one product.

peft runs three products a layer and adds up: ``x W^T + s (x A^T) B^T``. Of what that moves through memory, most is the
second product's output, written and read again to be added. Here:

- Layers with one input (queries, keys and values; gate and up) are one: their weights lie below each other, and so do
  their A. One product instead of three, forward and backward, and one gradient of the input instead of a sum of six.
- Under a weight in 16 or 32 bits, B lies beside it: ``[x, s x A^T] [W, B]^T`` is the layer and its adapter in one
  product, and its backward gives the gradients of ``x`` and of ``x A^T`` in one.
- Under a base in 8-bit floats or 4 bits the adapter's output is added by a product of its own.

What is trained is what peft made: the same parameters in the same type. Weights of the base stay where they were for
everybody else, as views. Figures are in bench/trainer/README.md; :mod:`finetune_trainer.fused_bases` has the products.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from finetune_trainer.fused_bases import Adapters, Base, Whole, base_of

NAME = "fused-adapters"
_ATTENTION = ("q_proj", "k_proj", "v_proj")
_SIBLINGS = (_ATTENTION, ("gate_proj", "up_proj"))
"""Names of layers that read the same input, as the field's models have them."""
_ALIGNMENT = 8
"""Columns that are added to a weight are a multiple of this: GPUs want rows that begin at 16 bytes."""


def fuse_adapters(model: Any) -> int:
    """Have ``model``'s adapters computed with their layers, wherever that gives the same; the number of such layers.

    Not with dropout between input and adapter, which differs by layer, nor DoRA, whose norm needs the sum of weights.
    To be called when weights are on their device, before layers are compiled.
    """
    groups = [group for parts in adapted_layers(model, together=True) if (group := Group.of(parts)) is not None]
    if not groups:
        return 0

    copies = [pair for group in groups for pair in group.copies()]
    weights = [weight for _, weight in copies]
    # Stages beside sft go through the model again (a reference, KTO's mismatched pairs) before the backward of the
    # first time, which saved these places. The same values, written again, must not count as a change of them.
    places = [place.data for place, _ in copies]

    def refresh(_model: nn.Module, _inputs: Any) -> None:
        with torch.no_grad():
            torch._foreach_copy_(places, weights)

    hook = model.get_base_model().base_model.register_forward_pre_hook(refresh)
    model._fused_adapters = (groups, hook)  # noqa: SLF001 - kept with what it belongs to
    return sum(len(group.layers) for group in groups)


def on_whole_weights(model: Any) -> bool:
    """Whether ``model`` has layers that are computed with their adapters, all on weights in 16 or 32 bits."""
    groups, _ = getattr(model, "_fused_adapters", ((), None))
    return bool(groups) and all(isinstance(group.base, Whole) for group in groups)


def separate_adapters(model: Any) -> None:
    """Give ``model``, where :func:`fuse_adapters` changed it, layers that are computed by peft, on weights of their
    own."""
    groups, hook = getattr(model, "_fused_adapters", ((), None))
    if hook is None:
        return
    hook.remove()
    for group in groups:
        group.dissolve()
    del model._fused_adapters  # noqa: SLF001


def adapted_layers(model: nn.Module, *, together: bool) -> list[list[Any]]:
    """The layers with adapters, each by itself, or those with the same input ``together``."""
    found: list[list[Any]] = []
    taken: set[int] = set()
    for parent in model.modules() if together else ():
        for names in _SIBLINGS:
            parts = [getattr(parent, name, None) for name in names]
            if all(isinstance(part, LoraLayer) for part in parts):
                found.append(parts)
                taken.update(map(id, parts))
    found.extend([part] for part in model.modules() if isinstance(part, LoraLayer) and id(part) not in taken)
    return found


class Group:
    """Layers that are computed as one.

    Attributes:
        layers: peft's, in the order of their rows.
        base: their weights.
        up: (rows of all, columns of all adapters), B of each at its place, zero elsewhere.
    """

    def __init__(self, layers: list[Any], base: Base, ranks: list[int]) -> None:
        self.layers, self.base, self.ranks = layers, base, ranks
        self.sizes = [layer.out_features for layer in layers]
        self.up = base.up(-(-sum(ranks) // _ALIGNMENT) * _ALIGNMENT)
        self._held: tuple[torch.Tensor, list[torch.Tensor | None]] | None = None
        self._places = []
        row = column = 0
        for size, rank in zip(self.sizes, ranks, strict=True):
            self._places.append(self.up[row : row + size, column : column + rank])
            row, column = row + size, column + rank
        for index, layer in enumerate(layers):
            layer._group, layer._index = self, index  # noqa: SLF001 - read by what stands in for its forward
            layer.forward = MethodType(_forward, layer)

    @classmethod
    def of(cls, layers: list[Any]) -> Group | None:
        """``layers`` as one; none where peft has to compute them."""
        if not all(_is_plain(layer) for layer in layers):
            return None
        base = base_of([layer.base_layer for layer in layers])
        return None if base is None else cls(layers, base, [layer.r[layer.active_adapters[0]] for layer in layers])

    def copies(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Where B of each layer has to be before it is used, and B, which is trained outside of the products."""
        for place, layer in zip(self._places, self.layers, strict=True):
            yield place, layer.lora_B[layer.active_adapters[0]].weight

    def dissolve(self) -> None:
        """Give the layers back to peft."""
        for layer in self.layers:
            del layer.forward, layer._group, layer._index  # noqa: SLF001
        self.base.separate([layer.base_layer for layer in self.layers])

    def output(self, index: int, inputs: torch.Tensor) -> torch.Tensor:
        """Of the layer at ``index``, (…, in) to (…, out). The first that is asked computes for all."""
        if self._held is None or self._held[0] is not inputs:
            self._held = (inputs, list(self._compute(inputs)))
        outputs = self._held[1]
        found, outputs[index] = outputs[index], None
        if all(output is None for output in outputs):
            self._held = None
        if found is None:  # asked twice for the same
            found = self._compute(inputs)[index]
        return found

    def _compute(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = [(layer, layer.active_adapters[0]) for layer in self.layers]
        dtype = self.base.dtype
        down = torch.cat([layer.lora_A[name].weight.to(dtype) * layer.scaling[name] for layer, name in parts])
        missing = self.up.shape[1] - down.shape[0]
        if missing:
            down = torch.cat([down, down.new_zeros(missing, down.shape[1])])
        ups = [layer.lora_B[name].weight for layer, name in parts]
        rows = inputs.reshape(-1, inputs.shape[-1]).to(dtype)
        outputs = self.base.product(rows, Adapters(down, self.up, ups, self.sizes, self.ranks))
        if len(outputs) == len(_ATTENTION):  # whose kernels want values that are not parts of rows
            outputs = tuple(output.contiguous() for output in outputs)
        return tuple(output.reshape(*inputs.shape[:-1], output.shape[-1]) for output in outputs)


def _forward(layer: Any, inputs: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
    """In the place of peft's, which still computes the base alone (a reference model in preference stages)."""
    if layer.disable_adapters or layer.merged or arguments or options:
        found: torch.Tensor = type(layer).forward(layer, inputs, *arguments, **options)
        return found
    group: Group = layer._group  # noqa: SLF001
    return group.output(layer._index, inputs)  # noqa: SLF001


def _is_plain(layer: Any) -> bool:
    """Whether the adapter is the two products alone."""
    names = layer.active_adapters
    return (
        len(names) == 1
        and names[0] in layer.lora_A
        and isinstance(layer.lora_A[names[0]], nn.Linear)
        and isinstance(layer.lora_dropout[names[0]], nn.Identity)
        and names[0] not in layer.lora_variant
        and not layer.lora_bias[names[0]]
    )
