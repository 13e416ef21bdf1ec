"""In which order an epoch takes the sequences: by chance, the longest first of all.

Memory is highest where a batch is longest. What is going to be too much should be so at the first step, and not after
hours at the one that chance gave the longest sequence to.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class LongestFirst(Sampler[int]):
    """A new order each epoch, the same in every process and after a restart: it follows from seed and epoch alone."""

    def __init__(self, count: int, longest: int, seed: int) -> None:
        """
        Args:
            count: how many sequences there are.
            longest: index of the one that the first epoch begins with; it changes places with the one that chance
                put there.
            seed: of the orders.
        """
        self._count, self._longest, self._seed = count, longest, seed
        self._epoch = 0

    def __len__(self) -> int:
        return self._count

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader before it asks for an order."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        chance = torch.Generator().manual_seed(self._seed + self._epoch)
        order: list[int] = torch.randperm(self._count, generator=chance).tolist()
        if self._epoch == 0:
            place = order.index(self._longest)
            order[0], order[place] = order[place], order[0]
        yield from order
        self._epoch += 1
