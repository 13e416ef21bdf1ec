"""What this release trains. The API refuses the rest at apply; a configuration made by other means is refused here,
never trained with a wish left out."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.deepspeed_config import owned_keys
from finetune_trainer.errors import TrainerError
from finetune_trainer.strategy import processes


def check_supported(config: TrainerConfig) -> None:
    """Refuse a configuration that asks for what this trainer cannot do.

    Raises:
        TrainerError: CONFIG_INVALID or ACCELERATION_UNAVAILABLE, with every field at fault.
    """
    missing = list(_missing_accelerations(config))
    if missing:
        raise TrainerError(ExitCode.ACCELERATION_UNAVAILABLE, "not in this trainer image: " + "; ".join(missing))
    problems = list(_problems(config))
    if problems:
        raise TrainerError(ExitCode.CONFIG_INVALID, "; ".join(problems))


def _missing_accelerations(config: TrainerConfig) -> Iterator[str]:
    wishes = config.acceleration
    if wishes.flash_attention not in ("auto", "sdpa", "disabled"):
        yield f"spec.acceleration.flashAttention: {wishes.flash_attention}; use auto, sdpa or disabled"
    for field in ("liger", "unsloth", "compile", "activation_offload"):
        if getattr(wishes, field):
            yield f"spec.acceleration.{'activationOffload' if field == 'activation_offload' else field}; leave it false"


def _problems(config: TrainerConfig) -> Iterator[str]:
    numbers, spread, method = config.hyperparameters, config.distributed, config.method
    if config.stage != "sft":
        yield f"spec.stage: {config.stage} is not supported yet, only sft"
    if sum(part is not None for part in (method.full, method.freeze, method.lora)) != 1:
        yield "spec.method: exactly one of full, freeze and lora"
    if method.lora is not None and method.lora.init not in ("default", "gaussian"):
        yield f"spec.method.lora.init: {method.lora.init} is not supported yet, use default or gaussian"
    if config.quantization is not None:
        yield "spec.quantization is not supported yet"
    if config.precision not in ("bf16", "fp16", "fp32"):
        yield f"spec.precision: {config.precision} is not supported yet, use bf16, fp16 or fp32"
    if config.precision == "fp16" and spread.gpus_per_node == 0:
        yield "spec.precision: fp16 needs a GPU"
    if numbers.optimizer != "adamw":
        yield f"spec.hyperparameters.optimizer: {numbers.optimizer} is not supported yet, use adamw"
    micro = numbers.micro_batch_size
    if not isinstance(micro, int) or micro < 1:
        yield f"spec.hyperparameters.microBatchSize: must be a positive number, not {micro!r}"
    elif numbers.global_batch_size % (micro * processes(config)):
        yield (
            f"spec.hyperparameters.globalBatchSize: {numbers.global_batch_size} is no multiple of "
            f"microBatchSize {micro} x {processes(config)} devices"
        )
    if spread.sequence_parallel > 1:
        yield "spec.distributed.sequenceParallel is not supported yet"
    yield from _spread_problems(config)
    if config.template.ref is not None or config.template.thinking != "auto":
        yield "spec.template: ref and thinking are not supported yet"
    if config.template.mask_history and config.template.train_on_prompt:
        yield "spec.template: maskHistory and trainOnPrompt exclude each other"
    if config.merge is not None and method.lora is None:
        yield "spec.output.merge: merging is for adapters"
    for index, source in enumerate(config.sources):
        if source.format not in ("alpaca", "sharegpt", "openai"):
            yield f"spec.dataset.sources[{index}].format: {source.format} is not supported yet"
        if source.weight != 1.0:
            yield f"spec.dataset.sources[{index}].weight is not supported yet, leave it 1"
    if not config.sources:
        yield "spec.dataset.sources: names no data"


def _spread_problems(config: TrainerConfig) -> Iterator[str]:
    """As the rules table has it for the API."""
    spread = config.distributed
    zero = spread.strategy in ("zero1", "zero2", "zero3")
    if spread.offload != "none" and not zero and spread.strategy != "auto":
        yield f"spec.distributed.offload: {spread.strategy} has none; use strategy zero2 or zero3"
    if spread.offload == "parameters" and spread.strategy in ("zero1", "zero2"):
        yield "spec.distributed.offload: only zero3 can hold parameters in host memory"
    if spread.deepspeed is not None and not zero:
        yield "spec.distributed.deepspeed: needs strategy zero1, zero2 or zero3"
    yield from owned_keys(spread.deepspeed or {})
    if spread.strategy == "fsdp2":
        if spread.gpus_per_node == 0:
            yield "spec.distributed.strategy: fsdp2 needs GPUs; use ddp, zero2 or zero3 on CPUs"
        if config.method.freeze is not None or config.quantization is not None or config.precision == "fp16":
            yield "spec.distributed.strategy: fsdp2 trains full and lora, unquantized, in bf16 or fp32"
