"""Bytes of weights, gradients and optimizer state: what lies there whatever the batch.

4, 2 and 1 bytes a weight in fp32, bf16 or fp16, and 8 bits; fewer with their constants for quantized ones. A tensor
that lies on the device takes these and nothing else; a test holds them against real ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api.model_shape import Linear, ModelShape
from finetune_api.recipe import BYTES, Optimizer, Recipe
from finetune_api.training import LoraMethod, QuantizationSpec

FP32 = BYTES["fp32"]
_ABSMAX_BLOCK, _NESTED_BLOCK = 64, 256
"""Weights that share a constant in bitsandbytes' 4 bits, and constants that share one of double quantization."""
_HQQ_GROUP = 64
"""Weights that share a scale and a zero."""
_STATE_BLOCK, _SMALLEST_8BIT = 256, 4096
"""bitsandbytes' optimizers: values that share a constant, and the smallest tensor that is held in 8 bits."""


@dataclass(frozen=True)
class Matrix:
    """Trained tensors of one kind: ``count`` of them, each (rows, columns); one row for a vector."""

    rows: int
    columns: int
    count: int = 1
    embedding: bool = False

    @property
    def elements(self) -> int:
        """Weights of all."""
        return self.rows * self.columns * self.count


def quantized_bytes(quantization: QuantizationSpec) -> float:
    """Bytes a weight, with the constants that decode it, but for the row scales of 8 bits."""
    bits = quantization.bits or 4
    if quantization.method == "bitsandbytes":
        if bits == 8:
            return 1.0
        if quantization.double_quantization:
            return 0.5 + 1 / _ABSMAX_BLOCK + FP32 / (_ABSMAX_BLOCK * _NESTED_BLOCK)
        return 0.5 + FP32 / _ABSMAX_BLOCK
    constants = 2 * BYTES[quantization.compute_dtype or "bf16"]
    return bits / 8 + constants / _HQQ_GROUP


def linear_bytes(linear: Linear, recipe: Recipe) -> float:
    """Bytes of a frozen linear layer."""
    weights = linear.inputs * linear.outputs
    rest = (linear.parameters - weights) * recipe.compute
    if recipe.precision == "fp8" and recipe.method.lora is not None:
        return weights + FP32 + rest
    if recipe.quantization is None:
        return weights * recipe.compute + rest
    scales = FP32 * linear.outputs if recipe.quantization.bits == 8 else 0
    return weights * quantized_bytes(recipe.quantization) + scales + rest


def adapted(linears: tuple[Linear, ...], method: LoraMethod) -> frozenset[str]:
    """Names of those that get an adapter."""
    if not method.target_modules:
        return frozenset(linear.name for linear in linears)
    wanted = {name.rpartition(".")[2] for name in method.target_modules}
    return frozenset(linear.name for linear in linears if linear.name in wanted)


def frozen_layers_trained(shape: ModelShape, recipe: Recipe) -> range:
    """Layers that the freeze method trains."""
    method = recipe.method.freeze
    if method is None:
        return range(0)
    count = min(abs(method.trainable_layers), shape.layers)
    return range(shape.layers - count, shape.layers) if method.trainable_layers > 0 else range(count)


def trained_names(shape: ModelShape, recipe: Recipe) -> frozenset[str]:
    """Names of linear layers (``experts`` for those) whose weights are trained where a layer is trained at all."""
    linears = (*shape.linears(), *shape.linears(dense=False))
    names = {linear.name: linear.place for linear in linears} | {"experts": "mlp"}
    if recipe.method.full is not None:
        return frozenset(names)
    method = recipe.method.freeze
    if method is None:
        return frozenset()
    if not method.trainable_modules:
        return frozenset(names)
    parts = {"self_attn": ("attention", "output"), "mlp": ("mlp", "down")}
    wanted = {module.rpartition(".")[2] for module in method.trainable_modules}
    places = {place for module in wanted for place in parts.get(module, ())}
    return frozenset(name for name, place in names.items() if name in wanted or place in places)


def trained_matrices(shape: ModelShape, recipe: Recipe) -> Iterator[Matrix]:
    """All tensors that are trained."""
    method = recipe.method
    if method.lora is not None:
        for dense, count in shape.blocks:
            for linear in shape.linears(dense=dense):
                if linear.name in adapted(shape.linears(dense=dense), method.lora):
                    yield Matrix(method.lora.rank, linear.inputs, count)
                    yield Matrix(linear.outputs, method.lora.rank, count)
                    if method.lora.dora:
                        yield Matrix(1, linear.outputs, count)
        yield from _outside(shape, set(method.lora.modules_to_save))
        return
    if method.full is not None:
        yield from _outside(shape, {"embed_tokens", "lm_head", "norm"})
    elif method.freeze is not None:
        yield from _outside(shape, set(method.freeze.extra_modules))
    layers = shape.layers if method.full is not None else len(frozen_layers_trained(shape, recipe))
    names, whole = trained_names(shape, recipe), method.full is not None or not _modules(recipe)
    for dense, of_all in shape.blocks:
        count = of_all if layers == shape.layers else round(layers * of_all / shape.layers)
        for linear in shape.linears(dense=dense):
            if linear.name in names:
                yield Matrix(linear.outputs, linear.inputs, count)
                if linear.bias:
                    yield Matrix(1, linear.outputs, count)
        if shape.experts is not None and not dense and "experts" in names:
            experts = shape.experts
            yield Matrix(2 * experts.intermediate * experts.count, shape.hidden, count)
            yield Matrix(shape.hidden * experts.count, experts.intermediate, count)
            rest = shape.expert_parameters - 3 * shape.hidden * experts.intermediate * experts.count
            yield Matrix(1, rest, count)
        if whole:
            yield Matrix(1, shape.hidden, count * shape.norms)
            if shape.head_norms:
                yield Matrix(1, shape.head_dim, count * 2)


def _modules(recipe: Recipe) -> list[str]:
    return recipe.method.freeze.trainable_modules if recipe.method.freeze is not None else []


def _outside(shape: ModelShape, names: set[str]) -> Iterator[Matrix]:
    """Tensors beside the layers, by the ends of their modules' names."""
    ends = {name.rpartition(".")[2] for name in names}
    embedding = {"embed_tokens"} | ({"lm_head"} if shape.tied_embeddings else set())
    if ends & embedding:
        yield Matrix(shape.vocabulary, shape.hidden, embedding=True)
    if "lm_head" in ends and not shape.tied_embeddings:
        yield Matrix(shape.vocabulary, shape.hidden)
    if "norm" in ends:
        yield Matrix(1, shape.hidden)


def state_bytes(matrix: Matrix, optimizer: Optimizer, weight: int) -> float:
    """Bytes of an optimizer's state for a kind of tensors.

    Args:
        matrix: the tensors.
        optimizer: which one. AdamW has two moments in the weights' type; in 8 bits each value takes one byte and a
            block's constant, but embeddings and small tensors stay in fp32 (Dettmers et al., arXiv 2110.02861);
            Adafactor has a row and a column of each matrix (Shazeer and Stern, arXiv 1804.04235).
        weight: bytes of a weight that is its own master.
    """
    if optimizer == "adafactor":
        each = FP32 * (matrix.rows + matrix.columns if matrix.rows > 1 else matrix.columns)
        return each * matrix.count
    if optimizer == "adamw":
        return 2 * weight * matrix.elements
    if matrix.embedding or matrix.rows * matrix.columns < _SMALLEST_8BIT:
        return 2 * FP32 * matrix.elements
    return 2 * matrix.elements * (1 + FP32 / _STATE_BLOCK)
