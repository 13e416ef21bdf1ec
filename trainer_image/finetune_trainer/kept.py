"""What a layer keeps from its forward to its backward pass, where torch would choose otherwise.

Of what a compiled layer must not compute twice the compiler knows torch's own products and FlashAttention, but not
cuDNN's, which it runs again, 3 % of a step, for a twentieth of the memory; nor what has been added to torch's
operations: the varlen kernel, flash-attn, our products with weights in fewer bits. And its own products it makes again
where a share of the memory is to be saved and weights that are cast from fp32 masters are a part of it, as with few
tokens: four of a layer's seven, for what making the casts again saves too. All of these are kept. Weights that
bitsandbytes makes of 4 bits are not among them: those of all layers are as large as the base was in 16.

Of a layer that is to be recomputed nothing is kept, or attention's output alone, where that is wished for: in long
sequences it is most of a layer's work, and of its memory little. Checkpointing says so to the compiler, but up to torch
2.11 not of what an autograd.Function does, such as the products of fused adapters.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch._functorch.config
import torch._inductor.config
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

KEPT = 0.99
"""Share of the activations' memory that compiled layers may keep. Below all, the compiler makes again whatever costs
next to nothing, what a norm or SwiGLU makes of what is kept: a quarter of the memory for less than a hundredth of the
speed. With less it begins to repeat products (bench/trainer/README.md)."""
_PRODUCTS = {
    "aten.mm.default",
    "aten.addmm.default",
    "aten.bmm.default",
    "aten._scaled_mm.default",
    "aten._grouped_mm.default",
    "aten._scaled_grouped_mm.default",
}
_ATTENTION = {
    "aten._scaled_dot_product_cudnn_attention.default",
    "aten._scaled_dot_product_efficient_attention.default",
    "aten._scaled_dot_product_flash_attention.default",
    "aten._scaled_dot_product_flash_attention_for_cpu.default",
}
_ADDED_ATTENTION = {"torch_attn", "flash_attn", "flash_attn_3"}
"""Namespaces of attention that is not torch's."""
_OWN = "finetune_trainer"
"""Namespace of our products. Of these, too, the compiler knows no cost."""


def keep(*, recomputed: bool, attention: bool = False, joint: bool = False) -> None:
    """Have what is compiled from here on keep what it should.

    Args:
        recomputed: nothing at all but inputs.
        attention: of layers that are recomputed, what attention's kernel gave nevertheless.
        joint: whether layers with one input are one product (fused adapters on whole weights). Then products and
            attention are all that is kept: the compiler's choice within :data:`KEPT` would be the parts of a product as
            copies of their own, 16 GiB more for packed rows of an 8B model.
    """
    config = torch._functorch.config  # noqa: SLF001
    config.activation_memory_budget = 1.0 if recomputed or joint else KEPT
    config.aggressive_recomputation = joint and not recomputed
    torch._inductor.config.joint_custom_pre_pass = _Marks(recomputed=recomputed, attention=attention)  # noqa: SLF001


def keeping_attention() -> Any:
    """``context_fn`` of torch.utils.checkpoint for layers that are not compiled: all is made again but what attention's
    kernel gave."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(_context: Any, operation: Any, *_inputs: Any, **_options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if _is_attention(operation) else CheckpointPolicy.PREFER_RECOMPUTE


class _Marks(CustomGraphPass):
    """Tells the partitioner, which divides a graph of both passes, by the words of checkpointing."""

    def __init__(self, *, recomputed: bool, attention: bool) -> None:
        self._recomputed, self._attention = recomputed, attention

    def __call__(self, graph: Graph) -> None:
        for node in graph.nodes:
            if node.op != "call_function" or _is_backward(node):
                continue
            if self._recomputed and self._attention and _is_attention(_maker(node).target):
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE
            elif self._recomputed:
                node.meta.setdefault("recompute", CheckpointPolicy.MUST_RECOMPUTE)
            elif _is_costly(node.target):
                node.meta["recompute"] = CheckpointPolicy.MUST_SAVE

    def uuid(self) -> Any:
        """Part of the key under which compiled code is cached."""
        return get_hash_for_files((__file__,), f"{self._recomputed} {self._attention}")


def _is_backward(node: Node) -> bool:
    return node.meta.get("partitioner_tag") == "is_backward"


def _maker(node: Node) -> Node:
    """Of one of several results, what made them."""
    return node.args[0] if node.target is operator.getitem and isinstance(node.args[0], Node) else node


def _is_costly(target: Any) -> bool:
    return str(target) in _PRODUCTS or _namespace(target) == _OWN or _is_attention(target)


def _is_attention(target: Any) -> bool:
    return str(target) in _ATTENTION or _namespace(target) in _ADDED_ATTENTION


def _namespace(target: Any) -> str:
    return target.namespace if isinstance(target, OpOverload) else ""
