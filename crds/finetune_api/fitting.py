"""What fits: the micro-batch for a device's memory, and the smallest number of GPUs of a given size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune_api.memory import USABLE, estimate, refuse_unknown
from finetune_api.model_shape import ModelShape, ShapeError
from finetune_api.recipe import Recipe, Strategy, is_masked, recipe_of
from finetune_api.status import MemoryEstimate
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import LoraMethod, MethodSpec, QuantizationSpec
from finetune_api.validation import validate_config

STRATEGIES: tuple[Strategy, ...] = ("ddp", "zero2", "fsdp2", "zero3")
"""Tried in this order: the later ones need less memory and more communication. ZeRO-3 is for what FSDP2 cannot do:
measured, it is slower and needs more memory (docs/decisions/0023)."""
LARGEST = 64
"""GPUs up to which is tried."""
COUNTS = (*range(1, 9), *range(16, LARGEST + 1, 8))
"""How many are tried: of one node, then whole nodes of eight."""
COMMON_GPUS = {"24Gi": 24 * 2**30, "48Gi": 48 * 2**30, "80Gi": 80 * 2**30}
"""Bytes of GPUs that are told of where none is named."""
_SHORT = 512
"""Tokens of a sequence that is short for a chat."""


@dataclass(frozen=True)
class Fit:
    """A way to train in the memory that there is."""

    devices: int
    strategy: Strategy
    micro_batch: int
    estimate: MemoryEstimate


def fits(total: int, memory: int) -> bool:
    """Whether an estimate leaves the room that a device's memory needs beside it."""
    return total <= USABLE * memory


def choose_micro_batch(config: TrainerConfig, shape: ModelShape, memory: int, *, longest: int | None = None) -> int:
    """The largest power of two that divides ``globalBatchSize / devices`` and fits; 1 where nothing does.

    Args:
        config: the job's.
        shape: the model's.
        memory: bytes of one device.
        longest: tokens of the longest sequence, where the data is known.
    """
    recipe = recipe_of(config, micro_batch=1, longest=longest)
    return _largest(recipe, config, shape, memory)[0]


def smallest_gpu_count(
    config: TrainerConfig, shape: ModelShape, memory: int, *, longest: int | None = None
) -> Fit | None:
    """The smallest of :data:`COUNTS` that holds the job, with the first strategy that does; None where none is enough.

    Args:
        config: the job's. Its number of GPUs is not looked at, nor is its strategy unless it names one.
        shape: the model's.
        memory: bytes of one GPU.
        longest: tokens of the longest sequence, where the data is known.
    """
    for devices, strategy in _ways(config):
        recipe = recipe_of(config, micro_batch=1, longest=longest, devices=devices, strategy=strategy, on_gpu=True)
        if not isinstance(config.hyperparameters.micro_batch_size, int):
            micro, told = _largest(recipe, config, shape, memory)
        else:
            recipe = with_micro_batch(recipe, config, config.hyperparameters.micro_batch_size)
            micro, told = recipe.micro_batch, estimate(shape, recipe)
        if fits(told.total, memory):
            return Fit(devices, strategy, micro, told)
    return None


@dataclass(frozen=True)
class Change:
    """An edit of a job that makes it need less memory."""

    text: str
    """For a person, such as ``set acceleration.gradientCheckpointing``."""
    config: TrainerConfig
    """The job with it."""


def changes(config: TrainerConfig) -> list[Change]:
    """What can be changed, each one added to those before it: what costs least first, and only what is not in use."""
    found: list[Change] = []
    edited = config

    def add(text: str, part: str, **fields: object) -> None:
        nonlocal edited
        value = getattr(edited, part).model_copy(update=fields)
        edited = edited.model_copy(update={part: value})
        found.append(Change(text, edited))

    micro = config.hyperparameters.micro_batch_size
    if isinstance(micro, int) and micro > 1:
        add("lower hyperparameters.microBatchSize, down to 1", "hyperparameters", micro_batch_size=1)
    if config.acceleration.keep_attention:
        add("leave acceleration.keepAttention false", "acceleration", keep_attention=False)
    if not config.acceleration.gradient_checkpointing:
        add("set acceleration.gradientCheckpointing", "acceleration", gradient_checkpointing=True)
    if config.acceleration.liger is False and config.distributed.gpus_per_node:
        add("leave acceleration.liger unset, for a loss that holds no logits", "acceleration", liger=None)
    if config.method.lora is None:
        edited = edited.model_copy(update={"method": MethodSpec(lora=LoraMethod())})
        found.append(Change("train adapters, method.lora", edited))
    if config.quantization is None:
        edited = edited.model_copy(update={"quantization": QuantizationSpec(bits=4)})
        found.append(Change("set quantization.bits: 4", edited))
    if config.max_length > _SHORT:
        edited = edited.model_copy(update={"max_length": _SHORT})
        found.append(Change(f"lower dataset.maxLength, say to {_SHORT}", edited))
    return found


def changes_that_fit(
    config: TrainerConfig, shape: ModelShape, memory: int, *, longest: int | None = None
) -> tuple[list[str], Fit] | None:
    """The first of :func:`changes` that together make the job fit, and how it fits then; None where none do."""
    texts = []
    for change in changes(config):
        try:
            refuse_unknown(shape, change.config.method)
        except ShapeError:
            continue
        texts.append(change.text)
        fit = smallest_gpu_count(change.config, shape, memory, longest=longest)
        if fit is not None:
            return texts, fit
    return None


def with_micro_batch(recipe: Recipe, config: TrainerConfig, micro: int) -> Recipe:
    """``recipe`` with another micro-batch and the accumulation and mask that follow."""
    ranks = max(1, recipe.devices // recipe.sequence_parallel)
    return replace(
        recipe,
        micro_batch=micro,
        accumulation=max(1, config.hyperparameters.global_batch_size // (micro * ranks)),
        masked=is_masked(config, micro, on_gpu=recipe.on_gpu),
    )


def _largest(recipe: Recipe, config: TrainerConfig, shape: ModelShape, memory: int) -> tuple[int, MemoryEstimate]:
    share = config.hyperparameters.global_batch_size // max(1, recipe.devices // recipe.sequence_parallel)
    chosen = 1, estimate(shape, with_micro_batch(recipe, config, 1))
    micro = 2
    while share and share % micro == 0:
        told = estimate(shape, with_micro_batch(recipe, config, micro))
        if not fits(told.total, memory):
            break
        chosen = micro, told
        micro *= 2
    return chosen


def _ways(config: TrainerConfig) -> Iterator[tuple[int, Strategy]]:
    """Numbers of GPUs and strategies that the rules and the global batch allow, least first."""
    said, together = config.distributed.strategy, max(1, config.distributed.sequence_parallel)
    for devices in COUNTS:
        if devices % together == 0 and config.hyperparameters.global_batch_size % (devices // together) == 0:
            # Alone there is nobody to share with, but for the host's memory.
            shared = devices > 1 or config.distributed.offload != "none"
            strategies = (said,) if said != "auto" else STRATEGIES if shared else STRATEGIES[:1]
            for strategy in strategies:
                if not _refused(config, devices, strategy):
                    yield devices, strategy


def _refused(config: TrainerConfig, devices: int, strategy: Strategy) -> bool:
    """Whether the table of rules refuses the job on so many GPUs with ``strategy``."""
    return bool(validate_config(config.spread(nodes=1, gpus_per_node=devices, strategy=strategy)))
