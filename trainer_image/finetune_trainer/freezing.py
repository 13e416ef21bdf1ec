"""The freeze method: some layers are trained, or some modules of them, and named modules beside the layers."""

from __future__ import annotations

import torch
from finetune_api.failures import ExitCode
from finetune_api.training import FreezeMethod
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.errors import TrainerError
from finetune_trainer.media_models import takes_in, within


def freeze(model: PreTrainedModel, method: FreezeMethod) -> None:
    """Leave trainable what ``method`` names, in fp32, and freeze the rest as it is.

    Raises:
        TrainerError: METHOD_INVALID, with the names that there are.
    """
    prefix, layers = find_layers(model)
    count = abs(method.trainable_layers)
    if not 0 < count <= len(layers):
        bounds = f"1 to {len(layers)} for the last ones, -1 to -{len(layers)} for the first"
        raise _invalid("trainableLayers", f"the model has {len(layers)} layers, so not {count}; {bounds}")
    first = len(layers) - count if method.trainable_layers > 0 else 0
    chosen = range(first, first + count)
    inner = sorted({part for name, _ in layers[first].named_modules() for part in name.split(".") if name})
    for module in method.trainable_modules:
        if module not in inner:
            raise _invalid("trainableModules", f"a layer has no module {module!r}; it has: {', '.join(inner)}")
    outer = sorted(name for name, _ in model.named_modules() if name and not f"{name}.".startswith(f"{prefix}."))
    for module in method.extra_modules:
        if not any(name == module or name.endswith(f".{module}") for name in outer):
            raise _invalid(
                "extraModules", f"beside the layers there is no module {module!r}; there are: {', '.join(outer)}"
            )
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if f"{name}.".startswith(f"{prefix}."):
            number, _, place = name.removeprefix(f"{prefix}.").partition(".")
            wanted = method.trainable_modules
            trained = int(number) in chosen and (not wanted or not set(wanted).isdisjoint(place.split(".")))
        else:
            trained = any(f".{owner}.".endswith(f".{module}.") for module in method.extra_modules)
        parameter.requires_grad_(trained)
        if trained and not hasattr(parameter, "ds_id"):  # of a parameter that ZeRO-3 shares out only a stub is here
            parameter.data = parameter.data.to(torch.float32)


def find_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the decoder's layers.

    Raises:
        TrainerError: MODEL_INVALID where there is no list as long as the configuration says.
    """
    wanted = model.config.get_text_config().num_hidden_layers
    others = takes_in(model.config)
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == wanted and not within(name, others):
            return name, part
    raise TrainerError(
        ExitCode.MODEL_INVALID,
        f"method.freeze: {type(model).__name__} has no list of {wanted} layers that could be frozen; use lora or full",
    )


def _invalid(field: str, problem: str) -> TrainerError:
    return TrainerError(ExitCode.METHOD_INVALID, f"method.freeze.{field}: {problem}")
