"""Memory before it is used: the estimate of a job, the micro-batch that fits the device, and a refusal in time.

The estimate itself is finetune_api's; here are what only the trainer can know: the model's config.json, the longest
sequence of the prepared data, and the memory of the device that is there.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import cast

import torch
from finetune_api.failures import ExitCode
from finetune_api.fitting import COMMON_GPUS, LARGEST, changes, choose_micro_batch, fits, smallest_gpu_count
from finetune_api.memory import estimate, refuse_unknown
from finetune_api.model_shape import ModelShape, ShapeError
from finetune_api.recipe import Strategy, recipe_of
from finetune_api.status import MemoryEstimate, MemoryStatus
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import MethodSpec

from finetune_trainer.errors import TrainerError
from finetune_trainer.log import log
from finetune_trainer.prepared import Prepared, read_store
from finetune_trainer.strategy import Strategy as Chosen
from finetune_trainer.strategy import choose

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
REFUSED_ABOVE = 1.1
"""Share of a GPU's memory above which an estimate is a refusal: beyond what it may be wrong by."""
_PROCESS = 2**30
"""Bytes that Python and its libraries take of a pod's memory, where the device is the CPU."""
_CGROUP = Path("/sys/fs/cgroup")
_UNKNOWN_SHARE = 0.02
"""By how much the parameters of the shape may differ from the weights' before the shape is not believed."""


def read_shape(directory: Path, method: MethodSpec, parameters: int | None = None) -> ModelShape | None:
    """The shape of the model in ``directory``; None, and a line in the log, where it is of a build not known.

    Args:
        directory: holds config.json.
        method: the job's.
        parameters: of the weights, which a right shape agrees with.
    """
    try:
        shape = ModelShape.from_config(json.loads((directory / "config.json").read_bytes()))
        refuse_unknown(shape, method)
    except (OSError, ShapeError, ValueError) as error:
        log.warning("memory is not estimated: %s", error)
        return None
    if parameters and abs(shape.parameters - parameters) > _UNKNOWN_SHARE * parameters:
        log.warning(
            "memory is not estimated: config.json makes a model of %s parameters, and the weights have %s",
            f"{shape.parameters:,}",
            f"{parameters:,}",
        )
        return None
    return shape


def longest_sequence(config: TrainerConfig, store_directory: Path) -> int | None:
    """Tokens of the longest sequence of the prepared data; packed ones are as long as they may be."""
    store = read_store(store_directory)
    return None if config.packing or store is None else int(store["longest"])


def expected_memory(config: TrainerConfig, shape: ModelShape, longest: int | None) -> MemoryEstimate:
    """The estimate of a job; for a micro-batch of 1 where it is ``auto``, since prepare knows no device."""
    said = config.hyperparameters.micro_batch_size
    return estimate(shape, recipe_of(config, micro_batch=said if isinstance(said, int) else 1, longest=longest))


def fit_to_device(
    config: TrainerConfig, prepared: Prepared, device: torch.device
) -> tuple[TrainerConfig, MemoryStatus]:
    """The configuration with its strategy and a number for the micro-batch, and what memory it is expected to take.

    Raises:
        TrainerError: CONFIG_INVALID where ``auto`` has nothing to go by; CUDA_OUT_OF_MEMORY where the GPU's memory is
            too small by a clear margin.
    """
    shape = read_shape(prepared.model_directory, config.method, prepared.model.parameters)
    wanted = config.hyperparameters.micro_batch_size
    if shape is None:
        if not isinstance(wanted, int):
            raise auto_without_estimate(config)
        return _with_strategy(config, choose(config)), MemoryStatus()
    longest, memory = longest_sequence(config, prepared.directory), device_memory(device)
    smallest = wanted if isinstance(wanted, int) else _smallest(config)

    def fit(strategy: str) -> bool:
        recipe = recipe_of(config, micro_batch=smallest, longest=longest, strategy=cast(Strategy, strategy))
        return fits(estimate(shape, recipe).total, memory)

    config = _with_strategy(config, choose(config, fit))
    resolved = None
    if not isinstance(wanted, int):
        resolved = max(smallest, choose_micro_batch(config, shape, memory, longest=longest))
        numbers = config.hyperparameters.model_copy(update={"micro_batch_size": resolved})
        config = config.model_copy(update={"hyperparameters": numbers})
    told = expected_memory(config, shape, longest)
    log.info("memory: %s; the device has %s", describe(told), size(memory))
    if resolved is not None:
        log.info("microBatchSize auto: %d", resolved)
    if device.type == "cuda" and told.total > REFUSED_ABOVE * memory:
        raise TrainerError(
            ExitCode.CUDA_OUT_OF_MEMORY,
            f"the GPU has {size(memory)}, and the job would take {describe(told)}. {advice(config)}",
        )
    return config, MemoryStatus(estimate=told, micro_batch_size=resolved)


def _with_strategy(config: TrainerConfig, chosen: Chosen) -> TrainerConfig:
    """``auto`` resolved, so that whatever looks at the strategy later finds the same."""
    if config.distributed.strategy != "auto" or chosen.name == "none":
        return config
    return config.spread(strategy=chosen.name)


def _smallest(config: TrainerConfig) -> int:
    """Stage kto compares the samples of a micro-batch with one another."""
    return 2 if config.stage == "kto" else 1


def auto_without_estimate(config: TrainerConfig) -> TrainerError:
    """The refusal of ``auto`` where the model's shape is not known."""
    return TrainerError(
        ExitCode.CONFIG_INVALID,
        f"spec.hyperparameters.microBatchSize: auto needs a memory estimate, and {config.model.uri} is of a build that "
        "is not estimated; give a number",
    )


def device_memory(device: torch.device, cgroup: Path = _CGROUP) -> int:
    """Bytes of the GPU, or those that tensors may take in this process: of the cgroup's limit, else of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(_PROCESS // 4, min(machine, memory_limit(cgroup) or machine) - _PROCESS)


def memory_limit(cgroup: Path) -> int | None:
    """Bytes that the cgroup (v2 or v1) allows; None where it sets no limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            said = (cgroup / name).read_text().strip()
        except OSError:
            continue
        return int(said) if said.isdigit() and int(said) < 2**60 else None  # v1 says none by a number beyond all
    return None


def advice(config: TrainerConfig) -> str:
    """What can be changed to need less; only what is not in use."""
    text = "; ".join(change.text for change in changes(config))
    return f"{text[0].upper()}{text[1:]}; or use a larger GPU, or more of them"


def describe(told: MemoryEstimate) -> str:
    """The total, and its parts from the largest on."""
    parts = {part: getattr(told, part) for part in PARTS}
    listed = [f"{part} {size(count)}" for part, count in sorted(parts.items(), key=lambda item: -item[1]) if count]
    return f"{size(told.total)} at micro-batch {told.micro_batch_size} ({', '.join(listed)})"


def describe_fits(config: TrainerConfig, shape: ModelShape, longest: int | None) -> str:
    """On how few GPUs the job fits, for the common sizes of one."""
    found = []
    for name, held in COMMON_GPUS.items():
        fit = smallest_gpu_count(config, shape, held, longest=longest)
        how = f"{fit.devices} ({fit.strategy}, micro-batch {fit.micro_batch})" if fit else f"more than {LARGEST}"
        found.append(f"{how} of {name}")
    return ", ".join(found)


def size(count: float) -> str:
    """Bytes in GiB, or MiB where there is less than one."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
