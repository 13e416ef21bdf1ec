"""The trainers that are measured: ours, and peers by their own documentation, all on the same model and rows.

Each peer is imported from a folder of its own with its own pins (peers/*.txt): they want different transformers.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from subjects import has_cuda, make_data, samples, set_name

LORA = {"lora": {"rank": 16}}
FULL = {"full": {"masterWeights": "none"}}
MASTERED: dict[str, Any] = {"full": {}}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Case:
    """What a row of the table runs."""

    method: dict[str, Any]
    batch: int
    acceleration: dict[str, Any] = field(default_factory=dict)
    precision: str = "bf16"
    bits: int | None = None
    trainer: str = "ours"
    data: str = "rows"
    instructions: Path | None = None
    """What instructions.py made, for packed data."""
    optimizer: str = "adamw"
    strategy: str = ""
    """Spread over ``devices`` by this; empty for one device alone."""
    devices: int = 1

    @property
    def recompute(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return bool(self.acceleration.get("gradientCheckpointing"))


class Enough(Exception):  # noqa: N818 - the wanted end, not an error
    """All steps that are measured are done."""


@dataclass
class Steps:
    """Durations and tokens of the steps of one case."""

    wanted: int
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    begun: float = 0.0
    profile: Path | None = None
    """Where to write the time by kernel of the last two steps; beside it their course, for a trace viewer."""
    profiler: Any = None

    def begin(self) -> None:
        if self.profile and len(self.seconds) == self.wanted - 2:
            from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

            self.profiler = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])
            self.profiler.start()
        self.begun = time.perf_counter()

    def end(self, tokens: int) -> None:
        import torch  # noqa: PLC0415

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begun)
        self.tokens.append(tokens)
        if len(self.seconds) >= self.wanted:
            if self.profiler is not None and self.profile is not None:
                self.profiler.stop()
                table = self.profiler.key_averages().table(
                    sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=90
                )
                self.profile.write_text(table)
                self.profiler.export_chrome_trace(str(self.profile.with_suffix(".json.gz")))
            raise Enough


# -- trainers --------------------------------------------------------------------------------------------------------


def run_ours(case: Case, model: Path, work: Path, length: int, steps: Steps) -> dict[str, Any]:
    """The trainer's own way from prepared data; what it says was in use."""
    from finetune_api.trainer_config import TrainerConfig  # noqa: PLC0415
    from finetune_trainer import surroundings  # noqa: PLC0415
    from finetune_trainer.peers import DIRECTORY_ENV  # noqa: PLC0415

    if case.strategy:
        os.environ[DIRECTORY_ENV] = str(work)  # what the trainer knows its workers by
    launch = os.environ.get("TORCHELASTIC_RUN_ID", os.getpid())  # one folder for all processes of a case
    body = {
        "job": {"name": "bench"},
        "model": {"uri": "file:///bench", "path": str(model)},
        "sources": [{"uri": "file:///bench.jsonl", "path": "/nowhere"}],
        "maxLength": length,
        "packing": case.data == "packed",
        "method": case.method,
        "quantization": {"bits": case.bits} if case.bits else None,
        "precision": case.precision,
        "acceleration": case.acceleration,
        "hyperparameters": {
            "maxSteps": 10_000, "globalBatchSize": case.batch * case.devices, "microBatchSize": case.batch,
            "learningRate": 1e-5,
            "optimizer": case.optimizer,
        },
        "checkpoint": {"everySteps": 10_000},
        "distributed": {"gpusPerNode": int(has_cuda()) * case.devices, "strategy": case.strategy or "auto"},
        "paths": {"cache": str(work / "cache"), "output": str(work / f"output-{launch}")},
    }  # fmt: skip
    config = TrainerConfig.model_validate(body)
    surroundings.set_up(Path(config.paths.cache))
    if os.environ.get("RANK", "0") == "0":  # the others wait where they meet it
        make_data(config, model, case.data, length, vocabulary=_vocabulary(model), instructions=case.instructions)

    from finetune_trainer import loop, train  # noqa: PLC0415
    from finetune_trainer.interruption import Interruption  # noqa: PLC0415

    class Metered(loop.Meter):
        def begin(self) -> None:
            super().begin()
            steps.begin()

        def end(self, tokens: int | None = None) -> None:
            super().end(tokens)
            steps.end(self._step_tokens)

    train.Meter = Metered  # type: ignore[misc,attr-defined]
    loaded: dict[str, Any] = {}
    load = train.load_model

    def remembered(*arguments: Any, **options: Any) -> Any:
        loaded["model"] = load(*arguments, **options)
        return loaded["model"]

    train.load_model = remembered  # type: ignore[attr-defined]
    with contextlib.suppress(Enough):
        train.train(config, attempt=1, interrupted=Interruption(), known={})
    return dict(loaded["model"].acceleration.to_dict())


def run_trl(case: Case, model: Path, work: Path, length: int, steps: Steps) -> dict[str, Any]:
    """TRL's SFTTrainer by its documentation: bf16, Liger, PEFT, rows already of one length."""
    import torch  # noqa: PLC0415
    from peft import LoraConfig  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig  # noqa: PLC0415

    quantization = {}
    if case.bits:
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.bfloat16, device_map={"": 0 if has_cuda() else "cpu"}, **quantization
    )
    adapters = None
    if "lora" in case.method:
        adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(model)
    _fit_by_trl(
        case, loaded, tokenizer, adapters, (model, work, length), steps, liger=has_cuda(), recompute=case.recompute
    )
    return {"kernels": ["liger"] if has_cuda() else []}


def run_llamafactory(case: Case, model: Path, work: Path, length: int, steps: Steps) -> dict[str, Any]:
    """LLaMA-Factory's own entry, from rows that are tokenized already: bf16, Liger, the attention that it picks."""
    from llamafactory.train.tuner import run_exp  # noqa: PLC0415

    tokenized = work / f"tokenized-{set_name(case.data, length, case.instructions)}"
    tokens: float = length
    if case.data == "packed":
        columns = _packed(case, model, length)
        tokens = sum(sum(map(bool, row)) for row in columns["attention_mask"]) / len(columns["input_ids"])
        _dataset(columns).save_to_disk(str(tokenized))
    elif not tokenized.exists():
        ids = _rows(model, length)
        columns = {"input_ids": ids, "labels": ids, "attention_mask": [[1] * length] * len(ids)}
        _dataset(columns).save_to_disk(str(tokenized))
    wishes: dict[str, Any] = {"finetuning_type": "full", "pure_bf16": has_cuda()}
    if "lora" in case.method:
        wishes = {"finetuning_type": "lora", "lora_rank": 16, "lora_target": "all"}
    if case.bits:
        wishes |= {"quantization_bit": case.bits, "double_quantization": True, "quantization_type": "nf4"}
    if case.data == "packed":
        wishes |= {"packing": True, "neat_packing": True}  # samples do not see each other
    arguments = {
        "stage": "sft", "do_train": True, "model_name_or_path": str(model), "template": "empty",
        "tokenized_path": str(tokenized), "dataset": "tokenized", "cutoff_len": length,
        "output_dir": str(work / "llamafactory"),
        "bf16": has_cuda(), "use_cpu": not has_cuda(), "enable_liger_kernel": has_cuda(),
        "disable_gradient_checkpointing": not case.recompute, "max_steps": 10_000,
        "per_device_train_batch_size": case.batch, "gradient_accumulation_steps": 1, "learning_rate": 1e-5,
        "optim": "adamw_torch_fused", "save_strategy": "no", "logging_steps": 1, "report_to": "none",
        "disable_tqdm": True, **wishes,
    }  # fmt: skip
    with contextlib.suppress(Enough):
        run_exp(args=arguments, callbacks=[_follower(steps, round(case.batch * tokens))])
    return {"kernels": ["liger"] if has_cuda() else []}


def run_unsloth(case: Case, model: Path, work: Path, length: int, steps: Steps) -> dict[str, Any]:
    """Unsloth by its documentation: its model and adapters under TRL's SFTTrainer, its own checkpointing."""
    from unsloth import FastLanguageModel  # noqa: PLC0415 - before the libraries that it changes

    recompute: Any = "unsloth" if case.recompute else False
    loaded, tokenizer = FastLanguageModel.from_pretrained(
        str(model), max_seq_length=length, dtype=None, load_in_4bit=bool(case.bits),
        full_finetuning="full" in case.method, use_gradient_checkpointing=recompute,
    )  # fmt: skip
    if "lora" in case.method:
        loaded = FastLanguageModel.get_peft_model(
            loaded, r=16, lora_alpha=32, lora_dropout=0, bias="none", target_modules=LAYERS,
            use_gradient_checkpointing=recompute,
        )  # fmt: skip
    _fit_by_trl(case, loaded, tokenizer, None, (model, work, length), steps, liger=False, recompute=False)
    return {"kernels": ["unsloth"]}


def _fit_by_trl(  # noqa: PLR0917
    case: Case, loaded: Any, tokenizer: Any, adapters: Any, place: tuple[Path, Path, int], steps: Steps,
    *, liger: bool, recompute: bool,
) -> None:  # fmt: skip
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    model, work, length = place
    packed = case.data == "packed"
    columns = _instructions(case, model, length) if packed else {"input_ids": _rows(model, length)}
    trainer = SFTTrainer(
        model=loaded,
        args=SFTConfig(
            output_dir=str(work / "trl"), per_device_train_batch_size=case.batch, gradient_accumulation_steps=1,
            max_steps=10_000, bf16=True, use_cpu=not has_cuda(),
            max_length=length, use_liger_kernel=liger, gradient_checkpointing=recompute, learning_rate=1e-5,
            gradient_checkpointing_kwargs={"use_reentrant": False} if recompute else None, report_to="none",
            save_strategy="no", logging_steps=1, optim="adamw_torch_fused", disable_tqdm=True,
            packing=packed, dataset_kwargs=None if packed else {"skip_prepare_dataset": True},
        ),
        train_dataset=_dataset(columns),
        processing_class=tokenizer,
        peft_config=adapters,
    )  # fmt: skip
    rows = trainer.train_dataset["input_ids"]
    trainer.add_callback(_follower(steps, round(case.batch * sum(map(len, rows)) / len(rows))))
    with contextlib.suppress(Enough):
        trainer.train()


def _follower(steps: Steps, tokens: int) -> Any:
    """Tells ``steps``; ``tokens`` is what a step takes, of packed rows their mean."""
    from transformers import TrainerCallback  # noqa: PLC0415

    class Follower(TrainerCallback):
        def on_step_begin(self, *_events: Any, **_options: Any) -> None:
            steps.begin()

        def on_step_end(self, *_events: Any, **_options: Any) -> None:
            steps.end(tokens)

    return Follower()


def _vocabulary(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text())["vocab_size"])


def _rows(model: Path, length: int) -> list[list[int]]:
    return [ids.tolist() for ids, _ in samples("rows", length, _vocabulary(model), None)]


def _instructions(case: Case, model: Path, length: int) -> dict[str, list[list[int]]]:
    """What packed cases train on, sample by sample."""
    found = list(samples(case.data, length, _vocabulary(model), case.instructions))
    return {
        "input_ids": [ids.tolist() for ids, _ in found],
        "labels": [np.where(trained, ids, -100).tolist() for ids, trained in found],
    }


def _packed(case: Case, model: Path, length: int) -> dict[str, list[list[int]]]:
    """The same in rows as LLaMA-Factory's neat packing has them: the mask numbers the samples of a row."""
    from finetune_trainer.packing import pack  # noqa: PLC0415

    columns = _instructions(case, model, length)
    sizes = np.array([len(ids) for ids in columns["input_ids"]])
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": [], "position_ids": []}
    for members in pack(np.arange(len(sizes)), sizes, length, seed=0):
        room = length - int(sizes[members].sum())
        parts = {
            "input_ids": [columns["input_ids"][member] for member in members] + [[0] * room],
            "labels": [columns["labels"][member] for member in members] + [[-100] * room],
            "attention_mask": [[at] * int(sizes[m]) for at, m in enumerate(members, start=1)] + [[0] * room],
            "position_ids": [list(range(sizes[member])) for member in members] + [[0] * room],
        }
        for name, lists in parts.items():
            rows[name].append([value for part in lists for value in part])
    return rows


def _dataset(columns: dict[str, Any]) -> Any:
    from datasets import Dataset  # noqa: PLC0415

    return Dataset.from_dict(columns)


TRAINERS = {"ours": run_ours, "trl": run_trl, "llamafactory": run_llamafactory, "unsloth": run_unsloth}
