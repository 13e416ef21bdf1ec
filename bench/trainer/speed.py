"""Tokens a second and peak memory of the trainer, and of peers, on one GPU.

    python bench/trainer/speed.py --out DIR [--cases lora,qlora,...] [--steps 14] [--shape qwen3-8b]

Weights are random in the real shape, made once and kept in --work (memory disk). Each case is a process of its own:
ours goes the way of `finetune-train train` from data that is prepared already, peers go theirs (trainers.py), each with
the packages of `--packages DIR/<peer>` where there is such a folder: `pip install --no-deps --target DIR/unsloth -r
bench/trainer/peers/unsloth.txt`. A case that runs out of memory says so. The first steps, which compile, are left out;
figures are medians. "start" is the time before the first, "whole" the process from its start to the last of the steps;
a case that is named twice finds its compiled code the second time. Cases with a strategy in their name are spread over
--devices GPUs; their tokens/s are those of all of them, their TFLOP/s of one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from subjects import SHAPES, has_cuda, make_model
from trainers import FULL, LORA, MASTERED, TRAINERS, Case, Steps

ROOT = Path(__file__).resolve().parents[2]
ROW = 4096
"""Tokens in a row that the cases' batches are for; of longer rows a batch has fewer."""
PEERS = ("trl", "llamafactory", "unsloth")
COMPILED = {"compile": True}
RECOMPUTED = {"compile": True, "gradientCheckpointing": True}
KEPT = {**RECOMPUTED, "keepAttention": True}
PLAIN = {"gradientCheckpointing": True}
CASES: dict[str, Case] = {
    "lora": Case(LORA, 2, COMPILED),
    "lora-plain": Case(LORA, 2, {"liger": False}),
    "lora-fused-loss": Case(LORA, 2),
    "lora-liger": Case(LORA, 2, {"liger": True}),
    "lora-packed": Case(LORA, 2, COMPILED, data="packed"),
    "qlora-packed": Case(LORA, 2, COMPILED, bits=4, data="packed"),
    "lora-recompute": Case(LORA, 4, RECOMPUTED),
    "lora-fp8": Case(LORA, 2, COMPILED, precision="fp8"),
    "qlora": Case(LORA, 2, COMPILED, bits=4),
    "qlora-recompute": Case(LORA, 4, RECOMPUTED, bits=4),
    "lora-recompute-offload": Case(LORA, 4, {**RECOMPUTED, "activationOffload": True}),
    "qlora-recompute-offload": Case(LORA, 4, {**RECOMPUTED, "activationOffload": True}, bits=4),
    "lora-recompute-kept": Case(LORA, 4, KEPT),
    "qlora-recompute-kept": Case(LORA, 4, KEPT, bits=4),
    "lora-recompute-kept-offload": Case(LORA, 4, {**KEPT, "activationOffload": True}),
    "qlora-recompute-kept-offload": Case(LORA, 4, {**KEPT, "activationOffload": True}, bits=4),
    "lora-offload": Case(LORA, 2, {**COMPILED, "activationOffload": True}),
    "full": Case(FULL, 2, COMPILED),
    "full-fp8": Case(FULL, 2, COMPILED, precision="fp8"),
    "full-recompute": Case(FULL, 4, RECOMPUTED),
    "full-recompute-kept": Case(FULL, 4, KEPT),
    "full-8bit": Case(FULL, 2, COMPILED, optimizer="adamw8bit"),
    "full-recompute-8bit": Case(FULL, 4, RECOMPUTED, optimizer="adamw8bit"),
    "lora-separate": Case(LORA, 2, {**COMPILED, "fusedAdapters": False}),
    "lora-recompute-separate": Case(LORA, 4, {**RECOMPUTED, "fusedAdapters": False}),
    "qlora-recompute-separate": Case(LORA, 4, {**RECOMPUTED, "fusedAdapters": False}, bits=4),
    "full-recompute-8bit-kept": Case(FULL, 4, KEPT, optimizer="adamw8bit"),
    "full-recompute-eager": Case(FULL, 4, {"gradientCheckpointing": True, "liger": True}),
    "full-recompute-eager-kept": Case(FULL, 4, {**PLAIN, "keepAttention": True, "liger": True}),
    **{
        f"{peer}-{name}": Case(
            method, 4 if recompute else 2, {"gradientCheckpointing": recompute}, bits=bits, trainer=peer
        )
        for peer in PEERS
        for name, method, bits, recompute in (
            ("lora", LORA, None, False),
            ("lora-recompute", LORA, None, True),
            ("qlora", LORA, 4, False),
            ("qlora-recompute", LORA, 4, True),
            ("full", FULL, None, False),
            ("full-recompute", FULL, None, True),
        )
    },
    **{
        f"{name}-{strategy}{'-compile' if acceleration is RECOMPUTED else ''}": Case(
            method, 2, acceleration, bits=bits, strategy=strategy
        )
        for name, method, bits in (("full", MASTERED, None), ("lora", LORA, None), ("qlora", LORA, 4))
        for strategy in ("ddp", "zero1", "zero2", "zero3", "fsdp2")
        for acceleration in (PLAIN, RECOMPUTED)
    },
    **{f"{peer}-lora-packed": Case(LORA, 2, trainer=peer, data="packed") for peer in PEERS},
}


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
    case = replace(
        case,
        batch=max(1, case.batch * ROW // arguments.length),
        instructions=arguments.instructions,
        devices=arguments.devices if case.strategy else 1,
    )
    for option in arguments.set:
        place, _, value = option.partition("=")
        module, _, key = place.partition(":")
        setattr(_owner(module, key), key.rpartition(".")[2], json.loads(value))
    if arguments.profile:
        steps.profile = arguments.out / f"{name}.profile.txt"
    if not has_cuda():
        case = replace(case, acceleration={}, precision="fp32")
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
    tflops = rate * flops_per_token(SHAPES[arguments.shape], case, arguments.length) / 1e12 / case.devices
    return {
        **result,
        "tokensPerSecond": round(rate),
        "spread": round((max(steady) - min(steady)) / statistics.median(steady), 3),
        "peakGiB": round(torch.cuda.max_memory_allocated() / 2**30, 1) if has_cuda() else None,
        "tflops": round(tflops, 1),
        "untilFirstStep": round(steps.begun and (time.perf_counter() - started - sum(steps.seconds)), 1),
        "firstStep": round(steps.seconds[0], 1),
        "used": used,
    }


def command_of(name: str, arguments: argparse.Namespace) -> list[str]:
    """A process for one case; one a GPU where the case is spread."""
    spread = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.devices)]
    passed = {
        "--case": name, "--out": arguments.out, "--work": arguments.work, "--shape": arguments.shape,
        "--length": arguments.length, "--steps": arguments.steps, "--warm-up": arguments.warm_up,
        "--devices": arguments.devices, "--instructions": arguments.instructions,
    }  # fmt: skip
    options = [part for key, value in passed.items() if value is not None for part in (key, str(value))]
    options += [part for option in arguments.set for part in ("--set", option)]
    return [
        sys.executable,
        *(spread if CASES[name].strategy else []),
        __file__,
        *options,
        *(["--profile"] if arguments.profile else []),
    ]


def run(name: str, arguments: argparse.Namespace) -> bool:
    """Whether the case ended within its time."""
    paths = [str(ROOT / part) for part in ("crds", "trainer_image")]
    own = arguments.packages / CASES[name].trainer
    if own.is_dir():
        paths.insert(0, str(own))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    with (
        (arguments.out / f"{name}.log").open("w") as log,
        subprocess.Popen(
            command_of(name, arguments), stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            process.wait(arguments.limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            return False
    return True


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
    parser.add_argument("--packages", type=Path, default=Path("bench-packages"), help="folders of peers' packages")
    parser.add_argument("--instructions", type=Path, help="packed data as instructions.py made it, not random")
    parser.add_argument("--profile", action="store_true", help="write each case's time by kernel")
    parser.add_argument("--devices", type=int, default=2, help="GPUs of the cases that are spread")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.case:
        found = run_case(arguments.case, arguments)
        if os.environ.get("RANK", "0") == "0":
            (arguments.out / f"{arguments.case}.json").write_text(json.dumps(found))
        if CASES[arguments.case].strategy:
            sys.stdout.flush()
            os._exit(0)  # what NCCL does at the end of a process waits for peers
        return
    Path(arguments.work).mkdir(parents=True, exist_ok=True)
    make_model(Path(arguments.work) / arguments.shape, arguments.shape)
    peak = matmul_peak() if has_cuda() else float("nan")
    import torch  # noqa: PLC0415

    card = torch.cuda.get_device_name() if has_cuda() else "cpu"
    torch.cuda.empty_cache()
    print(f"{card}, torch {torch.__version__}, {arguments.shape}, rows of {arguments.length} tokens, "
          f"bf16 product {peak:.0f} TFLOP/s{''.join(f', {o}' for o in arguments.set)}", flush=True)  # fmt: skip
    columns = ("case", "batch", "tokens/s", "peak GiB", "model TFLOP/s", "% of the product", "start s", "first step s",
               "whole s", "used")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)
    for name in arguments.cases.split(","):
        file = arguments.out / f"{name}.json"
        file.unlink(missing_ok=True)
        begun = time.perf_counter()
        if not run(name, arguments):
            print(f"| {name} | | no end after {arguments.limit:.0f} s |", flush=True)
            continue
        whole = time.perf_counter() - begun
        found = json.loads(file.read_text()) if file.exists() else {"error": "died: see its log", "batch": ""}
        if "error" in found:
            print(f"| {name} | {found['batch']} | {found['error']} |", flush=True)
            continue
        used = " ".join([found["used"].get("attention", ""), *found["used"].get("kernels", [])])
        print(f"| {name} | {found['batch']} | {found['tokensPerSecond']:,} | {found['peakGiB']} | {found['tflops']} | "
              f"{100 * found['tflops'] / peak:.0f} | {found['untilFirstStep']} | {found['firstStep']} | {whole:.0f} | "
              f"{used} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
