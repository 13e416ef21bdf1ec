"""LoRA: adapters added to a model, their names checked beforehand, and started as the job wants."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from finetune_api.failures import ExitCode
from finetune_api.training import LoraMethod
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.errors import TrainerError
from finetune_trainer.heads import reward_head, train_head
from finetune_trainer.media_models import pattern_of, within
from finetune_trainer.quantization import is_packed

FROM_THE_WEIGHTS = ("pissa", "olora")
"""Starts that take the adapter's first values out of the base's weights, and change these."""
_NAME = "default"
_INIT: dict[str, Any] = {
    "default": True,
    "gaussian": "gaussian",
    "pissa": "pissa_niter_16",  # singular vectors by 16 subspace iterations: seconds where an exact SVD takes minutes
    "olora": "olora",
}
"""peft's name of each start."""


def linear_names(model: PreTrainedModel, frozen: tuple[str, ...] = ()) -> list[str]:
    """Names of the layers that can take an adapter: all linear ones but the head, and but those in the modules
    ``frozen``."""
    reward = reward_head(model)
    head = model.get_submodule(reward) if reward else model.get_output_embeddings()
    return [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and part is not head and not within(name, frozen)
    ]


def add_adapters(
    model: PreTrainedModel,
    method: LoraMethod,
    linear: list[str],
    frozen: tuple[str, ...] = (),
    *,
    masters: bool = True,
) -> PeftModel | Any:
    """``model`` with LoRA's adapters, the rest frozen.

    Args:
        model: the base; its linear layers may be quantized.
        method: the job's.
        linear: :func:`linear_names`, from before the layers were quantized.
        frozen: modules that take no adapter, whatever their layers are called.
        masters: whether adapters are held in fp32, or in the base's type.

    Raises:
        TrainerError: METHOD_INVALID, with the names that there are.
    """
    check_names("targetModules", method.target_modules, linear)
    saved = full_names(method.modules_to_save, [name for name, _ in model.named_modules() if name])
    if packed := [name for name in saved if any(map(is_packed, model.get_submodule(name).modules()))]:
        raise TrainerError(
            ExitCode.METHOD_INVALID,
            f"method.lora.modulesToSave: {', '.join(packed)} is held in fewer bits, which cannot be trained; leave it "
            "to adapters (method.lora.targetModules), or drop quantization",
        )
    train_head(model)
    settings = LoraConfig(
        task_type="SEQ_CLS" if reward_head(model) else "CAUSAL_LM",
        r=method.rank,
        lora_alpha=method.alpha if method.alpha is not None else 2 * method.rank,
        lora_dropout=method.dropout,
        exclude_modules=pattern_of(frozen) if frozen else None,
        target_modules=sorted(set(method.target_modules) or {name.rpartition(".")[2] for name in linear}),
        use_rslora=method.rslora,
        use_dora=method.dora,
        init_lora_weights=_INIT[method.init],
        modules_to_save=saved or None,  # peft adds a reward's head by itself
        ensure_weight_tying=_ties(model, saved),
    )
    # peft makes a head anew where it is tied to an embedding that is trained: at home for real, else not at all.
    with torch.device("meta") if model.device.type == "meta" else contextlib.nullcontext():
        adapted = get_peft_model(model, settings, autocast_adapter_dtype=masters)
    if masters:
        _hold_in_fp32(adapted)
    return adapted


def _ties(model: PreTrainedModel, saved: list[str]) -> bool:
    """Whether one of the modules ``saved`` shares its weight: with the embedding the head is trained, and the other way
    round, as with any other method. Two copies would not fit into one tensor when they are merged."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if reward_head(model) or head is None or head.weight is not embedding.weight:
        return False
    return any(model.get_submodule(name) in (head, embedding) for name in saved)


def _hold_in_fp32(model: nn.Module) -> None:
    """Hold the modules that are trained in full in fp32, which peft does with adapters alone. What they give to the
    rest of the model keeps its type."""
    for part in model.modules():
        if isinstance(part, ModulesToSaveWrapper):
            trained = part.modules_to_save[_NAME]
            if any(parameter.dtype != torch.float32 for parameter in trained.parameters()):
                trained.float()
                trained.register_forward_hook(_as_autocast)


def _as_autocast(_module: nn.Module, _inputs: Any, output: Any) -> Any:
    if not isinstance(output, torch.Tensor) or not torch.is_autocast_enabled(output.device.type):
        return output
    return output.to(torch.get_autocast_dtype(output.device.type))


class Start:
    """The adapter's first values, where the base was changed to fit them (PiSSA, arXiv 2404.02948; OLoRA, arXiv
    2406.01775). With these, what is delivered fits the base as everybody else has it, at twice the rank."""

    def __init__(self, model: PeftModel | Any) -> None:
        with tempfile.TemporaryDirectory(prefix="lora-start-") as directory:
            # peft takes the saved start for ordinary LoRA weights, as which it will be subtracted.
            kind, model.peft_config[_NAME].init_lora_weights = model.peft_config[_NAME].init_lora_weights, True
            model.save_pretrained(directory)
            model.peft_config[_NAME].init_lora_weights = kind
            self._files = {path.name: path.read_bytes() for path in Path(directory).iterdir()}

    @contextlib.contextmanager
    def written(self) -> Iterator[Path]:
        """A directory with it, as peft saves an adapter, for as long as the block runs."""
        with tempfile.TemporaryDirectory(prefix="lora-start-") as directory:
            for name, content in self._files.items():
                Path(directory, name).write_bytes(content)
            yield Path(directory)


def full_names(wanted: list[str], names: list[str]) -> list[str]:
    """Of ``names`` those that ``wanted`` means: each whole, or the last parts of a name. peft itself would take `norm`
    for `input_layernorm` too.

    Raises:
        TrainerError: METHOD_INVALID, where one means nothing, or peft would take another module with it.
    """
    check_names("modulesToSave", wanted, names)
    meant = [name for name in names if any(name == one or name.endswith(f".{one}") for one in wanted)]
    alike = {name for name in names if name.endswith(tuple(meant))}.difference(meant)
    if alike:
        raise TrainerError(
            ExitCode.METHOD_INVALID,
            f"method.lora.modulesToSave: peft cannot tell {', '.join(sorted(alike))} from {', '.join(meant)}, whose "
            "names end alike; name all of them or none",
        )
    return meant


def check_names(field: str, wanted: list[str], names: list[str]) -> None:
    """Refuse what of ``wanted`` is the end of none of ``names``.

    Raises:
        TrainerError: METHOD_INVALID, with the names that there are.
    """
    endings = sorted({name.rpartition(".")[2] for name in names})
    for name in wanted:
        if not any(known == name or known.endswith(f".{name}") for known in names):
            raise TrainerError(
                ExitCode.METHOD_INVALID,
                f"method.lora.{field}: the model has no module {name!r}; it has: {', '.join(endings[:40])}",
            )
