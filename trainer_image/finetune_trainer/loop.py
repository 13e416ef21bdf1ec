"""transformers.Trainer with what it lacks: whole checkpoints, a meter of tokens, an end on SIGTERM or on divergence.

Its private methods that are overridden are those that it calls itself to write a checkpoint; a test resumes from one
and demands the same weights as without an interruption.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from finetune_api.failures import ExitCode
from finetune_api.status import Progress
from peft.optimizers import create_loraplus_optimizer
from torch.utils.data import RandomSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from finetune_trainer.batches import Examples, Numbered
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.errors import TrainerError
from finetune_trainer.finite import DEEPSPEED_GIVES_UP, LossScaling, is_finite_norm, trained_weights_are_finite
from finetune_trainer.interruption import Interruption
from finetune_trainer.log import log
from finetune_trainer.order import LongestFirst
from finetune_trainer.progress import ProgressLog
from finetune_trainer.world import ALONE, World

_SHOWN = 20
"""Row numbers that a message names."""
_SMOOTHING = 0.2
"""Weight of the newest step in the speed that is shown: a step's length varies with its samples."""


@dataclass
class Meter:
    """Tokens and time. Time that is spent between steps (measuring, saving) is no part of the speed."""

    tokens: int = 0
    """Non-pad tokens of this and earlier attempts."""
    initial_eval_loss: float | None = None
    seconds_per_step: float | None = None
    tokens_per_second: float | None = None
    _step_tokens: int = 0
    _step_begun: float = 0.0

    @classmethod
    def start(cls, facts: Mapping[str, Any]) -> Meter:
        """A meter that goes on from what a checkpoint kept."""
        return cls(tokens=int(facts.get("tokens", 0)))

    def begin(self) -> None:
        """A step begins."""
        self._step_begun, self._step_tokens = time.monotonic(), 0

    def add(self, tokens: int) -> None:
        """A micro-batch of ``tokens`` was computed."""
        self._step_tokens += tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of the step so far, in this process."""
        return self._step_tokens

    def end(self, tokens: int | None = None) -> None:
        """The step is done; ``tokens`` are those of all processes."""
        self._step_tokens = self._step_tokens if tokens is None else tokens
        seconds = max(time.monotonic() - self._step_begun, 1e-9)
        self.tokens += self._step_tokens
        self.seconds_per_step = _smooth(self.seconds_per_step, seconds)
        self.tokens_per_second = _smooth(self.tokens_per_second, self._step_tokens / seconds)


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else (1 - _SMOOTHING) * before + _SMOOTHING * now


class FineTuner(Trainer):
    """A Trainer that reports, and whose checkpoints are complete or not there."""

    def __init__(
        self,
        *,
        meter: Meter,
        checkpoints: Checkpoints,
        progress: ProgressLog,
        interrupted: Interruption,
        held_out: Callable[[], float | None] | None = None,
        offloading: AbstractContextManager[Any],
        evaluate_every: int | None,
        lora_plus_ratio: float | None = None,
        data_collator: Callable[[Any], dict[str, Any]],
        world: World = ALONE,
        first: Callable[[FineTuner], None] | None = None,
        **options: Any,
    ) -> None:
        """``first`` is called before the first step, when sharded weights can be run."""
        self.world, self._first = world, first
        self.meter, self.checkpoints, self.progress, self.interrupted = meter, checkpoints, progress, interrupted
        self._held_out, self._evaluate_every, self._offloading = held_out, evaluate_every, offloading
        self._lora_plus_ratio = lora_plus_ratio
        self._run_dir: str | None = None
        self._loss: dict[str, float] = {}
        self.rows: list[int] = []
        super().__init__(callbacks=[_Follower(self)], data_collator=Numbered(data_collator), **options)
        self.remove_callback(PrinterCallback)  # our log says the same

    @property
    def stopped(self) -> bool:
        """Whether training ended early because the process was told to end."""
        return self.interrupted.told and self.state.global_step < self.state.max_steps

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset
        if not isinstance(sampler, RandomSampler) or not isinstance(dataset, Examples):
            return sampler
        return LongestFirst(len(dataset), dataset.longest, self.args.seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimizer; under LoRA+ (Hayou et al., arXiv 2402.12354) with a higher learning rate for B than for A."""
        if self._lora_plus_ratio is None or self.optimizer is not None:
            return super().create_optimizer(model)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = create_loraplus_optimizer(
            model or self.model,
            kind,
            loraplus_lr_ratio=self._lora_plus_ratio,
            loraplus_weight_decay=self.args.weight_decay,
            **options,
        )
        return self.optimizer

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> torch.Tensor:
        """One micro-batch; ``tokens`` and ``rows`` of its inputs are for reports."""
        self.meter.add(inputs.pop("tokens"))
        self.rows.extend(inputs.pop("rows"))
        with self._offloading:
            try:
                return super().training_step(model, inputs, *arguments, **options)
            except Exception as error:
                if type(error) is Exception and DEEPSPEED_GIVES_UP in str(error):
                    raise self._diverged(f"the gradients of step {self.state.global_step + 1} overflow fp16 however "
                                         "little the loss is scaled") from error  # fmt: skip
                raise

    def restore(self, checkpoint: Path) -> None:
        """Take weights and state of a checkpoint of the last step. Trainer.train would do one step more where the
        last step is not the last of an epoch."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # the shards belong to engine and optimizer
            self._prepare_for_training(self.args.max_steps, self.get_train_dataloader(), str(checkpoint))
        else:
            self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self.begin()

    def held_out(self) -> float | None:
        """The held-out loss now; None where nothing is held out."""
        return self._held_out() if self._held_out is not None else None

    def settle(self) -> None:
        """Give back what ZeRO-3 fetched ahead: a parameter in flight cannot be gathered."""
        if self.deepspeed is not None:
            self.deepspeed.empty_partition_cache()

    def begin(self) -> None:
        """Report where this attempt starts: with the loss of the step that its checkpoint was written at."""
        if self._first is not None:
            self._first(self)
        self._scaling = LossScaling(self.accelerator, fp16=self.args.fp16)
        self._loss = next((_numbers(logs) for logs in reversed(self.state.log_history) if "loss" in logs), {})
        self.progress.report(self.reported())

    def reported(self, eval_loss: float | None = None) -> Progress:
        """Where training is."""
        state, meter = self.state, self.meter
        left = max(0, state.max_steps - state.global_step)
        return Progress(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=round(float(state.epoch or 0.0), 4),
            loss=self._loss.get("loss"),
            eval_loss=eval_loss,
            initial_eval_loss=meter.initial_eval_loss,
            reward_accuracy=self._logged("rewards/accuracies", "accuracy"),
            reward_margin=self._reward_margin(),
            learning_rate=self._loss.get("learning_rate"),
            grad_norm=self._loss.get("grad_norm"),
            tokens_per_second=None if meter.tokens_per_second is None else round(meter.tokens_per_second, 1),
            tokens=meter.tokens,
            peak_memory_bytes=_peak_memory(),
            eta_seconds=None if meter.seconds_per_step is None else round(left * meter.seconds_per_step),
            updated_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )

    def _logged(self, *names: str) -> float | None:
        """What the last step logged under one of ``names``: preference stages have rewards."""
        return next((self._loss[name] for name in names if name in self._loss), None)

    def _reward_margin(self) -> float | None:
        """Of the means: a micro-batch of KTO may hold answers of one kind alone, and has no margin of its own."""
        chosen, rejected = self._logged("rewards/chosen"), self._logged("rewards/rejected")
        return self._logged("margin") if chosen is None or rejected is None else chosen - rejected

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Report the steps since the last time, with the held-out loss where it is due.

        Raises:
            TrainerError: NON_FINITE_LOSS, INTERRUPTED, or a volume's.
        """
        super().log(logs, *arguments, **options)
        if "loss" not in logs:
            return  # the summary at the end
        self._loss = _numbers(logs)
        self._check_step()

        step, total = self.state.global_step, self.state.max_steps
        due = self._evaluate_every is not None and step % self._evaluate_every == 0 and step < total
        progress = self.reported(eval_loss=self.held_out() if due else None)
        self.progress.report(progress)
        speed = self.meter.tokens_per_second or 0.0
        held_out = "" if progress.eval_loss is None else f", held out {progress.eval_loss:.4f}"
        rewards = "".join(
            f", reward {name} {value:.3f}"
            for name, value in (("accuracy", progress.reward_accuracy), ("margin", progress.reward_margin))
            if value is not None
        )
        log.info("step %d/%d: loss %.4f%s%s, %.0f tok/s", step, total, progress.loss, held_out, rewards, speed)

    def _check_step(self) -> None:
        """Stop where the loss or the gradients of the last step are no numbers. Both are on the host by now, and its
        checkpoint is not written yet: weights that such gradients changed are never kept.

        Raises:
            TrainerError: NON_FINITE_LOSS.
        """
        step, loss, norm = self.state.global_step, self._loss["loss"], self._loss.get("grad_norm", 0.0)
        left_out = self._scaling.left_out()
        if not math.isfinite(loss):
            raise self._diverged(f"the loss of step {step} is {loss} (gradient norm {norm})")
        if is_finite_norm(norm):
            return
        del self._loss["grad_norm"]
        if not left_out:
            raise self._diverged(
                f"the gradients of step {step} are not finite (norm {norm}), though its loss is {loss:g}"
            )
        log.info("step %d is left out: its gradients overflow fp16; the loss is scaled by less from here on", step)

    def _diverged(self, what: str) -> TrainerError:
        """For all processes at once: what is judged, they have in common."""
        saved, rows = self.progress.checkpoint, self.world.gather(self.rows)
        kept = f" The checkpoint of step {saved.step} is good." if saved else ""
        return TrainerError(
            ExitCode.NON_FINITE_LOSS,
            f"{what}: training diverged. The step held {_listed(rows)} of the data. Look at these, lower "
            f"hyperparameters.learningRate ({self.args.learning_rate:g}) or maxGradNorm, or use precision fp32.{kept}",
        )

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return self._run_dir or super()._get_output_dir(trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002
        """Weights of a checkpoint; DeepSpeed's own files hold them."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step = self.state.global_step
        # A finite step too can take weights out of their type's range, which the next loss would tell.
        (lost,) = self.world.total(not trained_weights_are_finite(self.model))
        if lost:
            raise self._diverged(f"weights are not finite after step {step}")
        with self.checkpoints.writing(step, {"tokens": self.meter.tokens}, self.world) as aside:
            self._run_dir = str(aside)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._run_dir = None
            self.world.barrier()
            written = aside / f"checkpoint-{step}"
            if self.world.main:
                for path in written.iterdir():
                    path.rename(aside / path.name)
                written.rmdir()
        self.progress.saved(self.checkpoints.status_of(self.checkpoints.path_of(step)))
        log.info("checkpoint of step %d", step)


class _Follower(TrainerCallback):
    """Tells the tuner of its steps, and stops it when the process was told to end."""

    def __init__(self, tuner: FineTuner) -> None:
        self._tuner = tuner

    def on_train_begin(self, *_events: Any, **_options: Any) -> None:
        self._tuner.begin()

    def on_step_begin(self, *_events: Any, **_options: Any) -> None:
        self._tuner.rows.clear()
        self._tuner.meter.begin()

    def on_step_end(
        self, _args: TrainingArguments, state: TrainerState, control: TrainerControl, **_options: Any
    ) -> None:
        tuner = self._tuner
        tokens, told = tuner.world.total(tuner.meter.step_tokens, tuner.interrupted.told)
        tuner.meter.end(int(tokens))
        if told:  # one of the processes; all stop at the same step
            tuner.interrupted.tell()
        if told and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True


def _listed(rows: list[int]) -> str:
    found = sorted(set(rows))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"row{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:_SHOWN]))}{more}"


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in logs.items() if isinstance(value, int | float)}


def _peak_memory() -> int:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
