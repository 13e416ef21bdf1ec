"""The preference stages: TRL's trainers with what :class:`~finetune_trainer.loop.FineTuner` adds, on prepared data.

TRL is imported with this module, so only where such a stage is trained. Its trainers tokenize in their constructors,
for which they get a placeholder of one row; the prepared sequences take its place behind that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from datasets import Dataset, disable_progress_bars
from finetune_api.stages import REFERENCE_STAGES
from finetune_api.trainer_config import TrainerConfig
from finetune_api.training import PreferenceSpec
from torch import nn
from transformers import TrainingArguments
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from finetune_trainer.batches import Examples
from finetune_trainer.evaluate import evaluating
from finetune_trainer.log import log
from finetune_trainer.loop import FineTuner
from finetune_trainer.pairs import LabelledCollator, OrpoCollator, PairCollator, RewardCollator
from finetune_trainer.prepared import Prepared

_REFERENCE = "ref"
"""Name that TRL gives to its copy of an adapter."""


class _PreferenceTuner(FineTuner):
    """What the four have in common; to be put before one of TRL's trainers."""

    def __init__(self, *, prepared: Prepared, precision: str, **options: Any) -> None:
        self._validation, self._precision = prepared.validation, precision
        trained = [parameter for parameter in options["model"].parameters() if parameter.requires_grad]
        masters = [parameter.data for parameter in trained]
        super().__init__(train_dataset=Dataset.from_dict({"row": [0]}), **options)
        # On a quantized base TRL makes what is trained bf16, which loses small updates: it stays in fp32 in all stages.
        for parameter, master in zip(trained, masters, strict=True):
            parameter.data = master
        self.train_dataset = Examples(prepared.train)
        self.processing_class = None  # a checkpoint holds no tokenizer
        # gather_for_metrics leaves out what it takes for padding at the end of an epoch; but Trainer reads a step's
        # micro-batches ahead, so it would cut all of the last step's, and after a resume none.
        self.accelerator.gather_for_metrics = self.accelerator.gather
        adapters = getattr(self.model, "peft_config", {})
        if _REFERENCE in adapters:  # a new adapter's reference is the base: no copy of it is needed
            self.model.delete_adapter(_REFERENCE)

    def held_out(self) -> float | None:
        """The stage's own loss on the held-out pairs, each counting the same.

        Raises:
            TrainerError: INTERRUPTED.
        """
        count = len(self._validation)
        if count == 0:
            return None
        total, size = 0.0, self.args.per_device_train_batch_size
        with evaluating(self.model, self._precision):
            for start in range(0, count, size):
                self.interrupted.check()
                batch = self.data_collator([self._validation[i] for i in range(start, min(start + size, count))])
                del batch["tokens"], batch["rows"]
                total += self.stage_loss(self._prepare_inputs(batch)) * min(size, count - start)
        self.forget()
        return total / count

    def stage_loss(self, batch: dict[str, Any]) -> float:
        """The loss of a batch that is not trained on."""
        return float(self.compute_loss(self.model, batch))

    def forget(self) -> None:
        """Keep what was measured on held-out pairs out of the next step's report."""
        self._metrics["eval"].clear()

    def _prepare_dataset(self, dataset: Any, *_arguments: Any) -> Any:
        return dataset

    def create_model_card(self, *_arguments: Any, **_options: Any) -> None:
        """Ours is written with the result; TRL's would be left beside the checkpoints."""

    def _send_telemetry(self) -> None:
        """Nothing leaves the pod."""


class DpoTuner(_PreferenceTuner, DPOTrainer):
    """Direct preference optimization (Rafailov et al., arXiv 2305.18290)."""


class KtoTuner(_PreferenceTuner, KTOTrainer):
    """Kahneman-Tversky optimization (Ethayarajh et al., arXiv 2402.01306)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # TRL pairs each prompt with another's answer beforehand, in the set's order; our collator does so in whatever
        # batch there is.
        self.args.train_sampling_strategy = "random"


class RewardTuner(_PreferenceTuner, RewardTrainer):
    """A reward model by pairs (Bradley and Terry's loss, as in Ouyang et al., arXiv 2203.02155)."""


class OrpoTuner(_PreferenceTuner, ORPOTrainer):
    """Odds ratio preference optimization (Hong et al., arXiv 2403.07691)."""

    def tokenize_row(self, feature: Any, _model: Any = None) -> Any:
        """The placeholder stays as it is."""
        return feature

    def stage_loss(self, batch: dict[str, Any]) -> float:
        """The loss of a batch that is not trained on."""
        loss, _metrics = self.get_batch_loss_metrics(self.model, batch, train_eval="eval")
        return float(loss)

    def forget(self) -> None:
        """Nothing was kept."""


def preference_tuner(
    config: TrainerConfig,
    model: Any,
    tokenizer: Any,
    prepared: Prepared,
    arguments: Callable[..., TrainingArguments],
    **options: Any,
) -> FineTuner:
    """The trainer of ``config``'s stage.

    Args:
        config: the job's, of a preference stage.
        model: with what the method trains.
        tokenizer: for its pad token.
        prepared: the data.
        arguments: makes the arguments of the class that is given first, with more that are given by name.
        options: of :class:`~finetune_trainer.loop.FineTuner`.
    """
    numbers = config.preference or PreferenceSpec()
    pad = int(tokenizer.pad_token_id)
    _without_dropout(model)
    disable_progress_bars()  # for the placeholder
    common = {
        "model": model,
        "processing_class": tokenizer,
        "prepared": prepared,
        "precision": config.precision,
        **options,
    }
    more: dict[str, Any] = {"disable_dropout": False, "max_length": config.max_length}
    if config.stage in REFERENCE_STAGES and config.method.lora is None:
        common["ref_model"] = _frozen_copy(model)
    if config.stage == "dpo":
        losses = [numbers.loss, "sft"] if numbers.sft_weight else [numbers.loss]
        more |= {"beta": numbers.beta, "loss_type": losses, "loss_weights": [1.0, numbers.sft_weight][: len(losses)]}
        return DpoTuner(args=arguments(DPOConfig, **more), data_collator=PairCollator(pad), **common)
    if config.stage == "kto":
        more |= {
            "beta": numbers.beta,
            "desirable_weight": numbers.desirable_weight,
            "undesirable_weight": numbers.undesirable_weight,
        }
        return KtoTuner(args=arguments(KTOConfig, **more), data_collator=LabelledCollator(pad), **common)
    if config.stage == "orpo":
        more |= {"beta": numbers.beta}
        return OrpoTuner(args=arguments(ORPOConfig, **more), data_collator=OrpoCollator(pad), **common)
    return RewardTuner(args=arguments(RewardConfig, **more), data_collator=RewardCollator(pad), **common)


def _without_dropout(model: nn.Module) -> None:
    """Take the base's dropout out, since it would blur what is compared; an adapter's is a wish, and stays."""
    for name, part in model.named_modules():
        if isinstance(part, nn.Dropout) and "lora_dropout" not in name:
            part.p = 0.0
        if isinstance(getattr(part, "attention_dropout", None), float):
            part.attention_dropout = 0.0  # type: ignore[assignment]


def _frozen_copy(model: nn.Module) -> nn.Module:
    """The model as it is now, to compare with. What is not trained is shared with ``model``, the rest held twice."""
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    twice = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    log.info("the reference is a frozen copy of what is trained: %s parameters more in memory", f"{twice:,}")
    reference = copy.deepcopy(model, shared)
    return reference.requires_grad_(requires_grad=False).eval()
