"""How many bytes a training takes on one device, by part, before anything is loaded.

What is estimated is what torch.cuda.max_memory_allocated() tells afterwards: the largest sum of tensors that live at
one time. What the CUDA context, the allocator's rounding and its gaps take beside it is not in it; :data:`USABLE`
leaves room for that.

A step has moments at which memory may be highest, and the estimate is the largest of them:

- ``loss``: the forward pass is done, or the backward pass begins: all activations and the logits are there. Gradients
  are there too where the step has several micro-batches.
- ``layer``: the backward pass is in a layer: with gradient checkpointing its activations have been made again.
- ``gradients``: the backward pass is done: all gradients are there, and no activations.
- ``step``: ZeRO 1 and 2 copy their share of the gradients to the masters' type.

The parts are those of that moment. docs/memory.md explains each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune_api.activations import FLOAT, Keeping, attention_output_bytes, block_bytes, norm_bytes
from finetune_api.compiled import compiled_block_bytes
from finetune_api.heads import head_gradient, head_share, head_trained, last_gradient, logit_bytes, waiting_head
from finetune_api.model_shape import ModelShape, ShapeError
from finetune_api.recipe import Recipe
from finetune_api.status import MemoryEstimate
from finetune_api.training import MethodSpec
from finetune_api.weights import (
    FP32,
    adapted,
    frozen_layers_trained,
    linear_bytes,
    state_bytes,
    trained_matrices,
    trained_names,
)

USABLE = 0.9
"""Share of a device's memory that an estimate may fill: the rest is for the CUDA context (about half a gigabyte), the
allocator's gaps and what libraries hold."""
_CUBLAS = 2 * 32 * 2**20
"""cuBLAS' workspaces, which torch allocates as tensors: one for the forward and one for the backward pass's thread."""
_IN_FLIGHT = 4
"""Layers whose activations are on the device where they wait in host memory: on their way out, and fetched ahead."""
_BUCKET = 500_000_000
"""Elements that DeepSpeed reduces, or gathers, at a time."""


@dataclass(frozen=True)
class Activations:
    """Bytes that a micro-batch keeps for the backward pass."""

    layers: float
    """In all layers, or with gradient checkpointing what is kept to make them again."""
    rebuilt: float
    """In one layer that is made again; 0 without gradient checkpointing."""
    ends: float
    """Before the first layer and behind the last: tables of positions, masks, the last norm, the head's input."""
    copies: float
    """fp32 weights of all layers that autocast has cast, each kept for its gradient; compiled layers keep none."""
    cast: float
    """One layer's, while it is at work."""
    head_copy: float
    """The output head's, alike."""

    @property
    def kept(self) -> float:
        """What is there when the backward pass begins."""
        return self.layers + self.ends


@dataclass(frozen=True)
class _Moment:
    """Bytes beside weights and optimizer state at one moment of a step."""

    name: str
    gradients: float
    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        return self.gradients + self.activations + self.logits + self.buffers


def refuse_unknown(shape: ModelShape, method: MethodSpec) -> None:
    """Refuse what no formula here is right for.

    Raises:
        ShapeError: adapters on the feed-forward layers of a mixture of experts.
    """
    if shape.experts is None or method.lora is None:
        return
    attention = {linear.name for linear in shape.linears() if linear.place in ("attention", "output")}
    names = {name.rpartition(".")[2] for name in method.lora.target_modules}
    if not names or names - attention:
        raise ShapeError(
            "adapters on a mixture of experts are not estimated, since PEFT wraps the experts' weights as a whole; "
            f"method.lora.targetModules of {', '.join(sorted(attention))} are"
        )


def estimate(shape: ModelShape, recipe: Recipe) -> MemoryEstimate:
    """Bytes on one device at the moment when most are in use.

    Raises:
        ShapeError: as :func:`refuse_unknown`.
    """
    refuse_unknown(shape, recipe.method)
    weights, gradients, optimizer = resting_bytes(shape, recipe)
    worst = max(_moments(shape, recipe, gradients), key=lambda moment: moment.total)
    parts = {
        "weights": round(weights),
        "gradients": round(worst.gradients),
        "optimizer": round(optimizer),
        "activations": round(worst.activations),
        "logits": round(worst.logits),
        "buffers": round(worst.buffers),
    }
    return MemoryEstimate(
        **parts,
        total=sum(parts.values()),
        moment=worst.name,
        micro_batch_size=recipe.micro_batch,
        devices=recipe.devices,
    )


def _moments(shape: ModelShape, recipe: Recipe, gradients: float) -> Iterator[_Moment]:
    acts, logits, fixed = activations(shape, recipe), logit_bytes(shape, recipe), _fixed_buffers(shape, recipe)
    # ZeRO-3 has room for its share of the gradients from the start (DeepSpeed's grad_partitions_flat_buffer).
    waiting = gradients if recipe.accumulation > 1 or recipe.strategy == "zero3" else 0.0
    # The cast weights of layers that are made again are gone when the forward pass has ended.
    copies = 0.0 if recipe.checkpointing else acts.copies
    head = acts.head_copy
    yield _Moment("loss", waiting, acts.kept, logits.forward, fixed + acts.copies + head)
    yield _Moment("loss", waiting, acts.kept, logits.backward, fixed + copies + head)
    yield _Moment("loss", waiting, acts.kept, logits.head, fixed + copies + head + head_gradient(shape, recipe))

    layer = acts.rebuilt or acts.layers / shape.layers
    working = fixed + _working(shape, recipe)
    after_head = min(gradients, max(waiting, head_share(shape, recipe)))
    first = acts.kept + acts.rebuilt
    yield _Moment("layer", after_head, first, 0.0, working + (copies or acts.cast))
    done = gradients if recipe.accumulation > 1 else gradients * (1 - 1 / shape.layers)
    done = max(done, after_head)
    yield _Moment("layer", done, acts.ends + layer, 0.0, working + acts.cast + waiting_head(shape, recipe))
    yield _Moment("gradients", gradients, acts.ends, 0.0, fixed + last_gradient(shape, recipe))
    if recipe.strategy in ("zero1", "zero2") and recipe.offload == "none":
        # Flattened, and in fp32, beside themselves (DeepSpeed's stage_1_and_2.py, step).
        share = trained_parameters(shape, recipe) / recipe.devices
        again = share * (recipe.trained + (FP32 if recipe.trained != FP32 else 0))
        yield _Moment("step", share * recipe.trained, 0.0, 0.0, _workspaces(recipe) + again)


# -- what lies there ---------------------------------------------------------------------------------------------


def resting_bytes(shape: ModelShape, recipe: Recipe) -> tuple[float, float, float]:
    """Weights, gradients and optimizer state on one device, after sharding and offload (ZeRO, arXiv 1910.02054)."""
    matrices = list(trained_matrices(shape, recipe))
    trained = sum(matrix.elements for matrix in matrices)
    weights = _frozen_bytes(shape, recipe, trained) + trained * recipe.trained
    if recipe.reference:
        weights += trained * recipe.trained
    gradients = float(trained * recipe.trained)
    zero = recipe.strategy.startswith("zero")
    optimizer = sum(state_bytes(matrix, recipe.optimizer, FP32 if zero else recipe.trained) for matrix in matrices)
    if zero and recipe.trained != FP32:
        optimizer += FP32 * trained  # masters
    count = recipe.devices
    if recipe.sharded:
        optimizer /= count
    if recipe.strategy == "zero2" or recipe.shards_weights:
        gradients /= count
    if recipe.shards_weights:
        weights /= count
    if recipe.offload != "none":
        optimizer, gradients = 0.0, 0.0
    if recipe.offload == "parameters":
        weights = 0.0
    return weights, gradients, optimizer


def trained_parameters(shape: ModelShape, recipe: Recipe) -> int:
    """Weights that are trained, adapters included."""
    return sum(matrix.elements for matrix in trained_matrices(shape, recipe))


def _frozen_bytes(shape: ModelShape, recipe: Recipe, trained: int) -> float:
    """Weights that are not trained: all of the base under adapters, the rest of it under freeze."""
    if recipe.method.full is not None:
        return 0.0
    if recipe.method.lora is None:
        return (shape.parameters - trained) * recipe.compute
    frozen = float((shape.embedding_parameters + shape.head_parameters + shape.hidden) * recipe.compute)
    for dense, count in shape.blocks:
        linears = sum(linear_bytes(linear, recipe) for linear in shape.linears(dense=dense))
        rest = shape.norm_parameters + (0 if dense else shape.expert_parameters)
        frozen += count * (linears + rest * recipe.compute)
    return frozen


# -- what a micro-batch adds -------------------------------------------------------------------------------------


def activations(shape: ModelShape, recipe: Recipe) -> Activations:
    """What the forward pass keeps. Layers before the first one that is trained keep nothing."""
    method, tokens = recipe.method, recipe.tokens
    how = keeping(shape, recipe)
    plain = replace(how, trained=frozenset(), norms_trained=False)
    chosen = frozen_layers_trained(shape, recipe) if method.freeze is not None else range(shape.layers)
    first = chosen.start if method.freeze is not None and "embed_tokens" not in method.freeze.extra_modules else 0
    average: dict[bool, float] = {}
    one_block = compiled_block_bytes if recipe.compiled else block_bytes
    for trained in (True, False):
        sums = [count * one_block(shape, how if trained else plain, recipe.length, dense=dense)
                for dense, count in shape.blocks]  # fmt: skip
        average[trained] = sum(sums) / shape.layers
    behind = shape.layers - first - len(chosen)
    layers = tokens * (len(chosen) * average[True] + behind * average[False])
    embedding_frozen = method.full is None
    if embedding_frozen and not how.norms_trained and not recipe.compiled:
        layers -= tokens * norm_bytes(shape.hidden, how)  # nothing before it asks for a gradient
    rebuilt = outputs = 0.0
    if recipe.checkpointing:
        # While a compiled layer is at work, what it need not keep is there too.
        whole = replace(how, products_alone=False)
        rebuilt = sum(count * one_block(shape, whole, recipe.length, dense=dense) for dense, count in shape.blocks)
        rebuilt *= tokens / shape.layers
        layers = tokens * shape.layers * shape.hidden * how.residual
        if recipe.keeps_attention:
            one = tokens * attention_output_bytes(shape, how.compute)
            rebuilt -= one
            outputs = one * (len(chosen) + behind)
    if recipe.activation_offload:
        share = min(1.0, _IN_FLIGHT / shape.layers)
        layers *= share
        # Where layers are not compiled, torch's checkpointing holds these by itself, beyond the reach of an offload.
        outputs *= share if recipe.compiled else 1.0
    layers += outputs
    names = trained_names(shape, recipe)
    cast = recipe.autocast and recipe.trained == FP32
    copied = sum(m.elements for m in trained_matrices(shape, recipe) if m.rows > 1)
    head = shape.embedding_parameters if head_trained(shape, recipe) else 0
    outside = head + (shape.embedding_parameters if head and not shape.tied_embeddings else 0)
    copies = recipe.compute * max(0, copied - outside) if cast and (names or method.lora is not None) else 0.0
    return Activations(
        layers=layers,
        rebuilt=rebuilt,
        ends=_ends(shape, recipe, how),
        copies=0.0 if recipe.compiled else copies,
        cast=copies / shape.layers,
        head_copy=recipe.compute * head if cast else 0.0,
    )


def keeping(shape: ModelShape, recipe: Recipe) -> Keeping:
    """How a layer that is trained runs."""
    method, quantization = recipe.method, recipe.quantization
    lora = method.lora
    own = recipe.gathered if method.full is not None else recipe.compute
    names = trained_names(shape, recipe)
    norms = method.full is not None or (method.freeze is not None and not method.freeze.trainable_modules)
    return Keeping(
        compute=recipe.compute,
        residual=own,
        norm_weight=recipe.gathered if norms else own,
        trained=names,
        norms_trained=norms,
        adapted=adapted((*shape.linears(), *shape.linears(dense=False)), lora) if lora is not None else frozenset(),
        rank=lora.rank if lora is not None else 0,
        # PEFT's quantized layers leave inputs to autocast, but ask whether it is on for the GPU alone.
        copied_inputs=recipe.autocast and recipe.trained == FP32 and (quantization is None or not recipe.on_gpu),
        # One kernel on the GPU, with a mask of bytes; a product with numbers of the input's type on the CPU.
        dropout_mask=0 if lora is None or not lora.dropout else 1 if recipe.on_gpu else FLOAT,
        dora=lora is not None and lora.dora,
        keeps_base_inputs=quantization is not None
        and not (quantization.method == "bitsandbytes" and quantization.bits == 4),
        liger=recipe.liger,
        eager=recipe.eager,
        masked=recipe.masked,
        fused_adapters=recipe.fused_adapters,
        products_alone=recipe.fused_adapters and quantization is None and recipe.precision != "fp8",
    )


def _ends(shape: ModelShape, recipe: Recipe, how: Keeping) -> float:
    tokens = recipe.tokens
    rows = recipe.rows if recipe.masked else 1
    tables = 2 * rows * recipe.length * shape.head_dim * how.residual
    mask = recipe.rows * recipe.length**2 * (how.compute if recipe.eager else 1)
    ids = 3 * 8 * tokens
    head = shape.hidden * how.compute if head_trained(shape, recipe) else 0
    return (
        tables + (mask if recipe.masked or recipe.eager else 0) + ids + tokens * (norm_bytes(shape.hidden, how) + head)
    )


def _working(shape: ModelShape, recipe: Recipe) -> float:
    """Gradients of activations, and of one weight, while a layer's backward pass runs."""
    widest = max(linear.outputs if linear.place == "mlp" else linear.inputs for linear in shape.linears())
    if shape.experts is not None:
        widest = max(widest, shape.experts.chosen * shape.experts.intermediate)
    gradients = 3 * recipe.tokens * widest * recipe.compute
    largest = max(linear.inputs * linear.outputs for linear in shape.linears())
    if recipe.method.lora is None:
        return gradients + largest * (recipe.compute + recipe.gathered)
    decoded = recipe.compute * largest if recipe.quantization is not None else 0
    return gradients + decoded


def _fixed_buffers(shape: ModelShape, recipe: Recipe) -> float:
    """What is there beside: workspaces, and what communication holds."""
    trained = trained_parameters(shape, recipe)
    held = _workspaces(recipe)
    if recipe.devices > 1:
        if recipe.strategy == "ddp":
            held += trained * recipe.trained
        else:
            held += min(trained, _BUCKET) * recipe.trained
        if recipe.shards_weights:
            held += _gathered_bytes(shape, recipe)
    return held


def _workspaces(recipe: Recipe) -> float:
    return float(_CUBLAS) if recipe.on_gpu else 0.0


def _gathered_bytes(shape: ModelShape, recipe: Recipe) -> float:
    """Weights that other devices hold, while they are here. bitsandbytes keeps a 4-bit weight that it multiplied by for
    the backward pass (its MatMul4Bit sets ``ctx.tensors``, which checkpointing does not see), so that each that was
    gathered stays until then."""
    if recipe.quantization is None:
        return float(min(shape.parameters, 2 * _BUCKET) * recipe.compute)
    layers = sum(count * linear_bytes(linear, recipe) for dense, count in shape.blocks
                 for linear in shape.linears(dense=dense))  # fmt: skip
    return layers + shape.embedding_parameters * recipe.compute
