"""What a compiled layer keeps from its forward to its backward pass, where the compiler would choose otherwise.

Attention is kept: the compiler knows FlashAttention's kernels to be expensive, but not cuDNN's, which it runs again,
3 % of a step, for a twentieth of the memory. Of a layer that is to be recomputed nothing is kept. Checkpointing says
so to the compiler, but up to torch 2.11 not of what an autograd.Function does, such as the products of fused
adapters.
"""

from __future__ import annotations

from typing import Any

import torch
import torch._inductor.config
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy

_ATTENTION = {
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
}


def keep(*, recomputed: bool) -> None:
    """Have what is compiled from here on keep what it should.

    Args:
        recomputed: nothing at all but inputs, or else attention's output above all.
    """
    torch._inductor.config.joint_custom_pre_pass = _Marks(recomputed=recomputed)  # noqa: SLF001


class _Marks(CustomGraphPass):
    """Tells the partitioner, which divides a graph of both passes, by the words of checkpointing."""

    def __init__(self, *, recomputed: bool) -> None:
        self._recomputed = recomputed

    def __call__(self, graph: Graph) -> None:
        for node in graph.nodes:
            if node.op != "call_function" or _is_backward(node):
                continue
            if self._recomputed:
                node.meta.setdefault("recompute", CheckpointPolicy.MUST_RECOMPUTE)
            elif str(node.target) in _ATTENTION:
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> Any:
        """Part of the key under which compiled code is cached."""
        return get_hash_for_files((__file__,), str(self._recomputed))


def _is_backward(node: Node) -> bool:
    return node.meta.get("partitioner_tag") == "is_backward"
