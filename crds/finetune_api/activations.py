"""What the forward pass keeps for the backward pass, in bytes a token.

The method is that of Korthikanti et al. (arXiv 2205.05198, section 4): go through a layer and add up what each
operation needs again. The operations are those of transformers' models as our trainer runs them: weights that are
trained in fp32 under autocast, a frozen base in its own type, adapters in fp32, RMS norms in fp32, attention by a
kernel that keeps no scores. Autograd keeps each tensor once, however many operations read it; tests hold the sums
against what it really keeps. A frozen linear layer keeps nothing, a trained one its input.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.model_shape import Linear, ModelShape, Place

FLOAT = 4
"""Bytes of an fp32 number."""


@dataclass(frozen=True)
class Keeping:
    """How one layer runs. Sizes are bytes an element."""

    compute: int
    """Of the arithmetic: 2 under bf16 and fp16."""
    residual: int
    """Of the hidden state between layers: that of the embedding's weights."""
    norm_weight: int
    """Of the norms' weights, which their output takes over where it is larger."""
    trained: frozenset[str]
    """Names of linear layers whose weights are trained."""
    norms_trained: bool
    adapted: frozenset[str]
    """Names of linear layers that have an adapter."""
    rank: int
    copied_inputs: bool
    """Whether each adapter keeps its input for itself: PEFT casts it to the adapter's fp32 and autocast back."""
    dropout_mask: int
    """Bytes an element of the mask where adapters drop inputs, each with its own mask and input; 0 where none do."""
    dora: bool
    keeps_base_inputs: bool
    """Whether quantized layers keep their input."""
    liger: bool
    """Fused kernels keep a norm's input alone, and not the activation's output."""
    eager: bool
    """Whether attention keeps its scores."""
    masked: bool
    """Whether attention has a mask beside causality: keys and values are then repeated for all heads."""
    fused_adapters: bool = False
    """Whether layers that read one input are one product with their adapters, which keeps that input once."""
    products_alone: bool = False
    """Of a compiled layer: whether products and attention are all that it keeps."""


def block_bytes(shape: ModelShape, how: Keeping, length: int, *, dense: bool) -> float:
    """Bytes a token that one block keeps.

    Args:
        shape: the model.
        how: how the block runs.
        length: tokens of one sequence.
        dense: whether it has a plain feed-forward layer.
    """
    linears = shape.linears(dense=dense)
    norm_out = how.residual if how.liger else max(how.residual, how.norm_weight)
    kept = shape.norms * norm_bytes(shape.hidden, how)
    kept += _inputs(linears, "attention", shape.hidden, norm_out, how)
    kept += _attention(shape, how, length)
    kept += _inputs(linears, "output", shape.query_width, how.compute, how, kept_already=not how.eager)
    if dense:
        kept += _inputs(linears, "mlp", shape.hidden, norm_out, how)
        kept += _feed_forward(shape.intermediate, linears, how)
    else:
        kept += expert_bytes(shape, how, norm_out)
        if shape.experts is not None and shape.experts.shared_intermediate:
            kept += _inputs(linears, "mlp", shape.hidden, norm_out, how)
            kept += _feed_forward(shape.experts.shared_intermediate, linears, how)
    kept += sum(_adapter(linear, how) for linear in linears if linear.name in how.adapted)
    return kept


def norm_bytes(width: int, how: Keeping, *, of: int | None = None, groups: int = 1) -> float:
    """What an RMS norm keeps: its input in fp32, the reciprocal root, and where its weight is trained the normed input.

    Args:
        width: elements of a token.
        how: how the block runs.
        of: bytes an element of the input; the residual's unless given.
        groups: into how many parts the width is normed.
    """
    size = how.residual if of is None else of
    if how.liger:
        return width * size + FLOAT * groups
    return width * FLOAT + FLOAT * groups + (width * size if how.norms_trained else 0)


def _inputs(
    linears: tuple[Linear, ...], place: Place, width: int, size: int, how: Keeping, *, kept_already: bool = False
) -> float:
    """What linear layers that read the same tensor keep of it.

    Args:
        linears: the block's.
        place: which tensor.
        width: its elements a token.
        size: its bytes an element.
        how: how the block runs.
        kept_already: whether an operation before keeps the tensor itself.
    """
    readers = [linear for linear in linears if linear.place == place]
    trained = sum(linear.name in how.trained for linear in readers)
    adapted = sum(linear.name in how.adapted for linear in readers)
    if how.fused_adapters and adapted == len(readers):
        adapted = 1
    apart = how.copied_inputs or how.dropout_mask > 0
    own = (trained if size != how.compute else 0) + (adapted if apart else 0)
    shared = size == how.compute and trained > 0
    shared |= adapted > 0 and not apart
    shared |= how.keeps_base_inputs
    kept = width * (how.compute * own + how.dropout_mask * adapted)
    if shared and not kept_already:
        kept += width * how.compute
    return kept


def _attention(shape: ModelShape, how: Keeping, length: int) -> float:
    q, k = shape.query_width, shape.key_width
    kept = 0.0
    if shape.head_norms:
        parts = ((q, shape.heads), (k, shape.kv_heads))
        kept += sum(norm_bytes(width, how, of=how.compute, groups=groups) for width, groups in parts)
    keys = q if how.masked or how.eager else k
    kept += how.compute * (q + 2 * keys)
    if how.eager:
        softmax = FLOAT + (how.compute if how.compute != FLOAT else 0)
        return kept + softmax * shape.heads * length
    return kept + attention_output_bytes(shape, how.compute) + (how.compute * length if how.masked else 0)


def attention_output_bytes(shape: ModelShape, compute: int) -> int:
    """What attention's kernel puts out a token, of ``compute`` bytes an element, and of each head the logarithm of its
    scores' sum."""
    return compute * shape.query_width + FLOAT * shape.heads


def _feed_forward(width: int, linears: tuple[Linear, ...], how: Keeping) -> float:
    gate, activated, up = 1, 0 if how.liger else 1, 1
    return how.compute * width * (gate + activated + up) + _inputs(linears, "down", width, how.compute, how)


def expert_bytes(shape: ModelShape, how: Keeping, norm_out: int = 2) -> float:
    """Experts: each token's state for each expert it goes to, gate, activation, up and product, and its weighted
    output.

    Args:
        shape: the model.
        how: how the block runs.
        norm_out: bytes an element of what the norm before them puts out.
    """
    experts = shape.experts
    if experts is None:
        return 0
    trained = "experts" in how.trained
    width, hidden, chosen = experts.intermediate, shape.hidden, experts.chosen
    kept = chosen * how.compute * (3 * width + hidden)
    if trained:
        kept += chosen * (how.compute * width + norm_out * hidden + (how.compute * hidden if norm_out != 2 else 0))
    return kept + FLOAT * experts.count


def _adapter(linear: Linear, how: Keeping) -> float:
    """An adapter keeps what lies between its two matrices; DoRA also both outputs that it scales."""
    return how.compute * (how.rank + (2 * linear.outputs if how.dora else 0))
