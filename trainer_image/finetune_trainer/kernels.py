"""Fused and compiled kernels: what was asked for, what is taken by itself, and the words for status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch._dynamo.config
from finetune_api.failures import ExitCode
from finetune_api.recipe import fuses_loss
from finetune_api.trainer_config import TrainerConfig
from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments

from finetune_trainer import unsloth_start
from finetune_trainer.attention import fits_varlen
from finetune_trainer.errors import TrainerError
from finetune_trainer.freezing import find_layers
from finetune_trainer.fused_loss import NAME as FUSED_LOSS
from finetune_trainer.fused_loss import fuse_loss
from finetune_trainer.kept import keep, keeping_attention
from finetune_trainer.log import log


def check_kernels(config: TrainerConfig, settings: PretrainedConfig) -> None:
    """Refuse, before a GPU is held, kernels that the model cannot have.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE.
    """
    if config.acceleration.unsloth:
        unsloth_start.check_model(config, settings, plain_attention=fits_varlen(settings))
    if not config.acceleration.liger:
        return
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as KNOWN  # noqa: PLC0415

    kind = settings.get_text_config().model_type
    if kind not in KNOWN:
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            f"acceleration.liger: Liger has no kernels for models of type {kind!r}; leave it unset. It has them for: "
            f"{', '.join(sorted(KNOWN))}",
        )


def apply_kernels(
    config: TrainerConfig, model: PreTrainedModel, device: torch.device, *, fused_loss: bool = True
) -> list[str]:
    """Give ``model``, which has no adapters yet, its kernels; their names.

    Liger's norm, SwiGLU and rotary kernels stand in for the model's own where they are asked for. The fused loss is
    taken on every GPU unless `liger` is false; where that is not to be, the log says so.

    Args:
        config: the job's.
        model: the base.
        device: of this process.
        fused_loss: False where the head's weight cannot be read, since it is shared out.
    """
    found = []
    if config.acceleration.liger:
        from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance  # noqa: PLC0415

        _apply_liger_kernel_to_instance(
            model=model, rope=True, rms_norm=True, swiglu=True, geglu=True, cross_entropy=False,
            fused_linear_cross_entropy=False,
        )  # fmt: skip
        found.append("liger")
    fuses = fuses_loss(config, on_gpu=device.type == "cuda")
    if fuses and fused_loss:
        fuse_loss(model)
        found.append(FUSED_LOSS)
    elif fuses:
        log.warning(
            "the loss holds its logits: fused it would read the head's weight, which is shared out over devices"
        )
    return found


def compile_layers(
    model: Any, *, recomputed: bool = False, attention: bool = False, joint: bool = False, backend: str = "inductor"
) -> None:
    """Compile each decoder layer in place: one graph serves them all, and names of weights stay as they are.

    Args:
        model: with its adapters.
        recomputed: whether layers are recomputed as a whole (gradient checkpointing). Where not, the compiler keeps
            some of the activations and recomputes the cheapest.
        attention: whether attention's output is kept of layers that are recomputed.
        joint: whether layers with one input are one product, on weights in 16 or 32 bits.
        backend: of torch.compile.
    """
    keep(recomputed=recomputed, attention=attention, joint=joint)
    # What fused adapters remember from one layer to the next they have forgotten at the end: nothing is to be repeated.
    torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = recomputed  # noqa: SLF001
    _, layers = find_layers(model)
    for layer in layers:
        layer.compile(backend=backend)


def recomputing(config: TrainerConfig, *, elsewhere: bool) -> dict[str, Any]:
    """Arguments of transformers.TrainingArguments by which layers are recomputed in the backward pass. 5.17, the
    newest that Unsloth takes, has another name for them than later releases.

    Args:
        config: the job's.
        elsewhere: whether the strategy sees to it.
    """
    known = TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    wishes = config.acceleration
    wanted = wishes.gradient_checkpointing and not elsewhere and not wishes.unsloth  # which has its own
    return {name: wanted, f"{name}_kwargs": checkpoint_options(config)}


def checkpoint_options(config: TrainerConfig) -> dict[str, Any]:
    """Those of torch.utils.checkpoint for layers that are made again."""
    options: dict[str, Any] = {"use_reentrant": False}
    if config.acceleration.keep_attention and not config.acceleration.compile:  # compiled ones are told by their marks
        options["context_fn"] = keeping_attention
    return options


def names(config: TrainerConfig) -> Iterator[str]:
    """Words for the savers that are on by the manifest alone."""
    wishes = config.acceleration
    if wishes.gradient_checkpointing:
        yield "gradient-checkpointing"
    if wishes.keep_attention:
        yield "attention-kept"
    if wishes.activation_offload:
        yield "activation-offload"
    if wishes.compile:
        yield "compile"
