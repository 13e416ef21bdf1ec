"""What is there before the first step stays until the last, so that it is not walked through again at each.

transformers' loop tells the model to train, collects its parameters to clip their gradients and again to clear them:
each a walk over all modules, of which adapters make thousands, 45 ms of Python a step of an 8B model, in which a fast
GPU waits. The garbage collector walks through all objects as well.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn


@contextmanager
def steady(model: nn.Module, *, replaced: bool) -> Iterator[None]:
    """Within, neither parameters of ``model`` may be exchanged nor modes of its parts, unless they are ``replaced`` in
    the first step (sharding does that)."""
    gc.collect()
    gc.freeze()
    try:
        with nullcontext() if replaced else _walked_once(model):
            yield
    finally:
        gc.unfreeze()


@contextmanager
def _walked_once(model: nn.Module) -> Iterator[None]:
    """Within, ``model.train`` does nothing where the model is in the mode that is asked for, and ``model.parameters``
    gives those that were there at the beginning."""
    walk = model.train
    walk(model.training)  # all parts alike
    parameters = list(model.parameters())
    instance: Any = vars(model)
    before = {name: instance[name] for name in ("train", "parameters") if name in instance}

    def train(mode: bool = True) -> nn.Module:  # noqa: FBT001, FBT002 - as torch has it
        return model if model.training is mode else walk(mode)

    def every(recurse: bool = True) -> Iterator[nn.Parameter]:  # noqa: FBT001, FBT002 - as torch has it
        return iter(parameters) if recurse else nn.Module.parameters(model, recurse=False)

    instance.update(train=train, parameters=every)
    try:
        yield
    finally:
        del instance["train"], instance["parameters"]
        instance.update(before)
