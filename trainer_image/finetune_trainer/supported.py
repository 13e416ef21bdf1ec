"""What this release trains. The API refuses the rest at apply; a configuration made by other means is refused here,
never trained with a wish left out."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.failures import ExitCode
from finetune_api.stages import PREFERENCE_NUMBERS, PREFERENCE_STAGES, REFERENCE_STAGES, STAGE_FORMATS
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import TemplateSpec

from finetune_trainer import unsloth_start
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
        raise TrainerError(ExitCode.ACCELERATION_UNAVAILABLE, "not to be had here: " + "; ".join(missing))
    problems = list(_problems(config))
    if problems:
        raise TrainerError(ExitCode.CONFIG_INVALID, "; ".join(problems))


def _missing_accelerations(config: TrainerConfig) -> Iterator[str]:
    wishes = config.acceleration
    yield from unsloth_start.missing(config)
    if config.distributed.gpus_per_node == 0:
        wanted = {
            "acceleration.liger": bool(wishes.liger),
            "acceleration.unsloth": wishes.unsloth,
            "precision": config.precision == "fp8",
            "acceleration.activationOffload": wishes.activation_offload,
            "acceleration.flashAttention": wishes.flash_attention in ("fa2", "fa3", "flex"),
            "hyperparameters.optimizer": "8bit" in config.hyperparameters.optimizer,
        }
        for field, asked in wanted.items():
            if asked:
                yield f"spec.{field} needs a GPU"


def _problems(config: TrainerConfig) -> Iterator[str]:
    numbers, spread, method = config.hyperparameters, config.distributed, config.method
    yield from _stage_problems(config)
    yield from unsloth_start.problems(config)
    if sum(part is not None for part in (method.full, method.freeze, method.lora)) != 1:
        yield "spec.method: exactly one of full, freeze and lora"
    if config.quantization is not None and method.lora is None:
        yield "spec.quantization: only lora can be trained on quantized weights"
    if config.precision == "fp8" and (config.quantization is not None or method.freeze is not None):
        yield "spec.precision: fp8 is for full, and for lora on a base that is not quantized"
    if config.precision == "fp16" and spread.gpus_per_node == 0:
        yield "spec.precision: fp16 needs a GPU"
    yield from _fused_problems(config)
    micro = numbers.micro_batch_size
    if micro == "auto":
        pass  # a number comes of it when the device is there
    elif not isinstance(micro, int) or micro < 1:
        yield f"spec.hyperparameters.microBatchSize: must be a positive number, not {micro!r}"
    elif numbers.global_batch_size % (micro * processes(config)):
        yield (
            f"spec.hyperparameters.globalBatchSize: {numbers.global_batch_size} is no multiple of "
            f"microBatchSize {micro} x {processes(config)} devices"
        )
    if spread.sequence_parallel > 1:
        yield "spec.distributed.sequenceParallel is not supported yet"
    yield from _spread_problems(config)
    wishes = config.multimodal
    if processes(config) > 1 and not (wishes.freeze_vision_tower and wishes.freeze_multi_modal_projector):
        yield "spec.multimodal: what sees and hears is trained on one device; leave both frozen, or use one"
    if config.template.ref is not None and config.chat_template is None:
        yield f"spec.template.ref: {config.template.ref} was not handed over; operator and trainer image do not match"
    if config.template.mask_history and config.template.train_on_prompt:
        yield "spec.template: maskHistory and trainOnPrompt exclude each other"
    if config.merge is not None and method.lora is None:
        yield "spec.output.merge: merging is for adapters"
    for index, source in enumerate(config.sources):
        if source.format not in STAGE_FORMATS[config.stage]:
            wanted = " or ".join(STAGE_FORMATS[config.stage])
            yield f"spec.dataset.sources[{index}].format: stage {config.stage} takes {wanted}, not {source.format}"
    if not config.sources:
        yield "spec.dataset.sources: names no data"


def _fused_problems(config: TrainerConfig) -> Iterator[str]:
    lora, quantization = config.method.lora, config.quantization
    if not config.acceleration.fused_adapters:
        return
    if lora is None or lora.dora or lora.dropout > 0:
        yield "spec.acceleration.fusedAdapters: is for method lora, without dropout and DoRA"
    if quantization is not None and (
        quantization.method == "hqq" or (quantization.method == "bitsandbytes" and quantization.bits == 8)
    ):
        yield "spec.acceleration.fusedAdapters: is not for hqq's weights nor bitsandbytes' 8 bits"
    if config.distributed.strategy not in ("auto", "ddp"):
        yield "spec.acceleration.fusedAdapters: is for one device, or several by ddp"


def _stage_problems(config: TrainerConfig) -> Iterator[str]:
    stage, numbers = config.stage, config.hyperparameters
    if (config.preference is not None) != (stage in PREFERENCE_NUMBERS):
        yield f"spec.preference: is for stages {', '.join(PREFERENCE_NUMBERS)}, and for each of them"
    if stage in PREFERENCE_STAGES:
        if config.packing:
            yield "spec.dataset.packing: preference stages cannot be packed"
        if numbers.neftune_alpha > 0:
            yield "spec.hyperparameters.neftuneAlpha: not for preference stages"
        if config.template.train_on_prompt:
            yield "spec.template.trainOnPrompt: not for preference stages"
        if config.distributed.strategy in ("zero3", "fsdp2"):
            yield "spec.distributed.strategy: preference stages need the whole model on each device"
    if stage in REFERENCE_STAGES and config.method.lora is None and config.distributed.strategy not in ("auto", "ddp"):
        yield "spec.distributed.strategy: stages dpo and kto compare with a copy of the weights, which needs ddp"
    if stage == "kto" and numbers.micro_batch_size == 1:
        yield "spec.hyperparameters.microBatchSize: stage kto needs 2 or more"
    if stage == "rm" and config.evaluation.prompts:
        yield "spec.evaluation.prompts: a reward model answers none"
    if stage == "pt" and config.template != TemplateSpec():
        yield "spec.template: stage pt has none"


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
    if spread.strategy == "zero3" and config.acceleration.compile:
        yield "spec.acceleration.compile: layers whose weights ZeRO-3 shares out cannot be compiled"
    if spread.strategy == "fsdp2":
        if spread.gpus_per_node == 0:
            yield "spec.distributed.strategy: fsdp2 needs GPUs; use ddp, zero2 or zero3 on CPUs"
        if config.method.freeze is not None or config.quantization is not None or config.precision == "fp16":
            yield "spec.distributed.strategy: fsdp2 trains full and lora, unquantized, in bf16 or fp32"
