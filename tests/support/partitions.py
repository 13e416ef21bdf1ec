"""Graphs divided into forward and backward pass as Inductor divides them, and then run as they are: what compiled
layers keep shows without the time that compiling takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._functorch import partitioners
from torch._inductor.fx_passes.joint_graph import joint_graph_passes


def uncompiled(seen: Callable[[Any, Any], None] = lambda _forward, _backward: None) -> Any:
    """A backend of torch.compile; ``seen`` is told of each pair of graphs."""

    def partition(joint: Any, *arguments: Any, **options: Any) -> Any:
        joint_graph_passes(joint)
        forward, backward = partitioners.min_cut_rematerialization_partition(joint, *arguments, **options)
        seen(forward, backward)
        return forward, backward

    return aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), partition_fn=partition)
