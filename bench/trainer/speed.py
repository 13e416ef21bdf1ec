"""Tokens a second and peak memory of the trainer, and of peers, on one GPU.

    python bench/trainer/speed.py --out DIR [--cases lora,qlora,...] [--steps 14] [--shape qwen3-8b]

Weights are random in the real shape, made once and kept in --work (memory disk). Each case is a process of its own:
ours goes the way of `finetune-train train` from data that is prepared already; TRL's is its SFTTrainer with Liger, PEFT
and bf16. A case that runs out of memory says so. The first steps, which compile, are left out; figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from subjects import SHAPES, make_data, make_model

ROOT = Path(__file__).resolve().parents[2]
LORA = {"lora": {"rank": 16}}
FULL = {"full": {"masterWeights": "none"}}


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
    optimizer: str = "adamw"


COMPILED = {"compile": True}
RECOMPUTED = {"compile": True, "gradientCheckpointing": True}
CASES: dict[str, Case] = {
    "lora": Case(LORA, 2, COMPILED),
    "lora-plain": Case(LORA, 2, {"liger": False}),
    "lora-fused-loss": Case(LORA, 2),
    "lora-liger": Case(LORA, 2, {"liger": True}),
    "lora-packed": Case(LORA, 2, COMPILED, data="packed"),
    "lora-recompute": Case(LORA, 4, RECOMPUTED),
    "lora-fp8": Case(LORA, 2, COMPILED, precision="fp8"),
    "qlora": Case(LORA, 2, COMPILED, bits=4),
    "qlora-recompute": Case(LORA, 4, RECOMPUTED, bits=4),
    "full": Case(FULL, 2, COMPILED),
    "full-fp8": Case(FULL, 2, COMPILED, precision="fp8"),
    "full-recompute": Case(FULL, 4, RECOMPUTED),
    "full-recompute-eager": Case(FULL, 4, {"gradientCheckpointing": True, "liger": True}),
    "trl-lora": Case(LORA, 2, trainer="trl"),
    "trl-lora-recompute": Case(LORA, 4, {"gradientCheckpointing": True}, trainer="trl"),
    "trl-qlora": Case(LORA, 2, bits=4, trainer="trl"),
    "trl-qlora-recompute": Case(LORA, 4, {"gradientCheckpointing": True}, bits=4, trainer="trl"),
    "trl-full": Case(FULL, 2, trainer="trl"),
    "trl-full-recompute": Case(FULL, 4, {"gradientCheckpointing": True}, trainer="trl"),
}


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
    """Where to write the time by kernel of the last two steps."""
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
            raise Enough


# -- trainers --------------------------------------------------------------------------------------------------------


def run_ours(case: Case, model: Path, work: Path, length: int, steps: Steps) -> dict[str, Any]:
    """The trainer's own way from prepared data; what it says was in use."""
    from finetune_api.trainer_config import TrainerConfig  # noqa: PLC0415
    from finetune_trainer import surroundings  # noqa: PLC0415

    settings = json.loads((model / "config.json").read_text())
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
            "maxSteps": 10_000, "globalBatchSize": case.batch, "microBatchSize": case.batch, "learningRate": 1e-5,
            "optimizer": case.optimizer,
        },
        "checkpoint": {"everySteps": 10_000},
        "distributed": {"gpusPerNode": int(_cuda())},
        "paths": {"cache": str(work / "cache"), "output": str(work / f"output-{os.getpid()}")},
    }  # fmt: skip
    config = TrainerConfig.model_validate(body)
    surroundings.set_up(Path(config.paths.cache))
    make_data(config, model, case.data, length, settings["vocab_size"])

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
    """TRL's SFTTrainer by its documentation: bf16, Liger, PEFT, packed rows already of one length."""
    import numpy as np  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from datasets import Dataset  # noqa: PLC0415
    from peft import LoraConfig  # noqa: PLC0415
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TrainerCallback  # noqa: PLC0415
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    random = np.random.default_rng(0)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    rows = Dataset.from_dict({"input_ids": random.integers(2, vocabulary, (96, length)).tolist()})
    quantization = {}
    if case.bits:
        quantization["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, device_map={"": 0}, **quantization)

    class Follower(TrainerCallback):
        def on_step_begin(self, *_events: Any, **_options: Any) -> None:
            steps.begin()

        def on_step_end(self, *_events: Any, **_options: Any) -> None:
            steps.end(case.batch * length)

    recompute = bool(case.acceleration.get("gradientCheckpointing"))
    trainer = SFTTrainer(
        model=loaded,
        args=SFTConfig(
            output_dir=str(work / "trl"), per_device_train_batch_size=case.batch, max_steps=10_000, bf16=True,
            max_length=length, use_liger_kernel=True, gradient_checkpointing=recompute, learning_rate=1e-5,
            gradient_checkpointing_kwargs={"use_reentrant": False} if recompute else None, report_to="none",
            save_strategy="no", logging_steps=1, optim="adamw_torch_fused", disable_tqdm=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
        if "lora" in case.method
        else None,
        callbacks=[Follower()],
    )  # fmt: skip
    with contextlib.suppress(Enough):
        trainer.train()
    return {"kernels": ["liger"]}


TRAINERS = {"ours": run_ours, "trl": run_trl}


# -- figures ---------------------------------------------------------------------------------------------------------


def flops_per_token(shape: dict[str, Any], case: Case, length: int) -> float:
    """Floating-point operations of the model for one token, without what is recomputed: 2 a weight forward, 2 for the
    gradient of its input, 2 for its own where it is trained (Kaplan et al., arXiv 2001.08361); attention over half of
    ``length``, twice that backward."""
    h, kv, q = shape["hidden_size"], shape["num_key_value_heads"] * shape["head_dim"], None
    q = shape["num_attention_heads"] * shape["head_dim"]
    layer = 2 * h * q + 2 * h * kv + 3 * h * shape["intermediate_size"]
    weights = shape["num_hidden_layers"] * layer + h * shape["vocab_size"]
    attention = shape["num_hidden_layers"] * 2 * length * q
    return (6 if "full" in case.method else 4) * weights + 3 * attention


def matmul_peak() -> float:
    """TFLOP/s of one large bf16 product of random numbers on this card."""
    import torch  # noqa: PLC0415

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(20):
        a @ b
    end.record()
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (begin.elapsed_time(end) / 1e3) / 1e12


def _cuda() -> bool:
    import torch  # noqa: PLC0415

    return torch.cuda.is_available()


def _owner(module: str, key: str) -> Any:
    owner: Any = importlib.import_module(module)
    for part in key.split(".")[:-1]:
        owner = getattr(owner, part)
    return owner


def run_case(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case, in this process."""
    started = time.perf_counter()
    import torch  # noqa: PLC0415

    case, steps = CASES[name], Steps(arguments.steps)
    for option in arguments.set:
        place, _, value = option.partition("=")
        module, _, key = place.partition(":")
        setattr(_owner(module, key), key.rpartition(".")[2], json.loads(value))
    if arguments.profile:
        steps.profile = arguments.out / f"{name}.profile.txt"
    if not _cuda():
        case = Case(**{**asdict(case), "acceleration": {}, "precision": "fp32"})
    work = Path(arguments.work)
    result: dict[str, Any] = {"case": name, "batch": case.batch, "length": arguments.length}
    try:
        used = TRAINERS[case.trainer](case, work / arguments.shape, work, arguments.length, steps)
    except torch.OutOfMemoryError as error:
        return {**result, "error": f"out of memory: {str(error)[:120]}"}
    except Exception as error:  # noqa: BLE001 - the table goes on without the row
        cause = "out of memory" if "out of memory" in str(error) else f"{type(error).__name__}: {str(error)[:600]}"
        return {**result, "error": cause}
    last = -2 if arguments.profile else None  # what is profiled is slowed down
    steady = steps.seconds[arguments.warm_up : last]
    rate = statistics.median(t / s for t, s in zip(steps.tokens[arguments.warm_up : last], steady, strict=True))
    tflops = rate * flops_per_token(SHAPES[arguments.shape], case, arguments.length) / 1e12
    return {
        **result,
        "tokensPerSecond": round(rate),
        "spread": round((max(steady) - min(steady)) / statistics.median(steady), 3),
        "peakGiB": round(torch.cuda.max_memory_allocated() / 2**30, 1) if _cuda() else None,
        "tflops": round(tflops, 1),
        "untilFirstStep": round(steps.begun and (time.perf_counter() - started - sum(steps.seconds)), 1),
        "firstStep": round(steps.seconds[0], 1),
        "used": used,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--work", default="/dev/shm/finetune-bench")
    parser.add_argument("--cases", default="lora,lora-recompute,qlora,qlora-recompute")
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-8b")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--warm-up", type=int, default=6)
    parser.add_argument("--limit", type=float, default=240, help="seconds a case may take")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="MODULE:KEY=VALUE",
        help="an option of the compiler, as torch._functorch.config:activation_memory_budget=0.8",
    )
    parser.add_argument("--profile", action="store_true", help="write each case's time by kernel")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.case:
        found = run_case(arguments.case, arguments)
        (arguments.out / f"{arguments.case}.json").write_text(json.dumps(found))
        return
    Path(arguments.work).mkdir(parents=True, exist_ok=True)
    make_model(Path(arguments.work) / arguments.shape, arguments.shape)
    peak = matmul_peak() if _cuda() else float("nan")
    import torch  # noqa: PLC0415

    card = torch.cuda.get_device_name() if _cuda() else "cpu"
    torch.cuda.empty_cache()
    print(f"{card}, torch {torch.__version__}, {arguments.shape}, rows of {arguments.length} tokens, "
          f"bf16 product {peak:.0f} TFLOP/s{''.join(f', {o}' for o in arguments.set)}", flush=True)  # fmt: skip
    print("| case | batch | tokens/s | peak GiB | model TFLOP/s | % of the product | first step s | used |\n"
          "| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)  # fmt: skip
    for name in arguments.cases.split(","):
        file = arguments.out / f"{name}.json"
        file.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--case", name, "--out", str(arguments.out), "--work", arguments.work,
                   "--shape", arguments.shape, "--length", str(arguments.length), "--steps", str(arguments.steps),
                   "--warm-up", str(arguments.warm_up), *(["--profile"] if arguments.profile else []),
                   *[part for option in arguments.set for part in ("--set", option)]]  # fmt: skip
        paths = [str(ROOT / part) for part in ("crds", "trainer_image")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
        with (arguments.out / f"{name}.log").open("w") as log:
            try:
                subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False, env=environment,
                               timeout=arguments.limit)  # fmt: skip
            except subprocess.TimeoutExpired:
                print(f"| {name} | | no end after {arguments.limit:.0f} s |", flush=True)
                continue
        found = json.loads(file.read_text()) if file.exists() else {"error": "died: see its log", "batch": ""}
        if "error" in found:
            print(f"| {name} | {found['batch']} | {found['error']} |", flush=True)
            continue
        used = " ".join([found["used"].get("attention", ""), *found["used"].get("kernels", [])])
        print(f"| {name} | {found['batch']} | {found['tokensPerSecond']:,} | {found['peakGiB']} | {found['tflops']} | "
              f"{100 * found['tflops'] / peak:.0f} | {found['firstStep']} | {used} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
