"""``train``: from prepared data and a model to a result, by transformers.Trainer.

What an attempt does is decided by what it finds in the output directory: a finished result is reported again, the
newest complete checkpoint is gone on from, measurements taken before the first step are not taken twice.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from finetune_api.failures import ExitCode
from finetune_api.reports import ExportReport, TerminationReport
from finetune_api.stages import PREFERENCE_STAGES
from finetune_api.status import MemoryStatus, Progress, Sample
from finetune_api.trainer_config import TrainerConfig
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from finetune_trainer.attention import takes_boundaries
from finetune_trainer.batches import Collator, Examples
from finetune_trainer.card import Facts
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.dequantize import as_packed
from finetune_trainer.errors import TrainerError, writing_to
from finetune_trainer.evaluate import answers, check_packing, fused_loss_agrees, held_out_loss
from finetune_trainer.export import export
from finetune_trainer.files import read_json, write_json
from finetune_trainer.fused_adapters import separate_adapters
from finetune_trainer.fused_loss import NAME as FUSED_LOSS
from finetune_trainer.interruption import Interruption
from finetune_trainer.kernels import recomputing
from finetune_trainer.log import log
from finetune_trainer.loop import FineTuner, Meter
from finetune_trainer.media_batches import MediaBatches
from finetune_trainer.media_processor import find_processor
from finetune_trainer.media_reader import sharded
from finetune_trainer.memory import advice, describe, fit_to_device
from finetune_trainer.merging import load_tuned, merge
from finetune_trainer.model import Loaded, choose_device, load_model
from finetune_trainer.offloaded import offloading
from finetune_trainer.prepared import Prepared, load_prepared
from finetune_trainer.progress import Poster, ProgressLog
from finetune_trainer.spread import Spread
from finetune_trainer.steady import steady
from finetune_trainer.steps import Steps, count_steps
from finetune_trainer.tokenizer import load_tokenizer
from finetune_trainer.world import World

BASELINE = "baseline.json"
"""What was measured before the first step."""
MEDIA_WORKERS = 4
"""Processes that open images and sounds while a GPU computes. Tokens alone are faster read than handed over."""
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw8bit": "adamw_8bit",
    "paged_adamw8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
"""transformers' name by the API's."""
RESULT = "result.json"
"""The report of an attempt that ended well."""


def train(
    config: TrainerConfig, *, attempt: int, interrupted: Interruption, known: dict[str, object]
) -> TerminationReport:
    """Train, or go on training, and export.

    Args:
        config: the job's.
        attempt: counted from 1; only ever reported.
        interrupted: whether the process was told to end.
        known: filled with what the report of a failure can say too.

    Raises:
        TrainerError: with the exit code that says why.
    """
    output = Path(config.paths.output)
    world = World.join(config)
    if (done := world.share(read_json(output / RESULT) if world.main else None)) is not None:
        log.info("the result is there already: an earlier attempt was not heard of")
        return TerminationReport.model_validate(done)
    try:
        report = _attempt(config, attempt, interrupted, known, world)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(config, known, error) from error
    if world.main:
        with writing_to(output / RESULT, "output"):
            write_json(output / RESULT, report.model_dump(mode="json", by_alias=True, exclude_none=True))
    world.barrier()
    return report


def _attempt(
    config: TrainerConfig, attempt: int, interrupted: Interruption, known: dict[str, object], world: World
) -> TerminationReport:
    device = choose_device(config)
    prepared = load_prepared(config)
    config = as_packed(config, prepared.model_directory)
    config, memory = world.share(fit_to_device(config, prepared, device) if world.main else None)
    known["memory"] = memory
    run = _Run.prepare(config, prepared, device, attempt=attempt, interrupted=interrupted, world=world)
    run.memory = memory
    try:
        return run.go()
    finally:
        run.progress.close()
        reached = {"progress": run.progress.last, "checkpoint": run.progress.checkpoint}
        known |= {key: value for key, value in reached.items() if value is not None}


def _out_of_memory(config: TrainerConfig, known: dict[str, object], error: torch.OutOfMemoryError) -> TrainerError:
    progress = known.get("progress")
    where = f"after step {progress.step}" if isinstance(progress, Progress) else "while the model was loaded"
    memory = known.get("memory")
    told = memory.estimate if isinstance(memory, MemoryStatus) else None
    expected = f" Expected were {describe(told)}." if told else ""
    used = told.micro_batch_size if told else config.hyperparameters.micro_batch_size
    return TrainerError(
        ExitCode.CUDA_OUT_OF_MEMORY,
        f"the GPU is out of memory {where}, at hyperparameters.microBatchSize {used}: {str(error).split('. ')[0]}."
        f"{expected} {advice(config)}",
    )


def _collator(
    config: TrainerConfig, tokenizer: PreTrainedTokenizerBase, loaded: Loaded, prepared: Prepared
) -> Collator:
    trusts = config.model.trust_remote_code
    processor = find_processor(prepared.model_directory, config.multimodal, trust_remote_code=trusts)
    flat = config.packing and takes_boundaries(loaded.acceleration.attention or "")
    return Collator(
        int(tokenizer.pad_token_id or 0),  # type: ignore[arg-type]
        packed=config.packing,
        flat=flat,
        lengths=config.acceleration.unsloth,
        fused_loss=FUSED_LOSS in loaded.acceleration.kernels,
        # Compiled code wants the same shapes each time; packed rows are nearly full anyway.
        row_length=config.max_length if config.packing and config.acceleration.compile else None,
        media=None if processor is None else MediaBatches(processor, tuple(config.sources)),
    )


@dataclass
class _Run:
    """One attempt."""

    config: TrainerConfig
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase
    loaded: Loaded
    collator: Collator
    checkpoints: Checkpoints
    progress: ProgressLog
    interrupted: Interruption
    steps: Steps
    spread: Spread
    measured: dict[str, Any] = field(default_factory=dict)
    """Before the first step."""
    memory: MemoryStatus = field(default_factory=MemoryStatus)

    @classmethod
    def prepare(
        cls,
        config: TrainerConfig,
        prepared: Prepared,
        device: torch.device,
        *,
        attempt: int,
        interrupted: Interruption,
        world: World,
    ) -> _Run:
        """Load what the prepare step left."""
        output = Path(config.paths.output)
        set_seed(config.hyperparameters.seed)
        tokenizer = load_tokenizer(prepared.model_directory, trust_remote_code=config.model.trust_remote_code)
        tokenizer.chat_template = prepared.chat_template
        if prepared.replace_eos:  # what ends an answer in training is what servers stop at
            tokenizer.eos_token = prepared.eos_token
        steps = count_steps(config.hyperparameters, len(prepared.train), world.size)
        spread = Spread.plan(config, world, steps)
        if prepared.train.media_kinds and spread.strategy.shards_weights:
            raise sharded(spread.strategy.name)
        with spread.loading():
            loaded = load_model(
                config,
                prepared.model_directory,
                device,
                masters=spread.holds_masters,
                sharded=spread.strategy.shards_weights,
            )
        loaded = replace(loaded, acceleration=spread.status(loaded.acceleration))
        interrupted.check()
        with writing_to(output, "output"):
            output.mkdir(parents=True, exist_ok=True)
        poster = Poster.from_environment() if world.main else None
        progress = ProgressLog(output, attempt, poster, main=world.main)
        progress.acceleration, progress.model = loaded.acceleration, loaded.status
        return cls(
            config=config,
            prepared=prepared,
            tokenizer=tokenizer,
            loaded=loaded,
            collator=_collator(config, tokenizer, loaded, prepared),
            checkpoints=Checkpoints(output, config.checkpoint.keep),
            progress=progress,
            interrupted=interrupted,
            steps=steps,
            spread=spread,
        )

    @property
    def world(self) -> World:
        """The processes of this attempt."""
        return self.spread.world

    def go(self) -> TerminationReport:
        start: Path | None = self.world.share(self.checkpoints.newest() if self.world.main else None)
        meter = Meter.start(self.checkpoints.facts_of(start) if start else {})
        trainer = self.trainer(meter, start)
        if not self.spread.strategy.shards_weights:
            self.first(meter, start, trainer)
        if start is not None:
            log.info("going on from %s", start.name)
            self.progress.checkpoint = self.checkpoints.status_of(start)
        self.fit(trainer, start)
        last = self.measure(trainer, meter)
        samples = self.samples(self.measured, self.answer())
        trainer.settle()
        weights = self.spread.whole_weights(self.loaded.model)
        result = self.deliver(last, samples, weights) if self.world.main else None
        return TerminationReport(
            step="train",
            model=self.loaded.status,
            memory=self.memory.model_copy(update={"measured": last.peak_memory_bytes}),
            acceleration=self.loaded.acceleration,
            progress=last,
            checkpoint=self.progress.checkpoint,
            output=self.world.share(result),
            samples=samples,
        )

    def deliver(self, last: Progress, samples: list[Sample], weights: dict[str, torch.Tensor] | None) -> ExportReport:
        """The result, written by one process for all."""
        facts = Facts(self.prepared, last, self.loaded.status, samples)
        result = export(self.loaded.model, self.tokenizer, self.config, facts, start=self.loaded.start, weights=weights)
        if self.config.merge is not None:
            model = self.loaded.model
            separate_adapters(model)
            if self.spread.strategy.shards_weights:
                self.spread.release()
                model = load_tuned(self.config, self.prepared.model_directory)
            merged = merge(model, self.tokenizer, self.config, facts)
            result = result.model_copy(update={"merged": merged})
        return result

    # -- before and after --------------------------------------------------------------------------------------

    def first(self, meter: Meter, start: Path | None, trainer: FineTuner) -> None:
        """What is tried and measured before the first step. Sharded weights can be run from there on only."""
        deferred = self.interrupted.defer(deferred=False)
        kernels = self.loaded.acceleration.kernels
        if FUSED_LOSS in kernels and not fused_loss_agrees(
            self.loaded.model, self.prepared.train[0], self.collator, self.config
        ):
            log.warning("%s has a loss of its own, which is computed by its logits", type(self.loaded.model).__name__)
            self.collator.forgo_fused_loss()
            kernels.remove(FUSED_LOSS)
        if self.config.packing:
            check_packing(self.loaded.model, self.prepared.train, self.collator, self.config)
        self.measured = self.baseline(start, trainer)
        meter.initial_eval_loss = self.measured.get("evalLoss")
        self.interrupted.defer(deferred=deferred)

    def baseline(self, start: Path | None, trainer: FineTuner) -> dict[str, Any]:
        """Held-out loss and answers of the base model: measured once a job, before the first step."""
        path = Path(self.config.paths.output) / BASELINE
        known = self.world.share(read_json(path) if self.world.main else None)
        if known is not None:
            return dict(known)
        if start is not None and self.spread.strategy.shards_weights:
            log.warning("%s is gone, and the base model with it: no comparison with before the training", BASELINE)
            return {}
        measured = {"evalLoss": trainer.held_out(), "answers": self.answer()}
        if measured["evalLoss"] is not None:
            log.info("held-out loss before training: %.4f", measured["evalLoss"])
        if self.world.main:
            with writing_to(path, "output"):
                write_json(path, measured)
        return measured

    def held_out(self) -> float | None:
        if len(self.prepared.validation) == 0:
            return None
        held = self.prepared.validation
        return held_out_loss(self.loaded.model, held, self.collator, self.config, self.interrupted, world=self.world)

    def answer(self) -> list[str]:
        if not self.config.evaluation.prompts:
            return []
        stops = self.prepared.stop_token_ids
        return answers(self.loaded.model, self.tokenizer, stops, self.config, self.interrupted)

    def samples(self, baseline: dict[str, Any], after: list[str]) -> list[Sample]:
        prompts = self.config.evaluation.prompts
        before = baseline.get("answers") or [None] * len(prompts)
        return [Sample(prompt=p, before=b, after=a) for p, b, a in zip(prompts, before, after, strict=True)]

    def measure(self, trainer: FineTuner, meter: Meter) -> Progress:
        """The last report, with the held-out loss of the trained model."""
        last = trainer.reported(eval_loss=trainer.held_out())
        if last.eval_loss is not None:
            log.info("held-out loss: %.4f before, %.4f after", meter.initial_eval_loss or 0.0, last.eval_loss)
        self.progress.report(last)
        return last

    # -- training ----------------------------------------------------------------------------------------------

    def trainer(self, meter: Meter, start: Path | None) -> FineTuner:
        options: dict[str, Any] = {
            "meter": meter,
            "checkpoints": self.checkpoints,
            "progress": self.progress,
            "interrupted": self.interrupted,
            "offloading": offloading(self.config, self.loaded.model),
            "evaluate_every": self.config.evaluation.every_steps,
            "lora_plus_ratio": self.config.method.lora.lora_plus_ratio if self.config.method.lora else None,
            "world": self.world,
            "first": partial(self.first, meter, start) if self.spread.strategy.shards_weights else None,
        }
        if self.config.stage in PREFERENCE_STAGES:
            from finetune_trainer.preferences import preference_tuner  # noqa: PLC0415 - TRL, for these stages alone

            return preference_tuner(
                self.config, self.loaded.model, self.tokenizer, self.prepared, self.arguments, **options
            )
        return FineTuner(
            model=self.loaded.model,
            args=self.arguments(),
            train_dataset=Examples(self.prepared.train),
            data_collator=self.collator,
            held_out=self.held_out,
            **options,
        )

    def arguments(self, kind: type[TrainingArguments] = TrainingArguments, **more: Any) -> TrainingArguments:
        config, numbers = self.config, self.config.hyperparameters
        steps = self.steps
        on_cpu = config.distributed.gpus_per_node == 0
        return kind(
            output_dir=str(self.checkpoints.directory),
            max_steps=steps.total,
            per_device_train_batch_size=steps.micro_batch,
            gradient_accumulation_steps=steps.accumulation,
            learning_rate=numbers.learning_rate,
            lr_scheduler_type="constant_with_warmup" if numbers.schedule == "constant" else numbers.schedule,
            warmup_steps=steps.warmup,
            weight_decay=numbers.weight_decay,
            max_grad_norm=numbers.max_grad_norm,
            neftune_noise_alpha=numbers.neftune_alpha or None,
            optim="adamw_torch" if on_cpu and numbers.optimizer == "adamw" else OPTIMIZERS[numbers.optimizer],
            seed=numbers.seed,
            data_seed=numbers.seed,
            bf16=config.precision in ("bf16", "fp8"),
            fp16=config.precision == "fp16",  # with loss scaling
            use_cpu=on_cpu,
            **recomputing(config, elsewhere=self.spread.checkpoints_activations),
            logging_strategy="steps",
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=config.checkpoint.every_steps,
            eval_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_num_workers=MEDIA_WORKERS if self.prepared.train.media_kinds and not on_cpu else 0,
            dataloader_pin_memory=not on_cpu,
            **self.spread.arguments(),
            **more,
        )

    def fit(self, trainer: FineTuner, start: Path | None) -> None:
        if start is not None and self.checkpoints.status_of(start).step >= trainer.args.max_steps:
            trainer.restore(start)
            return
        begun = time.monotonic()
        self.interrupted.defer(deferred=True)
        try:
            with steady(self.loaded.model, replaced=self.spread.strategy.shards_weights):
                trainer.train(resume_from_checkpoint=str(start) if start else None)
        finally:
            self.interrupted.defer(deferred=False)
        if trainer.stopped:
            step = trainer.state.global_step
            raise TrainerError(ExitCode.INTERRUPTED, f"told to end; a checkpoint was saved at step {step}")
        log.info("trained to step %d in %.0f s", trainer.state.global_step, time.monotonic() - begun)
