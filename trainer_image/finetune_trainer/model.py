"""The model to train: loaded as precision and method want it, adapters added, names of modules checked beforehand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from finetune_api.failures import ExitCode
from finetune_api.recipe import fuses_adapters
from finetune_api.status import AccelerationStatus, ModelStatus
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import MethodSpec
from transformers import AutoConfig, PreTrainedModel

from finetune_trainer import unsloth_start
from finetune_trainer.adapters import FROM_THE_WEIGHTS, Start, add_adapters, linear_names
from finetune_trainer.attention import choose_attention, demand_kernel
from finetune_trainer.dtypes import DTYPES
from finetune_trainer.errors import TrainerError
from finetune_trainer.fp8 import check_fp8, freeze_in_fp8, train_in_fp8
from finetune_trainer.freezing import freeze
from finetune_trainer.fused_adapters import NAME as FUSED_ADAPTERS
from finetune_trainer.fused_adapters import adapted_layers, fuse_adapters, on_whole_weights
from finetune_trainer.heads import head_options, model_class, train_head
from finetune_trainer.kernels import (
    apply_kernels,
    check_kernels,
    compile_layers,
    names,
)
from finetune_trainer.log import log
from finetune_trainer.media_loss import count_tokens_alike
from finetune_trainer.media_models import frozen_modules, media_model, within
from finetune_trainer.quantization import compute_dtype, loading_options, quantize_by_hqq
from finetune_trainer.spread import size_of


@dataclass(frozen=True)
class Loaded:
    """A model ready to be trained, and what is really in use."""

    model: PreTrainedModel | Any
    acceleration: AccelerationStatus
    status: ModelStatus
    start: Start | None = None
    """The adapter's first values, where the export needs them."""


def choose_device(config: TrainerConfig) -> torch.device:
    """The CPU, or the GPU that was asked for.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE.
    """
    if config.distributed.gpus_per_node == 0:
        if config.precision == "fp8":
            check_fp8(torch.device("cpu"))
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            "distributed.gpusPerNode asks for a GPU, and torch finds none here; check the node's driver and "
            "resources.gpuResource, or set gpusPerNode to 0 to train on the CPU",
        )
    if config.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            f"precision bf16: the {torch.cuda.get_device_name()} does not have it; use precision: fp32",
        )
    if config.precision == "fp8":
        check_fp8(torch.device("cuda"))
    return torch.device("cuda", torch.cuda.current_device())


def load_model(
    config: TrainerConfig, directory: Path, device: torch.device, *, masters: bool = True, sharded: bool = False
) -> Loaded:
    """Load the base model and add what the method trains.

    Weights that are trained are held in fp32, whatever the arithmetic runs in (autocast): bf16 masters lose small
    updates (Micikevicius et al., arXiv 1710.03740); `method.full.masterWeights: none` does without. A frozen base is
    held in ``precision``, or in fewer bits.

    Args:
        config: the job's.
        directory: of the model.
        device: of this process.
        masters: False where DeepSpeed makes its own fp32 masters and wants all weights in ``precision``.
        sharded: whether weights are shared out as they are loaded, or afterwards: then they are not put on the device
            whole, and nothing may read them behind their modules' backs.

    Raises:
        TrainerError: MODEL_INVALID, METHOD_INVALID or ACCELERATION_UNAVAILABLE.
    """
    if config.acceleration.unsloth:
        return _load_by_unsloth(config, directory, device)
    method, wanted = config.method, config.quantization
    in_fp32 = masters and method.full is not None and method.full.master_weights == "fp32"
    dtype = torch.float32 if in_fp32 else DTYPES[config.precision]
    by_hqq = wanted is not None and wanted.method == "hqq"
    place = None if sharded else torch.device("cpu") if by_hqq else device
    model, attention = _load(config, directory, dtype, device, place)
    model.config.use_cache = False
    if media_model(model.config) is not None:
        count_tokens_alike(model)
    kernels = [*apply_kernels(config, model, device, fused_loss=not sharded), *names(config)]
    frozen = _frozen(config, model)
    linear = linear_names(model, frozen)
    total = _size(model)
    if wanted is not None and by_hqq:
        quantize_by_hqq(model, linear, wanted, compute_dtype(config), device)
    model = _with_method(model, method, linear, frozen=frozen, masters=masters)
    start = Start(model) if method.lora is not None and method.lora.init in FROM_THE_WEIGHTS else None
    if place != device and not is_quantized(model):
        model.to(device)
    fused = fuses_adapters(config, on_gpu=device.type == "cuda") and masters and not sharded
    if config.precision == "fp8":
        kernels.append(_in_fp8(config, model, together=fused))
    kernels += quicken(config, model, fused=fused)
    return replace(_loaded(config, model, device, attention=attention, kernels=kernels, total=total), start=start)


def quicken(config: TrainerConfig, model: Any, *, fused: bool) -> list[str]:
    """Compute ``model``'s adapters with their layers, where ``fused`` allows it, and compile its layers, where that is
    asked for. To be called when weights are on their device.

    Returns:
        Names of kernels that the manifest does not already name.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE, where fused adapters are a wish that cannot be met.
    """
    found = [FUSED_ADAPTERS] if _fuse(config, model, possible=fused) else []
    wishes = config.acceleration
    if wishes.compile:
        compile_layers(
            model,
            recomputed=wishes.gradient_checkpointing,
            attention=wishes.keep_attention,
            joint=on_whole_weights(model),
        )
    return found


def _load_by_unsloth(config: TrainerConfig, directory: Path, device: torch.device) -> Loaded:
    from finetune_trainer import unsloth_model  # noqa: PLC0415 - for this wish alone

    check_kernels(config, AutoConfig.from_pretrained(directory))
    model = unsloth_model.load_base(config, directory, device)
    model.config.use_cache = False
    kernels = [unsloth_start.NAME, *apply_kernels(config, model, device), *names(config)]
    total = _size(model)
    model = unsloth_model.add_adapters(model, config, linear_names(model))
    return _loaded(config, model, device, attention=unsloth_start.NAME, kernels=kernels, total=total)


def _loaded(
    config: TrainerConfig, model: Any, device: torch.device, *, attention: str, kernels: list[str], total: int
) -> Loaded:
    trainable = sum(size_of(parameter) for parameter in model.parameters() if parameter.requires_grad)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    status = ModelStatus(parameters=total, trainable_parameters=trainable)
    log.info("%s on %s, attention %s: %s", type(model).__name__, name, attention, status.trained)
    return Loaded(
        model,
        AccelerationStatus(device=name, attention=attention, precision=config.precision, kernels=kernels),
        status,
    )


def count_parameters(config: TrainerConfig, directory: Path) -> tuple[int, int]:
    """Parameters in all, and those that would be trained: found without loading a weight. Tries the method's module
    names too.

    Raises:
        TrainerError: METHOD_INVALID, MODEL_INVALID, ACCELERATION_UNAVAILABLE.
    """
    model = _without_weights(config, directory)
    check_kernels(config, model.config)
    if not (model._supports_sdpa or model._supports_flash_attn):  # noqa: SLF001 - transformers' own way to tell
        demand_kernel(config)
    total = _size(model)
    lora = config.method.lora
    if lora is not None and lora.init in FROM_THE_WEIGHTS:  # which are not there; the start changes no count
        method = config.method.model_copy(update={"lora": lora.model_copy(update={"init": "default"})})
    else:
        method = config.method
    frozen = _frozen(config, model)
    model = _with_method(model, method, frozen=frozen)
    return total, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _fuse(config: TrainerConfig, model: Any, *, possible: bool) -> bool:
    """Whether adapters of ``model`` are computed with their layers now."""
    if possible and (count := fuse_adapters(model)):
        log.info("%d layers are computed with their adapters", count)
        return True
    if config.acceleration.fused_adapters:
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            "acceleration.fusedAdapters: the base's layers are held in a way that has no such product, or are shared "
            "out over devices; leave it unset",
        )
    return False


def _frozen(config: TrainerConfig, model: PreTrainedModel) -> tuple[str, ...]:
    """Modules that the job leaves as they are, beside what its method does."""
    wishes = config.multimodal
    return frozen_modules(model.config, tower=wishes.freeze_vision_tower, projector=wishes.freeze_multi_modal_projector)


def _in_fp8(config: TrainerConfig, model: Any, *, together: bool) -> str:
    if config.method.lora is None:
        train_in_fp8(model)
        return "fp8"
    log.info("%d frozen layers are held in fp8", freeze_in_fp8(adapted_layers(model, together=together)))
    return "fp8-base"


def _without_weights(config: TrainerConfig, directory: Path) -> PreTrainedModel:
    settings = AutoConfig.from_pretrained(
        directory, trust_remote_code=config.model.trust_remote_code, **head_options(config)
    )
    with torch.device("meta"):
        try:
            found: PreTrainedModel = model_class(config, settings).from_config(
                settings, trust_remote_code=config.model.trust_remote_code
            )
        except ValueError as error:
            raise _no_causal_model(config, error) from error
    return found


def _size(model: PreTrainedModel) -> int:
    """Parameters of ``model``. A quantized layer's tensor holds several a byte: its sides tell."""
    sizes: dict[int, int] = {}  # by identity: tied weights are one
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            of_layer = name == "weight" and isinstance(module, torch.nn.Linear)
            sizes[id(parameter)] = module.in_features * module.out_features if of_layer else size_of(parameter)
    return sum(sizes.values())


def is_quantized(model: PreTrainedModel) -> bool:
    """Whether transformers loaded ``model`` in fewer bits."""
    return bool(getattr(model, "is_quantized", False))


def _load(
    config: TrainerConfig, directory: Path, dtype: torch.dtype, device: torch.device, place: torch.device | None
) -> tuple[PreTrainedModel, str]:
    settings = AutoConfig.from_pretrained(directory, trust_remote_code=config.model.trust_remote_code)
    attention = choose_attention(config, settings, device)
    options: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": config.model.trust_remote_code,
        "use_safetensors": None if config.model.allow_pickle else True,
        "local_files_only": True,
        **({} if place is None else {"device_map": {"": place}}),
        **loading_options(config, directory),
        **head_options(config),
    }
    kind = model_class(config, settings)
    try:
        return kind.from_pretrained(directory, attn_implementation=attention, **options), attention
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise _no_causal_model(config, error) from error
        demand_kernel(config)
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError) as error:
        raise TrainerError(
            ExitCode.MODEL_INVALID, f"{config.model.uri} cannot be loaded: {_first_line(error)}"
        ) from error
    return kind.from_pretrained(directory, attn_implementation="eager", **options), "eager"


def _no_causal_model(config: TrainerConfig, error: Exception) -> TrainerError:
    what = "is no causal language model that transformers knows"
    if config.stage == "rm":
        what = "has no form with a reward head (…ForSequenceClassification) in transformers, which stage rm needs"
    return TrainerError(ExitCode.MODEL_INVALID, f"{config.model.uri} {what}: {_first_line(error)}")


def _with_method(
    model: PreTrainedModel,
    method: MethodSpec,
    linear: list[str] | None = None,
    *,
    frozen: tuple[str, ...] = (),
    masters: bool = True,
) -> Any:
    """``model`` with what ``method`` trains: adapters added, or some weights frozen. ``frozen``: modules that are left
    as they are, whatever the method."""
    if method.lora is not None:
        names = linear_names(model, frozen) if linear is None else linear
        return add_adapters(model, method.lora, names, frozen, masters=masters)
    if method.freeze is not None:
        freeze(model, method.freeze)
        train_head(model)
        return model
    for name, parameter in model.named_parameters():
        if within(name, frozen):
            parameter.requires_grad_(requires_grad=False)
    return model


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:500] if str(error).strip() else type(error).__name__
