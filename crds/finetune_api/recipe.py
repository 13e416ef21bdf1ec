"""What of a job its memory depends on, resolved: one plain value that the estimate works on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.stages import REFERENCE_STAGES
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import MethodSpec, Precision, QuantizationSpec

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2}
"""Bytes of a weight by type; fp8 is a type of the arithmetic, and weights stay in bf16."""
SHARDS_WEIGHTS = ("zero3", "fsdp2")
"""Strategies that gather a weight when its module runs: the fused loss, which reads the head's by itself, would find a
part of it."""
Strategy = Literal["ddp", "zero1", "zero2", "zero3", "fsdp2"]
Optimizer = Literal["adamw", "adamw8bit", "paged_adamw8bit", "adafactor"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, as far as memory is concerned."""

    method: MethodSpec
    precision: Precision
    length: int
    """Tokens of the longest sequence: every row of a batch is padded to it."""
    micro_batch: int
    accumulation: int = 1
    """Micro-batches a step. Above 1, gradients are there before the last backward pass begins."""
    quantization: QuantizationSpec | None = None
    """Of a base that is held quantized."""
    master_weights: Literal["fp32", "none"] = "fp32"
    """Type of the weights that method full trains: fp32, or `none` for those of `precision`."""
    checkpointing: bool = False
    keeps_attention: bool = False
    """With checkpointing: attention's output is not made again."""
    liger: bool = False
    """Fused norms and activations."""
    fused_loss: bool = False
    """Cross entropy that never holds the logits."""
    fused_adapters: bool = False
    """Adapters computed in their layers' products."""
    compiled: bool = False
    """Layers are compiled, which keep less."""
    activation_offload: bool = False
    """What is kept for the backward pass waits in host memory."""
    eager: bool = False
    """Attention that keeps its scores."""
    masked: bool = False
    """Whether attention gets a mask: of padding, or of packed samples."""
    optimizer: Optimizer = "adamw"
    strategy: Strategy = "ddp"
    devices: int = 1
    offload: Literal["none", "optimizer", "parameters"] = "none"
    sequence_parallel: int = 1
    on_gpu: bool = True
    paired: bool = False
    """Whether each sample is two sequences, a chosen and a rejected answer."""
    reference: bool = False
    """Whether a frozen copy of the trained weights is kept to compare with."""
    scores: bool = False
    """Whether the head gives one number a sequence, and there are no logits."""

    @property
    def rows(self) -> int:
        """Sequences of a micro-batch on one device."""
        return self.micro_batch * (2 if self.paired else 1)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one device."""
        return self.rows * -(-self.length // self.sequence_parallel)

    @property
    def compute(self) -> int:
        """Bytes of an element that the arithmetic makes."""
        return BYTES[self.precision]

    @property
    def autocast(self) -> bool:
        """Whether fp32 weights are cast for the arithmetic. FSDP2 gathers them in its type."""
        return self.precision != "fp32" and self.strategy != "fsdp2"

    @property
    def sharded(self) -> bool:
        """Whether DeepSpeed or FSDP2 holds the optimizer's share."""
        return self.strategy != "ddp"

    @property
    def trained(self) -> int:
        """Bytes of a trained weight, and of its gradient.

        ZeRO trains weights in the arithmetic's type and holds fp32 masters with the optimizer's state (arXiv
        1910.02054, section 3.1); without it weights are their own masters.
        """
        if self.strategy.startswith("zero"):
            return self.compute
        if self.method.full is not None and self.master_weights == "none":
            return self.compute
        return BYTES["fp32"]

    @property
    def shards_weights(self) -> bool:
        """Whether no device holds the whole model."""
        return self.strategy in SHARDS_WEIGHTS

    @property
    def gathered(self) -> int:
        """Bytes of a trained weight as a layer has it at work, and of its gradient as that is made."""
        return self.compute if self.strategy == "fsdp2" else self.trained


def recipe_of(
    config: TrainerConfig,
    *,
    micro_batch: int | None = None,
    longest: int | None = None,
    devices: int | None = None,
    strategy: Strategy | None = None,
    masked: bool | None = None,
    on_gpu: bool | None = None,
) -> Recipe:
    """The recipe of a job's configuration.

    Args:
        config: the job's.
        micro_batch: sequences of a micro-batch; the configuration's unless given, which must then be a number.
        longest: tokens of the longest sequence there is, where the data is known; else ``maxLength``.
        devices: all together; the configuration's unless given.
        strategy: the configuration's unless given, where ``auto`` is ddp.
        masked: whether attention gets a mask; as packing and padding need one unless given.
        on_gpu: whether the devices are GPUs; by ``gpusPerNode`` unless given.

    Raises:
        ValueError: the micro-batch is ``auto`` and none is given.
    """
    numbers, spread, wishes = config.hyperparameters, config.distributed, config.acceleration
    micro = micro_batch if micro_batch is not None else numbers.micro_batch_size
    if not isinstance(micro, int):
        raise ValueError("hyperparameters.microBatchSize is auto: give a number")  # noqa: TRY004 - it is the value
    count = devices or spread.nodes * max(1, spread.gpus_per_node)
    chosen: Strategy = strategy or ("ddp" if spread.strategy == "auto" else spread.strategy)
    length = min(config.max_length, longest or config.max_length)
    gpu = spread.gpus_per_node > 0 if on_gpu is None else on_gpu
    return Recipe(
        method=config.method,
        precision=config.precision,
        length=length,
        micro_batch=micro,
        accumulation=max(1, numbers.global_batch_size // (micro * max(1, count // spread.sequence_parallel))),
        quantization=config.quantization if _stays(config.quantization) else None,
        master_weights=config.method.full.master_weights if config.method.full is not None else "fp32",
        checkpointing=wishes.gradient_checkpointing,
        keeps_attention=wishes.keep_attention,
        liger=bool(wishes.liger),
        fused_loss=chosen not in SHARDS_WEIGHTS and fuses_loss(config, on_gpu=gpu),
        fused_adapters=chosen == "ddp" and fuses_adapters(config, on_gpu=gpu),
        compiled=wishes.compile,
        activation_offload=wishes.activation_offload,
        eager=wishes.flash_attention == "disabled",
        masked=is_masked(config, micro, on_gpu=gpu) if masked is None else masked,
        optimizer=numbers.optimizer,
        strategy=chosen,
        devices=count,
        offload=spread.offload,
        sequence_parallel=spread.sequence_parallel,
        on_gpu=gpu,
        paired=config.stage in ("dpo", "orpo", "rm"),
        reference=config.stage in REFERENCE_STAGES and config.method.lora is None,
        scores=config.stage == "rm",
    )


def _stays(quantization: QuantizationSpec | None) -> bool:
    """Whether a base is quantized in training too; checkpoints in other formats the prepare step dequantizes."""
    return quantization is not None and quantization.method in ("bitsandbytes", "hqq")


def _in_8_bits(quantization: QuantizationSpec) -> bool:
    return quantization.method == "bitsandbytes" and quantization.bits == 8


def fuses_loss(config: TrainerConfig, *, on_gpu: bool) -> bool:
    """Whether the loss is computed without holding the logits, where weights are whole."""
    return on_gpu and config.stage in ("sft", "pt") and config.acceleration.liger is not False


def fuses_adapters(config: TrainerConfig, *, on_gpu: bool) -> bool:
    """Whether adapters are computed with their layers, where weights are whole and their own masters: by itself on a
    GPU, wherever that gives the same as peft's."""
    lora, wish, quantization = config.method.lora, config.acceleration.fused_adapters, config.quantization
    if lora is None or lora.dora or lora.dropout or config.acceleration.unsloth:
        return False
    if quantization is not None and (quantization.method == "hqq" or _in_8_bits(quantization)):
        return False  # no product of ours reads such weights
    return on_gpu if wish is None else wish


def is_masked(config: TrainerConfig, micro_batch: int, *, on_gpu: bool) -> bool:
    """Whether attention gets a mask: of packed samples where no kernel is told their boundaries, else of padding."""
    if config.packing:
        told = config.acceleration.flash_attention in ("auto", "fa2", "fa3") and config.precision != "fp32"
        return not (on_gpu and told)
    return micro_batch > 1 or config.stage in ("dpo", "orpo", "rm")
