"""The processes of one training, as one of them sees them. Alone, every question has its answer at hand.

Words between processes go over gloo on the CPU, so that they never wait for the GPU; gradients and weights go by NCCL.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from torch import distributed

from finetune_trainer.errors import TrainerError
from finetune_trainer.peers import COLLECTIVE_SECONDS, is_worker


@dataclass(frozen=True)
class World:
    """Who we are among the processes."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, config: TrainerConfig) -> World:
        """Meet the other processes, where the launcher started this one; else stay alone.

        Raises:
            TrainerError: ACCELERATION_UNAVAILABLE where there are fewer GPUs than ``gpusPerNode``.
        """
        if not is_worker():
            return cls()
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        wanted = config.distributed.gpus_per_node
        backend = "gloo"
        if wanted:
            found = torch.cuda.device_count()
            if found < wanted:
                raise TrainerError(
                    ExitCode.ACCELERATION_UNAVAILABLE,
                    f"distributed.gpusPerNode asks for {wanted} GPUs, and torch finds {found} here; check the node's "
                    "drivers and resources.gpuResource",
                )
            torch.cuda.set_device(local)
            backend = "cpu:gloo,cuda:nccl"
        distributed.init_process_group(backend, timeout=timedelta(seconds=COLLECTIVE_SECONDS))
        return cls(rank, size)

    @property
    def main(self) -> bool:
        """Whether this process speaks for all: writes, posts, exports."""
        return self.rank == 0

    def total(self, *numbers: float) -> list[float]:
        """The sum over all processes of each of ``numbers``."""
        if self.size == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def share(self, value: Any) -> Any:
        """What the main process gave; others' ``value`` is ignored. Waits for the main process."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather(self, values: list[int]) -> list[int]:
        """The values of all processes, by rank. Waits for every process."""
        if self.size == 1:
            return values
        found: list[list[int]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(found, values)
        return [value for part in found for value in part]

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.total(0)


ALONE = World()
"""One process and no other."""
