"""How the work is spread over devices: the strategy that is asked for, or the cheapest that fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.failures import ExitCode
from finetune_api.fitting import STRATEGIES
from finetune_api.recipe import SHARDS_WEIGHTS
from finetune_api.trainer_config import TrainerConfig
from finetune_api.validation import validate_config

from finetune_trainer.errors import TrainerError

_ZERO = {"zero1": 1, "zero2": 2, "zero3": 3}
Fits = Callable[[str], bool]
"""Whether the training fits into each device's memory under the strategy of this name."""


@dataclass(frozen=True)
class Strategy:
    """What is really in use."""

    name: str
    """`none` (one device alone), `ddp`, `zero1`, `zero2`, `zero3` or `fsdp2`."""
    offload: str = "none"
    """What DeepSpeed holds in host memory: `none`, `optimizer` or `parameters` (these and the optimizer)."""

    @property
    def zero_stage(self) -> int:
        """DeepSpeed's ZeRO stage; 0 without DeepSpeed."""
        return _ZERO.get(self.name, 0)

    @property
    def shards_weights(self) -> bool:
        """Whether no device holds the whole model: every process must then take part in every forward pass."""
        return self.name in SHARDS_WEIGHTS


def processes_per_node(config: TrainerConfig) -> int:
    """One process a GPU; one on the CPU."""
    return max(1, config.distributed.gpus_per_node)


def processes(config: TrainerConfig) -> int:
    """Processes over all nodes."""
    return config.distributed.nodes * processes_per_node(config)


def choose(config: TrainerConfig, fits: Fits | None = None) -> Strategy:
    """The strategy of ``distributed``; ``auto`` is the cheapest that fits.

    Cheap means little communication: ddp moves gradients of what is trained, zero2 as much but shares out optimizer
    state and gradients, fsdp2 and zero3 move the weights too, twice a step. What fits is for ``fits`` to say; without
    an estimate adapters, whose optimizer state is small, run under ddp and whole weights under zero2. Where nothing
    fits, the last candidate is as good as it gets.

    Raises:
        TrainerError: CONFIG_INVALID where the table of rules refuses every candidate.
    """
    spread = config.distributed
    alone = processes(config) == 1
    if spread.strategy != "auto":
        # One process has nobody to share with, so ddp is what it does anyway.
        return Strategy("none" if alone and spread.strategy == "ddp" else spread.strategy, spread.offload)
    if alone and spread.offload == "none":
        return Strategy("none")
    candidates = _candidates(config)
    if fits is None:
        wanted = "ddp" if config.method.lora is not None else "zero2"
        return Strategy(wanted if wanted in candidates else candidates[0], spread.offload)
    return Strategy(next((name for name in candidates if fits(name)), candidates[-1]), spread.offload)


def _candidates(config: TrainerConfig) -> list[str]:
    """From cheap to dear, without what the table of rules refuses."""
    refusals = {name: validate_config(config.spread(strategy=name)) for name in STRATEGIES}
    allowed = [name for name, findings in refusals.items() if not findings]
    if not allowed:
        told = dict.fromkeys(str(finding) for findings in refusals.values() for finding in findings)
        raise TrainerError(
            ExitCode.CONFIG_INVALID, f"spec.distributed.strategy: auto finds none for this job: {'; '.join(told)}"
        )
    return allowed
