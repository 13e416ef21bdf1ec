"""LoRA: adapters added to a model, their names checked beforehand, and started as the job wants."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.training import LoraMethod
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from finetune_trainer.errors import TrainerError
from finetune_trainer.heads import reward_head, train_head
from finetune_trainer.media_models import pattern_of, within

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
    check_names("modulesToSave", method.modules_to_save, [name for name, _ in model.named_modules() if name])
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
        modules_to_save=list(method.modules_to_save) or None,  # peft adds a reward's head by itself
    )
    return get_peft_model(model, settings, autocast_adapter_dtype=masters)


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

    @contextmanager
    def written(self) -> Iterator[Path]:
        """A directory with it, as peft saves an adapter, for as long as the block runs."""
        with tempfile.TemporaryDirectory(prefix="lora-start-") as directory:
            for name, content in self._files.items():
                Path(directory, name).write_bytes(content)
            yield Path(directory)


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
