"""What memory a computation really takes: bytes saved for the backward pass, and the peak of live tensors.

Both count storages, each once, however many tensors look at it. On the CPU, where no allocator counts for us; what a
kernel needs for itself while it runs is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class _Held:
    """A tensor as autograd keeps it; gone when the graph that needs it is gone."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class Saved:
    """What the graphs that are alive keep."""

    def __init__(self, excluded: Iterable[torch.Tensor]) -> None:
        self._excluded = {tensor.untyped_storage().data_ptr() for tensor in excluded}
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(self, tensor: torch.Tensor) -> _Held:
        """Keep ``tensor`` for autograd."""
        held = _Held(tensor)
        self._held.add(held)
        return held

    @property
    def bytes(self) -> int:
        """Bytes of the storages, each once."""
        storages = [held.tensor.untyped_storage() for held in self._held]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return sum(size for address, size in sizes.items() if address not in self._excluded)


@contextmanager
def saved_for_backward(excluded: Iterable[torch.Tensor]) -> Iterator[Saved]:
    """Count what is saved in the block, but for the storages of ``excluded``, such as parameters."""
    saved = Saved(excluded)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda held: held.tensor):
        yield saved


class LiveTensors(TorchDispatchMode):
    """Follows every storage that an operator makes until it is freed.

    ``peak`` is the largest sum of bytes alive at one time; storages that were there before are told by
    :meth:`follow`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: set[int] = set()

    def follow(self, tensor: torch.Tensor) -> None:
        """Count the storage of ``tensor`` as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in tree_iter(result):
            if isinstance(item, torch.Tensor):
                self.follow(item)
        return result
