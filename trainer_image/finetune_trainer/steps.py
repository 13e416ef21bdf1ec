"""From epochs and batch sizes to optimizer steps; one place, so that prepare, train and resume agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune_api.training import HyperparametersSpec


@dataclass(frozen=True)
class Steps:
    """``total``: optimizer steps in all. ``per_epoch``: in one pass. ``accumulation``: micro-batches a step.
    ``warmup``: steps in which the learning rate rises."""

    total: int
    per_epoch: int
    micro_batch: int
    accumulation: int
    warmup: int


def count_steps(numbers: HyperparametersSpec, sequences: int, processes: int = 1) -> Steps:
    """Steps of a training on ``sequences`` sequences (after packing). The last step of an epoch may be smaller.

    Args:
        numbers: the job's; ``globalBatchSize`` is over all ``processes``.
        sequences: in one epoch.
        processes: one a device; ``micro_batch`` and ``accumulation`` are of one.
    """
    micro = int(numbers.micro_batch_size)
    accumulation = numbers.global_batch_size // (micro * processes)
    per_epoch = math.ceil(math.ceil(sequences / (micro * processes)) / accumulation)
    total = numbers.max_steps or max(1, math.ceil(numbers.epochs * per_epoch))
    return Steps(total, per_epoch, micro, accumulation, math.ceil(numbers.warmup_ratio * total))
