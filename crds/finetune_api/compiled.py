"""What a compiled layer keeps for the backward pass, in bytes a token.

torch.compile sees a layer's forward and backward pass as one graph and keeps what costs much to make again: the results
of products and of attention. Norms, rotary embeddings, the activation and what it is multiplied with, copies in another
type: all of these are made again. The trainer says so where the compiler would not (finetune_trainer.kept, decision
0020), and the peaks of bench/trainer are what the sums are held against.
"""

from __future__ import annotations

from finetune_api.activations import FLOAT, Keeping, attention_output_bytes, expert_bytes
from finetune_api.model_shape import ModelShape


def compiled_block_bytes(shape: ModelShape, how: Keeping, length: int, *, dense: bool) -> float:
    """Bytes a token that one block keeps, its input among them.

    Args:
        shape: the model.
        how: how the block runs.
        length: tokens of one sequence.
        dense: whether it has a plain feed-forward layer.
    """
    width = shape.query_width + 2 * shape.key_width
    kept: float = how.residual * shape.hidden  # its input
    kept += how.compute * width + _attention(shape, how, length)
    if not how.products_alone:
        kept += how.compute * width  # normed and turned, as attention reads them
    kept += how.compute * shape.hidden  # what the output layer adds to it
    if dense:
        kept += 2 * how.compute * shape.intermediate  # gate and up
    else:
        kept += expert_bytes(shape, how)
    for linear in shape.linears(dense=dense):
        if linear.name in how.adapted:  # and what dropout leaves of its input, and DoRA scales of its output
            kept += how.compute * (how.rank + (linear.inputs if how.dropout_mask else 0))
            kept += how.compute * (linear.outputs if how.dora else 0)
    return kept


def _attention(shape: ModelShape, how: Keeping, length: int) -> float:
    if how.eager:
        return (FLOAT + how.compute) * shape.heads * length
    return attention_output_bytes(shape, how.compute) + (how.compute * length if how.masked else 0)
