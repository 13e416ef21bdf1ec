"""A frozen base in fewer bits (QLoRA, Dettmers et al., arXiv 2305.14314): by bitsandbytes as weights are loaded, by
HQQ afterwards; and its weights made whole again, for merging."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import QuantizationSpec
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from finetune_trainer.dtypes import DTYPES
from finetune_trainer.fp8 import Fp8Linear

HQQ_GROUP = 64
"""Weights that share a scale and a zero point."""


def compute_dtype(config: TrainerConfig) -> torch.dtype:
    """Type that weights are dequantized to: `quantization.computeDtype`, else the job's precision."""
    named = config.quantization.compute_dtype if config.quantization else None
    return DTYPES[named or config.precision]


def loading_options(config: TrainerConfig, directory: Path) -> dict[str, Any]:
    """What ``from_pretrained`` is told, for methods that quantize while they load; nothing where the checkpoint in
    ``directory`` is quantized already and says how."""
    wanted = config.quantization
    if wanted is None or wanted.method != "bitsandbytes" or _packed(directory):
        return {}
    if wanted.bits == 8:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    dtype = compute_dtype(config)
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=wanted.type,
            bnb_4bit_use_double_quant=wanted.double_quantization,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype,  # ZeRO-3 and FSDP2 shard only floating point
        )
    }


def _packed(directory: Path) -> bool:
    return "quantization_config" in json.loads((directory / "config.json").read_text())


def quantize_by_hqq(
    model: PreTrainedModel, linear: list[str], wanted: QuantizationSpec, dtype: torch.dtype, device: torch.device
) -> None:
    """Replace the ``linear`` layers of ``model`` by HQQ's (Badri and Shaji, Half-Quadratic Quantization, 2023).

    Each layer goes to ``device`` as it is quantized, so the device never holds the whole model in full.
    """
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear  # noqa: PLC0415 - only for those who want it

    for name in linear:
        layer: Any = model.get_submodule(name)
        group = HQQ_GROUP if layer.in_features % HQQ_GROUP == 0 else None
        settings = BaseQuantizeConfig(nbits=wanted.bits, group_size=group, axis=1)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, HQQLinear(layer, settings, compute_dtype=dtype, device=str(device)))


def is_packed(layer: nn.Module) -> bool:
    """Whether ``layer`` holds its weight in fewer bits."""
    return (
        isinstance(layer, Fp8Linear)
        or hasattr(layer, "W_q")
        or type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params")
    )


def whole_layer(layer: nn.Module | Any) -> nn.Linear:
    """A plain linear layer, in fp32, with the weight that the packed ``layer`` computes with."""
    with torch.no_grad():
        packed = layer.dequantize() if isinstance(layer, Fp8Linear) else dequantize_module_weight(layer)
        weight = packed.detach().to(torch.float32)
    out_features, in_features = weight.shape
    with torch.device("meta"):
        plain = nn.Linear(in_features, out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().to(torch.float32), requires_grad=False)
    return plain


def forget_quantization(model: PreTrainedModel) -> None:
    """Take from ``model``, whose layers are whole again, what says that they are not."""
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        setattr(model, name, False)
    for owner, name in ((model, "hf_quantizer"), (model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, name):
            delattr(owner, name)
