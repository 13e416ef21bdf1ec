"""What a strategy means for transformers, DeepSpeed and FSDP2: arguments, how the model is loaded, whole weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from finetune_api.status import AccelerationStatus
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.deepspeed_config import make_config
from finetune_trainer.log import log
from finetune_trainer.peers import COLLECTIVE_SECONDS
from finetune_trainer.steps import Steps
from finetune_trainer.strategy import Strategy, choose
from finetune_trainer.world import World


class Spread:
    """One attempt's strategy, at work."""

    def __init__(self, config: TrainerConfig, world: World, strategy: Strategy, steps: Steps) -> None:
        self.world, self.strategy = world, strategy
        self._config = config
        self._deepspeed: dict[str, Any] | None = None
        self._alive: Any = None
        if strategy.zero_stage:
            self._deepspeed = make_config(config, strategy, processes=world.size, accumulation=steps.accumulation)

    @classmethod
    def plan(cls, config: TrainerConfig, world: World, steps: Steps) -> Spread:
        """The strategy of ``config``, over ``world``."""
        spread = cls(config, world, choose(config), steps)
        if spread.strategy.name != "none":
            held = "" if spread.strategy.offload == "none" else f", {spread.strategy.offload} in host memory"
            optimizer = config.hyperparameters.optimizer
            log.info("%s over %d devices%s, optimizer %s", spread.strategy.name, world.size, held, optimizer)
        return spread

    @property
    def holds_masters(self) -> bool:
        """Whether trained weights are to be loaded in fp32. DeepSpeed makes its own fp32 masters, and wants all
        weights of the model in one type."""
        return self._deepspeed is None

    @property
    def checkpoints_activations(self) -> bool:
        """Whether the strategy recomputes activations by itself where that is asked for. FSDP2 does, but for adapters:
        it wraps layers for that, and peft no longer finds its own by name. Nor can it be told what to keep."""
        kept = self._config.acceleration.keep_attention
        return self.strategy.name == "fsdp2" and self._config.method.lora is None and not kept

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """While the model is loaded. Under ZeRO-3 transformers shares out each weight as it comes, as long as the
        configuration object lives."""
        if self._deepspeed is not None:
            _start_deepspeed(on_cpu=self._config.distributed.gpus_per_node == 0)
            from transformers.integrations import HfDeepSpeedConfig  # noqa: PLC0415 - imports deepspeed

            self._alive = HfDeepSpeedConfig(self._deepspeed)
        yield

    def arguments(self) -> dict[str, Any]:
        """Further arguments of transformers.TrainingArguments."""
        if self.strategy.name == "none":
            return {}
        shared: dict[str, Any] = {"ddp_timeout": COLLECTIVE_SECONDS, "average_tokens_across_devices": True}
        if self._config.distributed.gpus_per_node == 0:
            shared["ddp_backend"] = "gloo"
        if self._deepspeed is not None:
            return shared | {"deepspeed": self._deepspeed}
        if self.strategy.name == "fsdp2":
            return shared | {"fsdp": True, "fsdp_config": self._fsdp()}
        return shared | {"ddp_find_unused_parameters": False}

    def _fsdp(self) -> dict[str, Any]:
        return {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "reshard_after_forward": True,
            # Each process writes its shards: no device ever holds the whole optimizer state.
            "state_dict_type": "SHARDED_STATE_DICT",
            "cpu_ram_efficient_loading": False,
            "activation_checkpointing": self._config.acceleration.gradient_checkpointing
            and self.checkpoints_activations,
        }

    def status(self, known: AccelerationStatus) -> AccelerationStatus:
        """``known``, and what is in use of this."""
        if self.strategy.name == "none":
            return known.model_copy(update={"devices": 1})
        offload = None if self.strategy.offload == "none" else self.strategy.offload
        return known.model_copy(update={"strategy": self.strategy.name, "devices": self.world.size, "offload": offload})

    def whole_weights(self, model: Any) -> dict[str, torch.Tensor] | None:
        """The weights that are delivered, on the CPU of the main process, gathered one by one: all of ``model``, but
        under LoRA only what is trained. None where the model is whole as it is, and empty on other processes. Every
        process must call it.

        Trained weights come as the optimizer holds them, in fp32.
        """
        if self._deepspeed is None and not self.strategy.shards_weights:
            return None
        state: dict[str, torch.Tensor] = {}
        seen: dict[int, torch.Tensor] = {}
        for name, value in model.state_dict(keep_vars=True).items():
            if self._config.method.lora is not None and not value.requires_grad:
                continue
            if id(value) not in seen:
                whole = _gather(value)
                seen[id(value)] = whole.detach().cpu().clone() if self.world.main else torch.empty(0)
            state[name] = seen[id(value)]
        return state if self.world.main else {}

    def release(self) -> None:
        """Let models be loaded whole again in this process."""
        self._alive = None
        if self._deepspeed is not None:
            from transformers.integrations.deepspeed import unset_hf_deepspeed_config  # noqa: PLC0415

            unset_hf_deepspeed_config()


def _start_deepspeed(*, on_cpu: bool) -> None:
    """Let DeepSpeed speak by the process group that is there."""
    import deepspeed  # noqa: PLC0415 - takes seconds, and is for those who ask for it

    # On CPUs it would compile an operator for all-reduce by shared memory at the first start, a minute that gloo
    # does not need; images have no compiler.
    compiled = deepspeed.ops.__compatible_ops__
    compiled.update({name: False for name in compiled if "shm" in name})
    deepspeed.init_distributed(
        dist_backend="gloo" if on_cpu else "nccl",
        auto_mpi_discovery=False,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )
    # It warns that its accumulation differs from accelerate's, which transformers.Trainer sets to 1 on purpose.
    logging.getLogger("accelerate.accelerator").setLevel(logging.ERROR)


def size_of(parameter: Any) -> int:
    """Number of elements, also of a parameter whose shards are elsewhere."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _gather(value: Any) -> torch.Tensor:
    """``value`` whole, on every process."""
    if hasattr(value, "full_tensor"):  # FSDP2
        whole: torch.Tensor = value.full_tensor()
        return whole
    if isinstance(value, torch.nn.Parameter) and value.requires_grad:
        from deepspeed.utils import safe_get_full_fp32_param  # noqa: PLC0415 - imported by now

        master: torch.Tensor | None = safe_get_full_fp32_param(value)
        if master is not None:
            return master
    if hasattr(value, "ds_id"):
        import deepspeed  # noqa: PLC0415 - imported by now

        with deepspeed.zero.GatheredParameters([value]):
            copied: torch.Tensor = value.data.clone()
            return copied
    tensor: torch.Tensor = value
    return tensor
