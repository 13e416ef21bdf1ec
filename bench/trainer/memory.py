#!/usr/bin/env python
"""Hold the memory estimate against what torch measures: `python bench/trainer/memory.py --out DIR`, on a CUDA GPU.

Models of real shapes with random weights are trained for three steps by the trainer's own step (its model set-up,
arguments, collator and Trainer), in full, by LoRA and by QLoRA, with and without gradient checkpointing. Each case
is one row: the estimate by part, the peak of `torch.cuda.max_memory_allocated`, and their ratio. A case that does not
fit is recorded as such, and the next one begins with an empty device. DIR gets memory.md and memory.json.

`--device cpu --tiny` runs the same code on a toy shape: it shows that the script works, and measures nothing.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "crds"), str(ROOT / "trainer_image")]
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # as the trainer does for one GPU; Trainer would use all

import numpy as np  # noqa: E402
import torch  # noqa: E402
from finetune_api.memory import estimate  # noqa: E402
from finetune_api.model_shape import ModelShape  # noqa: E402
from finetune_api.recipe import fuses_adapters, recipe_of  # noqa: E402
from finetune_api.status import AccelerationStatus, MemoryEstimate, ModelStatus  # noqa: E402
from finetune_api.trainer_config import TrainerConfig  # noqa: E402
from finetune_trainer import model as models  # noqa: E402
from finetune_trainer import train as training  # noqa: E402
from finetune_trainer.batches import Collator  # noqa: E402
from finetune_trainer.checkpoints import Checkpoints  # noqa: E402
from finetune_trainer.dtypes import DTYPES  # noqa: E402
from finetune_trainer.fused_loss import NAME as FUSED_LOSS  # noqa: E402
from finetune_trainer.interruption import Interruption  # noqa: E402
from finetune_trainer.loop import Meter  # noqa: E402
from finetune_trainer.prepared import Sequence as Tokens  # noqa: E402
from finetune_trainer.progress import ProgressLog  # noqa: E402
from finetune_trainer.spread import Spread  # noqa: E402
from finetune_trainer.steps import count_steps  # noqa: E402
from finetune_trainer.world import ALONE  # noqa: E402
from torch import nn  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402
from transformers.trainer_utils import SaveStrategy  # noqa: E402

log = logging.getLogger("bench")
STEPS = 3
GIB = 2**30

QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "num_key_value_heads": 8,
         "max_position_embeddings": 40960, "rms_norm_eps": 1e-6}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
                   "num_attention_heads": 16, "tie_word_embeddings": True},
    "Llama-3.2-1B": {"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
                     "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
                     "max_position_embeddings": 131072, "tie_word_embeddings": True},
    "Qwen3-8B": {**QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
                 "num_attention_heads": 32, "tie_word_embeddings": False},
}  # fmt: skip
TINY = {"tiny": {**QWEN3, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
                 "num_attention_heads": 4, "head_dim": 16, "num_key_value_heads": 2,
                 "tie_word_embeddings": True}}  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": {"full": {}}},
    "lora": {"method": {"lora": {"rank": 16}}},
    "qlora": {"method": {"lora": {"rank": 16}}, "quantization": {"bits": 4}},
}


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    method: str
    checkpointing: bool
    length: int
    micro_batch: int
    compiled: bool = False

    def config(self, output: Path, device: str) -> TrainerConfig:
        """As the trainer gets it."""
        body = {
            "job": {"name": "memory"},
            "model": {"uri": f"file:///{self.model}"},
            "sources": [],
            "maxLength": self.length,
            **METHODS[self.method],
            "acceleration": {"gradientCheckpointing": self.checkpointing, "compile": self.compiled},
            "hyperparameters": {
                "maxSteps": STEPS,
                "globalBatchSize": self.micro_batch,
                "microBatchSize": self.micro_batch,
            },
            "distributed": {"gpusPerNode": int(device == "cuda")},
            "checkpoint": {"everySteps": 1000},
            "paths": {"cache": str(output), "output": str(output)},
        }
        return TrainerConfig.model_validate_json(json.dumps(body))


@dataclass
class Row:
    """What came of a case."""

    case: Case
    estimate: MemoryEstimate
    measured: int | None = None
    outcome: str = "ok"
    seconds: float = 0.0

    @property
    def ratio(self) -> float | None:
        """Estimate over measurement."""
        return self.estimate.total / self.measured if self.measured and self.outcome == "ok" else None


class Random:
    """Sequences of random tokens, all of one length."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        self._count, self._length, self._vocabulary = count, length, vocabulary

    longest = 0
    media_kinds = ()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tokens:
        ids = np.random.default_rng(index).integers(0, self._vocabulary, self._length)
        return Tokens(ids, np.concatenate([[-100], ids[1:]]), np.array([self._length]))


def build(case: Case, config: TrainerConfig, shape: dict[str, Any], device: str) -> models.Loaded:
    """The model as :func:`finetune_trainer.model.load_model` leaves it, with random weights instead of a file's."""
    settings = AutoConfig.for_model(**shape)
    dtype = torch.float32 if config.method.full is not None else DTYPES[config.precision]
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation="sdpa")
    if case.method == "qlora":
        quantize(model)
    model.config.use_cache = False
    kernels = models.apply_kernels(config, model, torch.device(device))
    model = models._with_method(model, config.method)  # noqa: SLF001 - what is measured
    model.to(device)
    kernels += models.quicken(config, model, fused=fuses_adapters(config, on_gpu=device == "cuda"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return models.Loaded(
        model,
        AccelerationStatus(device=device, attention="sdpa", precision=config.precision, kernels=kernels),
        ModelStatus(trainable_parameters=trained),
    )


def quantize(model: nn.Module) -> None:
    """Every linear layer but the head in nf4 with double quantization, one at a time, as BitsAndBytesConfig does."""
    import bitsandbytes as bnb  # noqa: PLC0415
    from transformers import BitsAndBytesConfig  # noqa: PLC0415
    from transformers.quantizers.auto import AutoHfQuantizer  # noqa: PLC0415

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or name.endswith("lm_head"):
            continue
        layer = bnb.nn.Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=settings.bnb_4bit_compute_dtype,
            compress_statistics=settings.bnb_4bit_use_double_quant,
            quant_type=settings.bnb_4bit_quant_type,
            device="meta",
        )
        weight = module.weight.detach()
        layer.weight = bnb.nn.Params4bit(
            weight,
            requires_grad=False,
            compress_statistics=settings.bnb_4bit_use_double_quant,
            quant_type=settings.bnb_4bit_quant_type,
        ).to(weight.device)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
    model.requires_grad_(requires_grad=False)
    model.is_loaded_in_4bit = True  # peft and Trainer look at these
    model.hf_quantizer = AutoHfQuantizer.from_config(settings, pre_quantized=False)
    model.config.quantization_config = settings


def run(case: Case, shape: dict[str, Any], device: str) -> Row:
    """Train a case and measure its peak. An allocation that fails is an outcome."""
    with tempfile.TemporaryDirectory() as scratch:
        config = case.config(Path(scratch), device)
        # Rows are equally long, so that there is no padding and no mask.
        recipe = recipe_of(config, masked=False)
        row = Row(case, estimate(ModelShape.from_config(shape), recipe))
        begun = time.monotonic()
        try:
            train(case, config, shape, device)
        except torch.OutOfMemoryError as error:
            row.outcome = "out of memory"
            log.info("%s", str(error).split(". ")[0])
        if device == "cuda":
            torch.cuda.synchronize()
            row.measured = torch.cuda.max_memory_allocated()
        row.seconds = time.monotonic() - begun
    return row


def train(case: Case, config: TrainerConfig, shape: dict[str, Any], device: str) -> None:
    """Three steps."""
    output = Path(config.paths.output)
    loaded = build(case, config, shape, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    data = Random(case.micro_batch * STEPS, case.length, shape["vocab_size"])
    steps = count_steps(config.hyperparameters, len(data))
    attempt = training._Run(  # noqa: SLF001 - the attempt without what surrounds its steps
        config=config,
        prepared=SimpleNamespace(train=data),  # type: ignore[arg-type]
        tokenizer=None,  # type: ignore[arg-type]
        loaded=loaded,
        collator=Collator(0, packed=False, fused_loss=FUSED_LOSS in loaded.acceleration.kernels),
        checkpoints=Checkpoints(output, keep=1),
        progress=ProgressLog(output, 1, None),
        interrupted=Interruption(),
        steps=steps,
        spread=Spread.plan(config, ALONE, steps),
    )
    try:
        trainer = attempt.trainer(Meter(), None)
        trainer.args.save_strategy = SaveStrategy.NO
        trainer.train()
    finally:
        attempt.progress.close()


def clean(device: str) -> None:
    """Free what the last case left."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def cases(chosen: argparse.Namespace, shapes: dict[str, dict[str, Any]]) -> Iterator[Case]:
    """Small ones first, so that a short budget still has some of each method."""
    for model, length, micro, method, checkpointing in itertools.product(
        shapes, chosen.length, chosen.micro_batch, chosen.method, (False, True)
    ):
        yield Case(model, method, checkpointing, length, micro, chosen.compile)


def table(rows: Sequence[Row], title: str) -> str:
    """The rows as markdown, sizes in GiB."""
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "total")
    names = ("model", "method", "checkpointing", "length", "micro-batch", *parts, "moment", "measured", "ratio")
    lines = [title, "", "| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    for row in rows:
        case, told = row.case, row.estimate
        measured = "-" if row.measured is None else f"{row.measured / GIB:.2f}"
        ratio = f"{row.ratio:.3f}" if row.ratio is not None else row.outcome if row.outcome != "ok" else "-"
        cells = [case.model, case.method, "yes" if case.checkpointing else "no", case.length, case.micro_batch]
        cells += [f"{getattr(told, part) / GIB:.2f}" for part in parts]
        lines.append("| " + " | ".join(map(str, [*cells, told.moment, measured, ratio])) + " |")
    ratios = [row.ratio for row in rows if row.ratio is not None]
    if ratios:
        within = sum(abs(ratio - 1) <= 0.1 for ratio in ratios)
        lines += ["", f"{within} of {len(ratios)} within 10 %; ratios from {min(ratios):.3f} to {max(ratios):.3f}."]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Run and write; exit code 1 where no case ran to its end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory for memory.md, memory.json")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy shape, for a look at the script itself")
    parser.add_argument("--model", action="append", choices=tuple(SHAPES), help="repeatable; all")
    parser.add_argument("--method", action="append", choices=tuple(METHODS), help="repeatable; all")
    parser.add_argument("--length", action="append", type=int, metavar="TOKENS", help="repeatable; 2048 and 4096")
    parser.add_argument("--micro-batch", action="append", type=int, metavar="N", help="repeatable; 1 and 4")
    parser.add_argument("--compile", action="store_true", help="compiled layers, each case with a compilation")
    parser.add_argument("--budget-seconds", type=float, default=230.0, help="begin no case after this; 230")
    chosen = parser.parse_args(arguments)
    chosen.method = chosen.method or list(METHODS)
    chosen.length = chosen.length or ([64] if chosen.tiny else [2048, 4096])
    chosen.micro_batch = chosen.micro_batch or ([2] if chosen.tiny else [1, 4])
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU; --device cpu --tiny runs the script without one")
    shapes = TINY if chosen.tiny else {name: SHAPES[name] for name in chosen.model or SHAPES}
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("finetune").setLevel(logging.WARNING)

    name, size = "cpu", None
    if chosen.device == "cuda":
        name, size = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    begun, rows, passed_over = time.monotonic(), [], []
    for case in cases(chosen, shapes):
        expected = estimate(
            ModelShape.from_config(shapes[case.model]), recipe_of(case.config(chosen.out, chosen.device), masked=False)
        ).total
        if size is not None and expected > 1.1 * size:
            passed_over.append((case, f"estimated {expected / GIB:.0f} GiB"))
            continue
        if time.monotonic() - begun > chosen.budget_seconds:
            passed_over.append((case, "no time left"))
            continue
        clean(chosen.device)
        row = run(case, shapes[case.model], chosen.device)
        rows.append(row)
        log.info("%s: estimated %.2f GiB, measured %s, ratio %s, %.0f s, %s", case, row.estimate.total / GIB,
                     row.measured and f"{row.measured / GIB:.2f} GiB", row.ratio and f"{row.ratio:.3f}", row.seconds,
                     row.outcome)  # fmt: skip
    libraries = ", ".join(
        f"{package} {version(package)}" for package in ("torch", "transformers", "peft", "bitsandbytes")
    )
    how = ", compiled layers" if chosen.compile else ""
    title = f"Memory on {name}, bf16, {STEPS} steps{how}, GiB; {libraries}"
    text = table(rows, title) + "".join(f"\nNot run: {case} ({why})" for case, why in passed_over)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "memory.md").write_text(text)
    found = [
        {**asdict(row.case), "estimate": row.estimate.to_dict(), "measured": row.measured, "ratio": row.ratio,
         "outcome": row.outcome, "seconds": round(row.seconds, 1)}
        for row in rows
    ]  # fmt: skip
    (chosen.out / "memory.json").write_text(json.dumps({"title": title, "cases": found}, indent=1) + "\n")
    sys.stdout.write(text + "\n")
    return 0 if any(row.outcome == "ok" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
