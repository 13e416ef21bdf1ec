"""The model card: what was trained, on what, how, and how well."""

from __future__ import annotations

from dataclasses import dataclass

import yaml
from finetune_api.status import ModelStatus, Progress, Sample
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import LoraMethod, MethodSpec, QuantizationSpec, Stage
from finetune_api.uris import parse_uri

from finetune_trainer.messages import MediaKind
from finetune_trainer.prepared import Prepared

_STAGES: dict[Stage, str] = {
    "sft": "supervised fine-tuning",
    "pt": "continued pre-training on plain text",
    "dpo": "direct preference optimization (DPO)",
    "kto": "Kahneman-Tversky optimization (KTO)",
    "orpo": "odds ratio preference optimization (ORPO)",
    "rm": "a reward model, which gives a conversation one number",
}


@dataclass(frozen=True)
class Facts:
    """What the card tells beside the configuration."""

    prepared: Prepared
    progress: Progress | None
    model: ModelStatus
    samples: list[Sample]


def model_card(config: TrainerConfig, facts: Facts, *, merged: bool = False) -> str:
    """README.md of the result, with the front matter that the hub reads.

    Args:
        config: the job's.
        facts: of the training.
        merged: whether it lies beside the base with the adapter merged into it.
    """
    prepared = facts.prepared
    kind = "Weights" if config.method.lora is None else "An adapter"
    if merged and config.merge is not None:
        kind = f"Weights in {config.merge.dtype}, with the adapter merged into them,"
    return "\n".join(
        [
            "---",
            yaml.safe_dump(
                _front(config, prepared, adapter=config.method.lora is not None and not merged),
                sort_keys=False,
                allow_unicode=True,
            ).strip(),
            "---",
            "",
            f"# {config.job.name}",
            "",
            f"{kind} made from `{config.model.uri}` (`{prepared.model.digest}`) by a FineTuneJob: "
            f"{_STAGES[config.stage]}.",
            "",
            *_results(facts.progress),
            "## Data",
            "",
            *(f"- `{source.uri}` ({source.format})" for source in config.sources),
            "",
            f"{prepared.dataset.samples} samples, {prepared.dataset.tokens:,} tokens, "
            f"{prepared.dataset.supervised_tokens:,} of them supervised; "
            f"{prepared.dataset.validation_samples} samples held out. Digest `{prepared.digest}`.",
            "",
            "## Training",
            "",
            *_table(config, facts.model),
            "",
            *_samples(facts.samples),
            "![loss](loss.png)",
            "",
        ]
    )


def _front(config: TrainerConfig, prepared: Prepared, *, adapter: bool) -> dict[str, object]:
    front: dict[str, object] = {"library_name": "peft" if adapter else "transformers"}
    if config.model.uri.startswith("hf://"):
        front["base_model"] = config.model.uri.removeprefix("hf://")
        front["base_model_relation"] = "adapter" if adapter else "finetune"
    sets = [uri.name for uri in (parse_uri(source.uri) for source in config.sources) if uri.scheme == "hf"]
    if sets:
        front["datasets"] = list(dict.fromkeys(sets))
    front["pipeline_tag"] = "text-classification" if config.stage == "rm" else _task(prepared.train.media_kinds)
    front["tags"] = ["finetune-operator", config.stage, method_of(config)]
    return front


def method_of(config: TrainerConfig) -> str:
    """``lora``, ``freeze`` or ``full``."""
    if config.method.lora is not None:
        return "lora"
    return "freeze" if config.method.freeze is not None else "full"


def _method(method: MethodSpec) -> list[tuple[str, object]]:
    if method.lora is not None:
        return _lora(method.lora)
    if method.freeze is not None:
        frozen = method.freeze
        where = "last" if frozen.trainable_layers > 0 else "first"
        rows: list[tuple[str, object]] = [
            ("method", "freeze"),
            ("layers", f"the {where} {abs(frozen.trainable_layers)}"),
        ]
        rows += [("modules in them", _names(frozen.trainable_modules))] if frozen.trainable_modules else []
        return rows + ([("other modules", _names(frozen.extra_modules))] if frozen.extra_modules else [])
    masters = "fp32" if method.full is None else method.full.master_weights
    return [("method", "full"), ("master weights", masters)]


def _lora(lora: LoraMethod) -> list[tuple[str, object]]:
    variants = ["rsLoRA"] if lora.rslora else []
    variants += ["DoRA"] if lora.dora else []
    variants += [f"LoRA+ ({lora.lora_plus_ratio:g})"] if lora.lora_plus_ratio is not None else []
    rows: list[tuple[str, object]] = [
        ("method", "LoRA"),
        ("rank", lora.rank),
        ("alpha", lora.alpha or 2 * lora.rank),
        ("dropout", f"{lora.dropout:g}"),
        ("target modules", _names(lora.target_modules) or "all linear layers but the output head"),
        ("start", lora.init),
    ]
    rows += [("variant", name) for name in variants]
    return rows + ([("trained in full", _names(lora.modules_to_save))] if lora.modules_to_save else [])


def _quantization(wanted: QuantizationSpec) -> str:
    if wanted.method == "bitsandbytes" and wanted.bits == 4:
        double = "double" if wanted.double_quantization else "single"
        told = f"{wanted.type} by bitsandbytes, with {double} quantization"
    elif wanted.method in ("bitsandbytes", "hqq"):
        told = f"{wanted.bits} bits by {wanted.method}"
    else:
        return f"the base is a checkpoint in {wanted.method}, trained on as dequantized"
    return f"{told}, computed in {wanted.compute_dtype}" if wanted.compute_dtype else told


def _names(modules: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in modules)


def _results(progress: Progress | None) -> list[str]:
    if progress is None:
        return []
    rows = [("steps", str(progress.step)), ("training loss", _loss(progress.loss))]
    if progress.eval_loss is not None:
        rows.append(("held-out loss before", _loss(progress.initial_eval_loss)))
        rows.append(("held-out loss after", _loss(progress.eval_loss)))
    if progress.reward_accuracy is not None:
        rows.append(("reward accuracy, last step", f"{progress.reward_accuracy:.2f}"))
    if progress.reward_margin is not None:
        rows.append(("reward margin, last step", _loss(progress.reward_margin)))
    return ["## Result", "", "| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows), ""]


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _table(config: TrainerConfig, model: ModelStatus) -> list[str]:
    numbers = config.hyperparameters
    rows: list[tuple[str, object]] = [("stage", config.stage), ("precision", config.precision)]
    if config.preference is not None:
        rows.append(("beta", f"{config.preference.beta:g}"))
        if config.stage == "dpo":
            rows.append(("loss", config.preference.loss))
    rows += _method(config.method)
    if config.quantization is not None:
        rows.append(("quantization", _quantization(config.quantization)))
    rows += [
        ("parameters", model.trained),
        ("optimizer", numbers.optimizer),
        ("learning rate", f"{numbers.learning_rate:g} ({numbers.schedule}, warm-up {numbers.warmup_ratio:g})"),
        ("weight decay", f"{numbers.weight_decay:g}"),
        ("gradients clipped to", f"{numbers.max_grad_norm:g}" if numbers.max_grad_norm else "-"),
        *([("NEFTune alpha", f"{numbers.neftune_alpha:g}")] if numbers.neftune_alpha else []),
        ("global batch size", numbers.global_batch_size),
        ("longest sequence", config.max_length),
        ("packing", "on" if config.packing else "off"),
        ("seed", numbers.seed),
    ]
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]


def _samples(samples: list[Sample]) -> list[str]:
    lines: list[str] = []
    for sample in samples:
        lines += [f"> {sample.prompt}", "", f"- before: {sample.before}", f"- after: {sample.after}", ""]
    return ["## Answers", "", *lines] if lines else []


def _task(kinds: tuple[MediaKind, ...]) -> str:
    """The hub's name of what a model does that was trained on these beside text."""
    if "image" in kinds or "video" in kinds:
        return "image-text-to-text"
    return "audio-text-to-text" if kinds else "text-generation"
