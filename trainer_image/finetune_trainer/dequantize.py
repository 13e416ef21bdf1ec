"""Checkpoints that are quantized already, made whole again once: GPTQ, AWQ, fp8 and MXFP4.

Their packed weights cannot be trained and their kernels are made for serving. What is written here are the very
values that those kernels compute with, so an adapter that is trained on them fits the quantized model as it is
served. Tensor by tensor: memory does not grow with the model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import QuantizationSpec
from safetensors import safe_open
from safetensors.torch import save_file

from finetune_trainer.base_model import INDEX, WEIGHTS, wanted_files
from finetune_trainer.errors import TrainerError, writing_to
from finetune_trainer.files import whole_directory
from finetune_trainer.log import log
from finetune_trainer.supported import check_supported

PLACE = "dequantized"
SHARD_BYTES = 4 * 2**30
"""Largest file that is written, unless one tensor is larger."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column, of eight, that each nibble of an int32 belongs to, lowest first (AWQ, arXiv 2306.00978, GEMM)."""
_GPTQ_BITS = (2, 4, 8)

Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Packed:
    """How a checkpoint is quantized, by `quantization_config` of its config.json."""

    method: str
    bits: int | None
    settings: Mapping[str, Any]


def packed_format(config: Mapping[str, Any]) -> Packed | None:
    """What ``config``, a config.json, says of the weights' quantization; None where they are whole."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict):
        return None
    method = str(settings.get("quant_method", "")).lower()
    if not method and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"
    bits = settings.get("bits")
    if method == "bitsandbytes":
        bits = 4 if settings.get("load_in_4bit") else 8
    return Packed(method or "an unnamed method", bits if isinstance(bits, int) else None, settings)


def trainable_weights(config: TrainerConfig, directory: Path, digest: str) -> Path:
    """The directory whose weights training loads: ``directory``, or a dequantized copy of it in the cache.

    Args:
        config: the job's.
        directory: of the model as found.
        digest: of the model.

    Raises:
        TrainerError: MODEL_INVALID or METHOD_INVALID where job and checkpoint do not go together.
    """
    packed = packed_format(json.loads((directory / "config.json").read_text()))
    wanted = config.quantization
    if wanted is not None and wanted.method not in ("bitsandbytes", "hqq"):
        _check_declared(wanted, packed)
    if packed is None:
        return directory
    if packed.method != "bitsandbytes":
        return whole_weights(directory, Path(config.paths.cache), digest, packed)
    if config.method.lora is None:
        raise TrainerError(
            ExitCode.METHOD_INVALID,
            f"spec.method: the model's weights are quantized to {packed.bits} bits by bitsandbytes, and only lora can "
            "be trained on them; use lora, or name the original model",
        )
    if wanted is not None and (wanted.method, wanted.bits) != ("bitsandbytes", packed.bits):
        raise _invalid(
            f"spec.quantization asks for {wanted.method} with {wanted.bits} bits, and its weights are quantized to "
            f"{packed.bits} bits by bitsandbytes already; leave quantization unset, or name the original model"
        )
    return directory


def as_packed(config: TrainerConfig, directory: Path) -> TrainerConfig:
    """``config`` with the quantization of the weights in ``directory``, where they are bitsandbytes' already: what goes
    together, and what memory it takes, is judged by it, whether the job says so or not.

    Raises:
        TrainerError: as :func:`finetune_trainer.supported.check_supported`, of what the job leaves unsaid.
    """
    packed = packed_format(json.loads((directory / "config.json").read_text()))
    if packed is None or packed.method != "bitsandbytes":
        return config
    told = QuantizationSpec(
        bits=4 if packed.bits == 4 else 8,
        type="fp4" if packed.settings.get("bnb_4bit_quant_type") == "fp4" else "nf4",
        double_quantization=bool(packed.settings.get("bnb_4bit_use_double_quant")),
        compute_dtype=config.quantization.compute_dtype if config.quantization else None,
    )
    config = config.model_copy(update={"quantization": told})
    check_supported(config)
    return config


def _check_declared(wanted: QuantizationSpec, packed: Packed | None) -> None:
    """`gptq`, `awq`, `fp8` and `mxfp4` say what the checkpoint is; none is made here."""
    found = "whole" if packed is None else f"{packed.method} with {packed.bits or 'unsaid'} bits"
    if packed is None or packed.method != wanted.method or wanted.bits not in (None, packed.bits):
        raise _invalid(
            f"spec.quantization.method {wanted.method}"
            + (f" with {wanted.bits} bits" if wanted.bits else "")
            + f" is for checkpoints that are quantized so, and this one's weights are {found}. To quantize as "
            "weights are loaded, use bitsandbytes or hqq"
        )


def whole_weights(directory: Path, cache: Path, digest: str, packed: Packed) -> Path:
    """A directory with the model of ``directory`` in plain weights, made once a model.

    Args:
        directory: of the packed model.
        cache: the cache volume; the copy is kept in `dequantized/`.
        digest: of the packed model, which names the copy.
        packed: its format.

    Raises:
        TrainerError: MODEL_INVALID where the format is not known or the tensors do not fit it; the cache's.
    """
    target = cache / PLACE / digest.replace(":", "-")
    if (target / "config.json").exists():
        log.info("the model's weights (%s) were dequantized before", packed.method)
        return target
    expand = _expander(packed)
    log.info("dequantizing the model's weights (%s) into the cache", packed.method)
    with writing_to(target, "cache"), whole_directory(target) as aside:
        for name in wanted_files([p.name for p in directory.iterdir()], allow_pickle=False, code=True):
            if not name.endswith(".safetensors") and name not in ("config.json", INDEX):
                shutil.copyfile(directory / name, aside / name)
        with ExitStack() as stack:
            write_sharded(aside, expand(_Tensors(directory, stack)))
        config = json.loads((directory / "config.json").read_text())
        del config["quantization_config"]
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return target


class _Tensors:
    """A checkpoint's tensors by name, wherever they lie."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        names = sorted(path.name for path in directory.glob("*.safetensors"))
        index = directory / INDEX
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        self._files = {name: stack.enter_context(safe_open(directory / name, framework="pt")) for name in names}
        self._place = {key: name for name, file in self._files.items() for key in file.keys()}  # noqa: SIM118

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._place))

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self._place:
            raise _invalid(f"the tensor {name} is missing, which its packed weights need")
        tensor: torch.Tensor = self._files[self._place[name]].get_tensor(name)
        return tensor


def write_sharded(directory: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Write ``tensors`` as safetensors of at most :data:`SHARD_BYTES` each, with an index."""
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    total = size = 0

    def flush() -> None:
        save_file(pending, directory / f"part-{len(shards):05d}.safetensors", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        length = tensor.numel() * tensor.element_size()
        if pending and size + length > SHARD_BYTES:
            flush()
            size = 0
        pending[name] = tensor.contiguous()
        size, total = size + length, total + length
    flush()
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for number, name in enumerate(names if len(names) > 1 else [WEIGHTS]):
        (directory / f"part-{number:05d}.safetensors").rename(directory / name)
    if len(names) > 1:
        places = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


# -- formats ---------------------------------------------------------------------------------------------------------


def _expander(packed: Packed) -> Callable[[_Tensors], Iterator[tuple[str, torch.Tensor]]]:
    settings = packed.settings
    if packed.method == "gptq":
        if packed.bits not in _GPTQ_BITS:
            raise _invalid(f"GPTQ with {packed.bits} bits is not supported; 2, 4 and 8 are")
        offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
        return lambda tensors: _linear(tensors, lambda read, name: gptq_weight(read, name, packed.bits or 4, offset))
    if packed.method == "awq":
        if packed.bits not in (4, None) or settings.get("version", "gemm").lower() != "gemm":
            raise _invalid("AWQ is supported with 4 bits in the GEMM layout")
        return lambda tensors: _linear(tensors, awq_weight)
    if packed.method == "fp8":
        sizes = settings.get("weight_block_size")
        return lambda tensors: _fp8(tensors, tuple(sizes) if sizes else None)
    if packed.method == "mxfp4":
        return _mxfp4
    raise _invalid(
        f"its weights are quantized by {packed.method}, which cannot be trained on; gptq, awq, fp8, mxfp4 and "
        "bitsandbytes can. Name the original model"
    )


def _linear(tensors: _Tensors, weight_of: Callable[[Read, str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    parts = ("qweight", "qzeros", "scales", "g_idx")
    for name in tensors:
        module, _, part = name.rpartition(".")
        if part == "qweight":
            yield f"{module}.weight", weight_of(tensors, module)
        elif not (part in parts and f"{module}.qweight" in tensors):
            yield name, tensors(name)


def gptq_weight(read: Read, module: str, bits: int, offset: int) -> torch.Tensor:
    """The weight (out, in) of a GPTQ layer (Frantar et al., arXiv 2210.17323, as AutoGPTQ packs it).

    Args:
        read: gives a tensor by name: qweight int32 (in x bits / 32, out), qzeros int32 (groups, out x bits / 32),
            scales (groups, out) and g_idx (in), the group of each input.
        module: the layer's name.
        bits: a weight.
        offset: 1 where zero points are stored less one, as the first format does.
    """
    scales = read(f"{module}.scales")
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    mask = 2**bits - 1
    packed, zeros = read(f"{module}.qweight"), read(f"{module}.qzeros")
    values = ((packed[:, None, :] >> shifts[None, :, None]) & mask).reshape(-1, packed.shape[1])
    points = ((zeros[:, :, None] >> shifts) & mask).reshape(zeros.shape[0], -1) + offset
    groups = read(f"{module}.g_idx").long()
    _check_shapes(module, values.shape[0] == groups.numel(), values.shape[1] == scales.shape[1] == points.shape[1])
    return ((values - points[groups]).to(scales.dtype) * scales[groups]).T


def awq_weight(read: Read, module: str) -> torch.Tensor:
    """The weight (out, in) of an AWQ layer in its GEMM layout: qweight int32 (in, out / 8), qzeros int32
    (groups, out / 8), scales (groups, out)."""
    scales = read(f"{module}.scales")
    values, points = _awq_columns(read(f"{module}.qweight")), _awq_columns(read(f"{module}.qzeros"))
    _check_shapes(module, values.shape[1] == scales.shape[1] == points.shape[1], values.shape[0] % len(scales) == 0)
    group = values.shape[0] // scales.shape[0]
    points, scales = (part.repeat_interleave(group, dim=0) for part in (points, scales))
    return ((values - points).to(scales.dtype) * scales).T


def _awq_columns(packed: torch.Tensor) -> torch.Tensor:
    nibbles = (packed[:, :, None] >> torch.arange(0, 32, 4, dtype=torch.int32)) & 15
    columns = torch.empty_like(nibbles)
    columns[:, :, list(AWQ_ORDER)] = nibbles
    return columns.reshape(packed.shape[0], -1)


def _fp8(tensors: _Tensors, block: tuple[int, ...] | None) -> Iterator[tuple[str, torch.Tensor]]:
    """8-bit floats with a scale a tensor, or a block of it (DeepSeek-V3, arXiv 2412.19437, section 3.3)."""
    scale_names = ("_scale_inv", "_scale")
    for name in tensors:
        tensor = tensors(name)
        if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            scale = next((name + end for end in scale_names if name + end in tensors), None)
            if scale is None:
                raise _invalid(f"{name} is in 8-bit floats, and there is no {name}_scale_inv beside it")
            yield name, _scaled(name, tensor, tensors(scale), block).to(torch.bfloat16)
        elif not name.endswith((*scale_names, "input_scale", "activation_scale")):
            yield name, tensor


def _scaled(name: str, tensor: torch.Tensor, scale: torch.Tensor, block: tuple[int, ...] | None) -> torch.Tensor:
    values, scale = tensor.to(torch.float32), scale.to(torch.float32)
    if scale.numel() == 1:
        return values * scale.reshape(())
    if scale.dim() == 1:  # one a row
        scale = scale[:, None]
    for axis, size in zip((-2, -1), block or (1, values.shape[-1]), strict=True):
        scale = scale.repeat_interleave(size, dim=axis)
        _check_shapes(name, 0 <= scale.shape[axis] - values.shape[axis] < size)
        scale = scale.narrow(axis, 0, values.shape[axis])
    return values * scale


def _mxfp4(tensors: _Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """4-bit floats in blocks of 32 with a shared exponent (OCP Microscaling formats), as gpt-oss packs its experts."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors  # noqa: PLC0415 - heavy, and rarely wanted

    for name in tensors:
        if name.endswith("_blocks"):
            whole = name.removesuffix("_blocks")
            yield whole, convert_moe_packed_tensors(tensors(name), tensors(f"{whole}_scales"), dtype=torch.bfloat16)
        elif not name.endswith("_scales"):
            yield name, tensors(name)


def _check_shapes(module: str, *fits: bool) -> None:
    if not all(fits):
        raise _invalid(f"the packed tensors of {module} do not fit together; copy the model again")


def _invalid(problem: str) -> TrainerError:
    return TrainerError(ExitCode.MODEL_INVALID, f"spec.model.source: the model cannot be trained: {problem}")
