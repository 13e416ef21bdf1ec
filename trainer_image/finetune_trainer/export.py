"""The result: weights in safetensors, the tokenizer with the chat template that trained them, a model card."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from finetune_api.reports import ExportReport
from finetune_api.trainer_config import TrainerConfig
from transformers import GenerationConfig, PreTrainedTokenizerBase

from finetune_trainer.adapters import Start
from finetune_trainer.card import Facts, model_card
from finetune_trainer.dtypes import DTYPES
from finetune_trainer.errors import writing_to
from finetune_trainer.export_check import check_served
from finetune_trainer.files import sha256_file, whole_directory
from finetune_trainer.log import log
from finetune_trainer.picture import draw_losses
from finetune_trainer.prepared import Prepared
from finetune_trainer.progress import FILE

ADAPTER, MODEL = "adapter", "model"
"""Directories of the result, by what was trained."""
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_ADAPTER_CONFIG = "adapter_config.json"


def export(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainerConfig,
    facts: Facts,
    *,
    start: Start | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> ExportReport:
    """Write ``<output>/adapter`` or ``<output>/model``, whole or not at all.

    Args:
        model: trained.
        tokenizer: carries the chat template that trained it.
        config: the job's.
        facts: for the card.
        start: as :class:`finetune_trainer.model.Loaded` has it.
        weights: the model's, where ``model`` itself does not hold them whole or as trained.

    Raises:
        TrainerError: the output volume is full or cannot be written; EXPORT_INVALID where serving would not say what
            was trained.
    """
    name = ADAPTER if config.method.lora is not None else MODEL
    target = Path(config.paths.output) / name
    prepared = facts.prepared
    with writing_to(target, "output"), whole_directory(target) as aside:
        if config.method.lora is None:
            # Masters are fp32; what is delivered is what a server would load.
            model.to(DTYPES[config.precision])
            model.config.use_cache = True
            weights = weights and {name: value.to(DTYPES[config.precision]) for name, value in weights.items()}
        if start is not None:
            with start.written() as first, warnings.catch_warnings():
                # peft warns of a second adapter beside OLoRA's, which is its own way of subtracting the start.
                warnings.filterwarnings("ignore", message="OLoRA changes the base weights")
                model.save_pretrained(aside, path_initial_model_for_weight_conversion=str(first), state_dict=weights)
        else:
            model.save_pretrained(aside, safe_serialization=True, state_dict=weights)
        tokenizer.save_pretrained(aside)
        copy_processor(prepared.model_directory, aside)
        if config.stage != "rm":
            generation_config(model, tokenizer, prepared.stop_token_ids).save_pretrained(aside)
        check_served(aside, config, prepared)
        if name == ADAPTER:
            _name_base(aside / _ADAPTER_CONFIG, config, prepared)
        write_card(aside, config, facts)
        make_readable(aside)
        digest = _digest(aside)
    log.info("%s is at %s", name, target)
    return ExportReport(path=name, digest=digest)


def write_card(directory: Path, config: TrainerConfig, facts: Facts, *, merged: bool = False) -> None:
    """The model card and the picture of the loss, beside weights in ``directory``; ``merged`` as of
    :func:`finetune_trainer.card.model_card`."""
    (directory / "README.md").write_text(model_card(config, facts, merged=merged), encoding="utf-8")
    history = Path(config.paths.output) / FILE
    draw_losses(history, directory / "loss.png", per_token=config.stage in ("sft", "pt"))


def copy_processor(model: Path, result: Path) -> None:
    """Of a model that takes images or sounds the files of its processor, as they are: servers look for them beside the
    weights. The chat template is the tokenizer's, which is the one that was trained."""
    for name in PROCESSOR_FILES:
        if not (model / name).is_file():
            continue
        settings = json.loads((model / name).read_text(encoding="utf-8"))
        settings.pop("chat_template", None)
        (result / name).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def make_readable(directory: Path) -> None:
    """safetensors writes for its own user alone."""
    for file in directory.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def generation_config(model: Any, tokenizer: PreTrainedTokenizerBase, stops: tuple[int, ...]) -> GenerationConfig:
    """The base's, ending where the template ends an answer."""
    base = getattr(model, "generation_config", None)
    settings = GenerationConfig.from_dict(base.to_dict()) if base is not None else GenerationConfig()
    known = settings.eos_token_id
    before = known if isinstance(known, list) else [] if known is None else [known]
    settings.eos_token_id = list(dict.fromkeys([*stops, *before]))
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    return settings


def _name_base(path: Path, config: TrainerConfig, prepared: Prepared) -> None:
    """The base as others find it: the hub's name and commit, not a directory of a pod that is gone."""
    settings = json.loads(path.read_text())
    settings["base_model_name_or_path"] = config.model.uri.removeprefix("hf://")
    if config.model.uri.startswith("hf://"):
        settings["revision"] = prepared.model.digest
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _digest(directory: Path) -> str:
    """``sha256:`` over the weights' files: names and contents."""
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        digest.update(f"{file.name}\0{sha256_file(file)}\n".encode())
    return f"sha256:{digest.hexdigest()}"
