"""The base model with the adapter merged into it, tried against the adapter before it is delivered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import AutoConfig, PreTrainedTokenizerBase

from finetune_trainer.card import Facts
from finetune_trainer.dtypes import DTYPES
from finetune_trainer.errors import TrainerError, writing_to
from finetune_trainer.evaluate import evaluating
from finetune_trainer.export import ADAPTER, copy_processor, generation_config, make_readable, write_card
from finetune_trainer.export_check import check_served
from finetune_trainer.files import whole_directory
from finetune_trainer.heads import model_class
from finetune_trainer.log import log
from finetune_trainer.quantization import forget_quantization, is_packed, whole_layer

DIRECTORY = "merged"
TOLERANCE = {"bf16": 0.05, "fp16": 0.01, "fp32": 0.001}
"""Greatest relative difference of the logits, |merged - adapter| / |adapter|, that rounding explains."""
QUANTIZED_TOLERANCE = 0.1
"""The same where the adapter runs on a quantized base, whose kernels round activations too."""
_PROBE_TOKENS = 256
_MOST_GONE = 0.5
"""Share of the trained modules that rounding may turn back into the base's."""
_MUCH_LOST = 0.5
"""Share of the change that rounding may blur before the log warns of it."""


def load_tuned(config: TrainerConfig, directory: Path) -> Any:
    """The base in ``directory`` with the adapter that was exported, whole, in fp32, on the CPU: for a merge where no
    device held the whole model."""
    settings = AutoConfig.from_pretrained(directory, trust_remote_code=config.model.trust_remote_code)
    base = model_class(config, settings).from_pretrained(
        directory,
        dtype=torch.float32,
        trust_remote_code=config.model.trust_remote_code,
        use_safetensors=None if config.model.allow_pickle else True,
        local_files_only=True,
    )
    return PeftModel.from_pretrained(base, Path(config.paths.output) / "adapter")


def merge(model: Any, tokenizer: PreTrainedTokenizerBase, config: TrainerConfig, facts: Facts) -> str:
    """Merge the adapter into its base and write ``<output>/merged``; the directory's name.

    ``model`` is used up. Weights are added up in fp32 and rounded once, to ``output.merge.dtype``. A quantized base is
    dequantized: the adapter was trained on those weights and not on the original ones.

    Raises:
        TrainerError: EXPORT_INVALID where what is written would be (nearly) the base, or says something else than the
            adapter; the volume's.
    """
    assert config.merge is not None  # noqa: S101 - the caller's condition
    name = config.merge.dtype
    prepared = facts.prepared
    probe = torch.from_numpy(prepared.train[0].input_ids[None, :_PROBE_TOKENS].copy())
    tolerance = TOLERANCE[name]
    # accelerate has put autocast around the model, below which even fp32 is computed in the job's precision.
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False)
    if quantized := any(is_packed(part) for part in model.modules()):
        expected = _logits(model, probe, config.precision)
        tolerance = max(tolerance, QUANTIZED_TOLERANCE)
        model = _on_whole_weights(model, Path(config.paths.output) / ADAPTER)
    model.to(torch.float32)
    if not quantized:
        expected = _logits(model, probe)
    change = _merge_layers(model, DTYPES[name])
    _check_change(change, name)
    merged = model.unload()
    merged.to(DTYPES[name])
    difference = _relative_difference(_logits(merged, probe), expected)
    if not difference <= tolerance:
        raise TrainerError(
            ExitCode.EXPORT_INVALID,
            f"output.merge: the merged model's logits differ by {difference:.3g} from the adapter's, where rounding to "
            f"{name} explains {tolerance:g}; use the adapter, or merge in fp32",
        )
    target = Path(config.paths.output) / DIRECTORY
    with writing_to(target, "output"), whole_directory(target) as aside:
        merged.config.use_cache = True
        merged.save_pretrained(aside, safe_serialization=True)
        tokenizer.save_pretrained(aside)
        copy_processor(prepared.model_directory, aside)
        if config.stage != "rm":
            generation_config(merged, tokenizer, prepared.stop_token_ids).save_pretrained(aside)
        check_served(aside, config, prepared)
        write_card(aside, config, facts, merged=True)
        make_readable(aside)
    log.info("merged weights (%s, %d modules, logits within %.2g of the adapter's) are at %s", name, change.kept,
             difference, target)  # fmt: skip
    return DIRECTORY


@dataclass
class _Change:
    """What a merge did to the weights of adapted and of saved modules."""

    learnt: int = 0
    """Modules whose weights training has changed."""
    kept: int = 0
    """Those of them that still differ from the base's in what is written."""
    _whole: float = 0.0
    _lost: float = 0.0

    def add(self, before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> None:
        """Count a module: its weight (fp32) before and after, and the type that both are rounded to."""
        if torch.equal(before, after):
            return
        self.learnt += 1
        written, change = after.to(dtype).float() - before.to(dtype), after - before
        self.kept += bool(written.any())
        self._whole += float(change.square().sum())
        self._lost += float((written - change).square().sum())

    @property
    def lost(self) -> float:
        """Rounding's part of the change, |written - learnt| / |learnt|."""
        return math.sqrt(self._lost / self._whole) if self._whole else 0.0


def _merge_layers(model: Any, dtype: torch.dtype) -> _Change:
    """Merge layer by layer; what it changed, in weights of ``dtype``."""
    change = _Change()
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, BaseTunerLayer) and hasattr(part, "merge"):
                weight = part.get_base_layer().weight
                before = weight.detach().clone()
                part.merge(safe_merge=True)
                change.add(before, part.get_base_layer().weight, dtype)
            elif isinstance(part, ModulesToSaveWrapper):
                trained = part.modules_to_save[part.active_adapter]
                for before, after in zip(part.original_module.parameters(), trained.parameters(), strict=True):
                    change.add(before, after, dtype)
    return change


def _check_change(change: _Change, dtype: str) -> None:
    """Refuse a merge whose result would be the base model, and warn of one that keeps little of what was learnt.

    Raises:
        TrainerError: EXPORT_INVALID.
    """
    if change.learnt == 0:
        raise TrainerError(
            ExitCode.EXPORT_INVALID,
            "output.merge: merging changed no weight, so the result would be the base model: the adapter learnt "
            "nothing. Raise hyperparameters.learningRate or the number of steps",
        )
    gone = change.learnt - change.kept
    what = (
        f"{gone} of {change.learnt} trained modules are the base's again once they are rounded to {dtype}, and "
        f"rounding changes {change.lost:.0%} of what was learnt. Set output.merge.dtype: fp32, or serve the adapter"
    )
    if gone > _MOST_GONE * change.learnt:
        raise TrainerError(ExitCode.EXPORT_INVALID, f"output.merge: {what}")
    if gone or change.lost > _MUCH_LOST:
        log.warning("output.merge: %s", what)


def _on_whole_weights(model: Any, adapter: Path) -> Any:
    """The exported ``adapter`` on the base of ``model``, its packed weights made whole."""
    base = model.unload()
    for name, layer in list(base.named_modules()):
        if is_packed(layer):
            parent, _, own = name.rpartition(".")
            setattr(base.get_submodule(parent), own, whole_layer(layer))
    forget_quantization(base)
    return PeftModel.from_pretrained(base, str(adapter))


def _logits(model: Any, ids: torch.Tensor, precision: str = "fp32") -> torch.Tensor:
    with evaluating(model, precision):
        return model(input_ids=ids.to(next(model.parameters()).device)).logits.float()


def _relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
