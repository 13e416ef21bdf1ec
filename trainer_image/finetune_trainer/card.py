"""The model card: what was trained, on what, how, and how well."""

from __future__ import annotations

import yaml
from finetune_api.status import ModelStatus, Progress, Sample
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import LoraMethod, Stage

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


def model_card(
    config: TrainerConfig, progress: Progress | None, prepared: Prepared, model: ModelStatus, samples: list[Sample]
) -> str:
    """README.md of the result, with the front matter that the hub reads."""
    base = config.model.uri.removeprefix("hf://")
    front: dict[str, object] = {"library_name": "peft" if config.method.lora else "transformers"}
    if config.model.uri.startswith("hf://"):
        front["base_model"] = base
    front["pipeline_tag"] = "text-classification" if config.stage == "rm" else _task(prepared.train.media_kinds)
    front["tags"] = ["finetune-operator", config.stage, method_of(config)]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            "",
            f"# {config.job.name}",
            "",
            f"Made from `{config.model.uri}` (`{prepared.model.digest}`) by a FineTuneJob: {_STAGES[config.stage]}.",
            "",
            *_results(progress),
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
            *_table(config, model),
            "",
            *_samples(samples),
            "![loss](loss.png)",
            "",
        ]
    )


def method_of(config: TrainerConfig) -> str:
    """``lora``, ``freeze`` or ``full``."""
    if config.method.lora is not None:
        return "lora"
    return "freeze" if config.method.freeze is not None else "full"


def _variants(lora: LoraMethod) -> list[str]:
    names = ["rsLoRA"] if lora.rslora else []
    names += ["DoRA"] if lora.dora else []
    names += [f"LoRA+ ({lora.lora_plus_ratio:g})"] if lora.lora_plus_ratio is not None else []
    return names


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
    if config.method.lora is not None:
        lora = config.method.lora
        rows += [("method", "LoRA"), ("rank", lora.rank), ("alpha", lora.alpha or 2 * lora.rank)]
        rows += [("variant", name) for name in _variants(lora)]
    else:
        rows.append(("method", method_of(config)))
    rows += [
        ("parameters", model.trained),
        ("learning rate", f"{numbers.learning_rate:g} ({numbers.schedule}, warm-up {numbers.warmup_ratio:g})"),
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
