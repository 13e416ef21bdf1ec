"""DeepSpeed's configuration, made from ours; the user's own keys are laid over it.

What our fields decide is not for raw overrides: two places that say the same would have to agree.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.errors import TrainerError
from finetune_trainer.strategy import Strategy

OWNED: dict[str, str] = {
    "train_batch_size": "hyperparameters.globalBatchSize",
    "train_micro_batch_size_per_gpu": "hyperparameters.microBatchSize",
    "gradient_accumulation_steps": "hyperparameters.globalBatchSize",
    "gradient_clipping": "hyperparameters.maxGradNorm",
    "optimizer": "hyperparameters.optimizer",
    "scheduler": "hyperparameters.schedule",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
    "zero_optimization.stage": "distributed.strategy",
    "zero_optimization.offload_optimizer.device": "distributed.offload",
    "zero_optimization.offload_param.device": "distributed.offload",
}
"""Field of the spec that sets what DeepSpeed's key would."""
_NEVER = 10**9
"""Steps between two lines that DeepSpeed prints: our log has them."""


def make_config(config: TrainerConfig, strategy: Strategy, *, processes: int, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration for ``strategy``.

    AdamW is torch's on every device, fused where torch has that: it updates what DeepSpeed holds in host memory
    too. DeepSpeed's own CPU optimizer would be compiled at the first step, for which images lack a
    compiler. ``auto`` sizes are filled in by transformers from the model's hidden size.

    Args:
        config: the job's; ``microBatchSize`` is a number.
        strategy: one of DeepSpeed's.
        processes: over all nodes.
        accumulation: micro-batches per optimizer step and process.

    Raises:
        TrainerError: CONFIG_INVALID, see :func:`owned_keys`.
    """
    raw = config.distributed.deepspeed or {}
    taken = list(owned_keys(raw))
    if taken:
        raise TrainerError(ExitCode.CONFIG_INVALID, "; ".join(taken))
    micro = int(config.hyperparameters.micro_batch_size)
    made = {
        "train_batch_size": micro * accumulation * processes,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.hyperparameters.max_grad_norm,
        "bf16": {"enabled": config.precision == "bf16"},
        "fp16": {"enabled": config.precision == "fp16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": _zero(strategy),
        "steps_per_print": _NEVER,
    }
    return _laid_over(made, raw)


def owned_keys(raw: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with raw overrides: each key that a field of ours sets, with that field."""
    for path, field in OWNED.items():
        node: Any = raw
        for part in path.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
            if node is None:
                break
        else:
            yield f"spec.distributed.deepspeed: {path} is set by spec.{field}"


def _zero(strategy: Strategy) -> dict[str, Any]:
    made: dict[str, Any] = {
        "stage": strategy.zero_stage,
        "contiguous_gradients": True,
        # Not a gain everywhere, and a second set of buckets; a raw override switches it on.
        "overlap_comm": False,
        "reduce_bucket_size": "auto",
    }
    if strategy.zero_stage == 3:
        made |= {
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            # Checkpoints hold the shards; the export gathers by itself.
            "stage3_gather_16bit_weights_on_model_save": False,
        }
    if strategy.offload in ("optimizer", "parameters"):
        made["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if strategy.offload == "parameters":
        made["offload_param"] = {"device": "cpu", "pin_memory": True}
    return made


def _laid_over(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        known = merged.get(key)
        both = isinstance(known, dict) and isinstance(value, Mapping)
        merged[key] = _laid_over(known, value) if both else copy.deepcopy(value)  # type: ignore[arg-type]
    return merged
