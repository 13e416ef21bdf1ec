"""What the output head takes of a device's memory: the logits, what the loss makes of them, and the head's gradient."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.activations import FLOAT
from finetune_api.model_shape import ModelShape
from finetune_api.recipe import Recipe

_CHUNK = 4
"""By how much the fused loss' piece of the logits is larger than the hidden states, at least."""
_CHUNK_TOKENS = 1024
"""Tokens in such a piece, at least: the head's gradient of each is added to that of the others, all of it in fp32,
which takes more time than the products where a model is narrow."""


def head_trained(shape: ModelShape, recipe: Recipe) -> bool:
    """Whether the output head's weight is trained."""
    method = recipe.method
    if method.full is not None:
        return True
    names = method.freeze.extra_modules if method.freeze is not None else []
    names = [*names, *(method.lora.modules_to_save if method.lora is not None else [])]
    heads = {"lm_head", "embed_tokens"} if shape.tied_embeddings else {"lm_head"}
    return any(name.rpartition(".")[2] in heads for name in names)


@dataclass(frozen=True)
class Logits:
    """Bytes of logits and what is made of them."""

    forward: float
    """When the loss is there."""
    backward: float
    """When its gradient is computed."""
    head: float
    """When the head's gradient is computed."""


def logit_bytes(shape: ModelShape, recipe: Recipe) -> Logits:
    """Logits, their copies and gradients.

    transformers' loss (loss/loss_utils.py) casts logits to fp32, and cross entropy keeps their log-softmax in fp32;
    accelerate gives the model's output as a further fp32 copy. In the backward pass the log-softmax, its gradient and
    the logits' gradient are there together, each in fp32. Liger's fused loss makes logits for some tokens at a time, as
    many as :func:`fused_loss_scale` says, and the hidden state's gradient at once (arXiv 2410.10989).
    """
    tokens, vocabulary, compute = recipe.tokens, shape.vocabulary, recipe.compute
    if recipe.scores:
        return Logits(0.0, 0.0, 0.0)
    if recipe.fused_loss:
        chunks = -(-vocabulary // (fused_loss_scale(tokens, shape.hidden, vocabulary) * shape.hidden))
        chunk = min(tokens, 1 << (max(1, -(-tokens // chunks)) - 1).bit_length())
        held = chunk * vocabulary * compute + 2 * tokens * shape.hidden * compute
        head = 2 * shape.embedding_parameters * recipe.trained if head_trained(shape, recipe) else 0
        return Logits(held + head, tokens * shape.hidden * compute + head / 2, head / 2)
    elements = tokens * vocabulary
    forward = elements * (2 * FLOAT + (compute if compute != FLOAT else 0))
    return Logits(forward, 3 * FLOAT * elements, elements * compute)


def fused_loss_scale(tokens: int, hidden: int, vocabulary: int) -> int:
    """By how much the fused loss' piece of the logits may be larger than the hidden states, (tokens, hidden)."""
    return max(_CHUNK, -(-vocabulary * _CHUNK_TOKENS // (max(1, tokens) * hidden)))


def head_gradient(shape: ModelShape, recipe: Recipe) -> float:
    """The output head's gradient as it is made: in the arithmetic's type, and cast to the weight's."""
    if not head_trained(shape, recipe):
        return 0.0
    cast = recipe.compute if recipe.gathered != recipe.compute else 0
    return shape.embedding_parameters * (recipe.gathered + cast)


def head_share(shape: ModelShape, recipe: Recipe) -> float:
    """The output head's part of the gradients."""
    return shape.embedding_parameters * recipe.trained if head_trained(shape, recipe) else 0.0


def waiting_head(shape: ModelShape, recipe: Recipe) -> float:
    """The head's gradient where it waits for the embedding's, beside the gradients of earlier micro-batches."""
    return head_share(shape, recipe) if shape.tied_embeddings and recipe.accumulation > 1 else 0.0


def last_gradient(shape: ModelShape, recipe: Recipe) -> float:
    """The embedding's gradient before it is added to what is there: the head's, where they share weights, waits until
    then."""
    if recipe.method.full is None:
        return 0.0
    one = shape.embedding_parameters * recipe.gathered
    return one * ((recipe.accumulation > 1) + shape.tied_embeddings)
