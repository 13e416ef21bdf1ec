"""The model to train: loaded as precision and method want it, adapters added, names of modules checked beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.failures import ExitCode
from finetune_api.status import AccelerationStatus, ModelStatus
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import LoraMethod, MethodSpec
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from finetune_trainer.errors import TrainerError
from finetune_trainer.freezing import freeze
from finetune_trainer.log import log
from finetune_trainer.spread import size_of

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""torch's type by the API's name."""
ATTENTION = {"auto": "sdpa", "sdpa": "sdpa", "disabled": "eager"}
"""Attention implementation of transformers by what the spec asks for."""


@dataclass(frozen=True)
class Loaded:
    """A model ready to be trained, and what is really in use."""

    model: PreTrainedModel | Any
    acceleration: AccelerationStatus
    status: ModelStatus


def choose_device(config: TrainerConfig) -> torch.device:
    """The CPU, or the GPU that was asked for.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE.
    """
    if config.distributed.gpus_per_node == 0:
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
    return torch.device("cuda")


def load_model(config: TrainerConfig, directory: Path, device: torch.device, *, masters: bool = True) -> Loaded:
    """Load the base model and add what the method trains.

    Weights that are trained are held in fp32, whatever the arithmetic runs in (autocast): bf16 masters lose small
    updates (Micikevicius et al., arXiv 1710.03740). A frozen base is held in ``precision``, and without ``masters``,
    where DeepSpeed makes its own, everything is.

    Raises:
        TrainerError: MODEL_INVALID, METHOD_INVALID or ACCELERATION_UNAVAILABLE.
    """
    frozen = config.method.full is None
    dtype = DTYPES[config.precision] if frozen or not masters else torch.float32
    model, attention = _load(config, directory, dtype)
    model.config.use_cache = False
    total = sum(size_of(parameter) for parameter in model.parameters())
    model = _with_method(model, config.method, masters=masters)
    trainable = sum(size_of(parameter) for parameter in model.parameters() if parameter.requires_grad)
    model.to(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    kernels = ["gradient-checkpointing"] if config.acceleration.gradient_checkpointing else []
    log.info("%s on %s, attention %s: %s of %s parameters are trained (%.2f %%)", type(model).__name__, name,
             attention, f"{trainable:,}", f"{total:,}", 100 * trainable / total)  # fmt: skip
    return Loaded(
        model,
        AccelerationStatus(device=name, attention=attention, precision=config.precision, kernels=kernels),
        ModelStatus(parameters=total, trainable_parameters=trainable),
    )


def trainable_parameters(config: TrainerConfig, directory: Path) -> int:
    """Parameters that would be trained, found without loading a weight; also tries the method's module names.

    Raises:
        TrainerError: METHOD_INVALID, MODEL_INVALID.
    """
    settings = AutoConfig.from_pretrained(directory, trust_remote_code=config.model.trust_remote_code)
    with torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(settings, trust_remote_code=config.model.trust_remote_code)
        except ValueError as error:
            raise _no_causal_model(config, error) from error
        model = _with_method(model, config.method)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _load(config: TrainerConfig, directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    wanted = config.acceleration.flash_attention
    attention = ATTENTION[wanted]
    options: dict[str, Any] = {
        "dtype": dtype,
        "trust_remote_code": config.model.trust_remote_code,
        "use_safetensors": None if config.model.allow_pickle else True,
        "local_files_only": True,
    }
    try:
        return AutoModelForCausalLM.from_pretrained(directory, attn_implementation=attention, **options), attention
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise _no_causal_model(config, error) from error
        if wanted == "sdpa":
            raise TrainerError(
                ExitCode.ACCELERATION_UNAVAILABLE,
                f"acceleration.flashAttention: {config.model.uri} has no sdpa attention; use auto",
            ) from error
    except (OSError, RuntimeError) as error:
        raise TrainerError(
            ExitCode.MODEL_INVALID, f"{config.model.uri} cannot be loaded: {_first_line(error)}"
        ) from error
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", **options), "eager"


def _no_causal_model(config: TrainerConfig, error: Exception) -> TrainerError:
    return TrainerError(
        ExitCode.MODEL_INVALID,
        f"{config.model.uri} is no causal language model that transformers knows: {_first_line(error)}",
    )


def _with_method(model: PreTrainedModel, method: MethodSpec, *, masters: bool = True) -> Any:
    """``model`` with what ``method`` trains: adapters added, or some weights frozen."""
    if method.lora is not None:
        return _with_lora(model, method.lora, masters=masters)
    if method.freeze is not None:
        freeze(model, method.freeze)
    return model


def _with_lora(model: PreTrainedModel, method: LoraMethod, *, masters: bool) -> Any:
    modules = {name: part for name, part in model.named_modules() if name}
    linear = [name for name, part in modules.items() if isinstance(part, nn.Linear)]
    _check_names("targetModules", method.target_modules, linear)
    _check_names("modulesToSave", method.modules_to_save, list(modules))
    settings = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha if method.alpha is not None else 2 * method.rank,
        lora_dropout=method.dropout,
        target_modules=list(method.target_modules) or "all-linear",
        use_rslora=method.rslora,
        use_dora=method.dora,
        init_lora_weights=True if method.init == "default" else method.init,
        modules_to_save=list(method.modules_to_save) or None,
    )
    return get_peft_model(model, settings, autocast_adapter_dtype=masters)


def _check_names(field: str, wanted: list[str], names: list[str]) -> None:
    endings = sorted({name.rpartition(".")[2] for name in names})
    for name in wanted:
        if not any(known == name or known.endswith(f".{name}") for known in names):
            raise TrainerError(
                ExitCode.METHOD_INVALID,
                f"method.lora.{field}: the model has no module {name!r}; it has: {', '.join(endings[:40])}",
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:500] if str(error).strip() else type(error).__name__
