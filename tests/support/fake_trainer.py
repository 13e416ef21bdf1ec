"""A finetune-train that obeys the contract without a model: ``fake_trainer.py prepare|train --config FILE``.

FAKE_TRAINER says how the train step ends: ``well`` (the default), ``badly``, ``crash``, ``kill``, or ``wait``, which
trains until it is told to end. Each start is written down in ``<output>/starts.jsonl``. It speaks JSON by itself,
so that it starts at once; finetune_api reads what it says.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

Report = dict[str, Any]
STEPS = 4
DATASET_INVALID, NON_FINITE_LOSS, INTERRUPTED = 15, 23, 40


def main() -> None:
    step = sys.argv[1]
    config = json.loads(Path(sys.argv[3]).read_text())
    output = Path(config["paths"]["output"])
    wanted = ("OMP_NUM_THREADS", "FINETUNE_ATTEMPT", "CUDA_VISIBLE_DEVICES", "FINETUNE_PROGRESS_URL")
    start = {"step": step, **{name: os.environ.get(name) for name in wanted}}
    with (output / "starts.jsonl").open("a") as file:
        file.write(json.dumps(start) + "\n")
    sys.stderr.write(f"log of {step}\n")
    report = prepare(config) if step == "prepare" else train(config, output, os.environ.get("FAKE_TRAINER", "well"))
    Path(os.environ["FINETUNE_TERMINATION_PATH"]).write_text(json.dumps({"version": 1, "step": step, **report}))
    sys.exit(report.get("exitCode", 0))


def prepare(config: Report) -> Report:
    rows = Path(config["sources"][0]["path"]).read_text().splitlines()
    for number, row in enumerate(rows, start=1):
        try:
            json.loads(row)
        except ValueError:
            return {"exitCode": DATASET_INVALID, "message": f"rows.jsonl:{number}: is not JSON"}
    return {
        "dataset": {"samples": len(rows), "sequences": len(rows), "tokens": 100},
        "model": {"parameters": 1000, "trainableParameters": 10},
    }


def train(config: Report, output: Path, how: str) -> Report:
    if how == "crash":
        sys.stderr.write("Traceback: the last words\n")
        sys.exit(1)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "badly":
        return {"exitCode": NON_FINITE_LOSS, "message": "the loss of step 2 is nan", "logTail": "its end"}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    newest = max((int(p.name.split("-")[1]) for p in (output / "checkpoints").glob("checkpoint-*")), default=0)
    for step in range(newest + 1, STEPS + 1):
        write_down(output, {"step": step, "totalSteps": STEPS, "loss": 3.0 / step, "initialEvalLoss": 3.0})
        (output / "checkpoints" / f"checkpoint-{step}").mkdir(parents=True, exist_ok=True)
        if how == "wait":
            signal.sigwait({signal.SIGTERM})
            checkpoint = {"step": step, "path": f"checkpoints/checkpoint-{step}", "time": "now"}
            return {"exitCode": INTERRUPTED, "message": "told to end", "checkpoint": checkpoint}
    last = {"step": STEPS, "totalSteps": STEPS, "loss": 0.75, "initialEvalLoss": 3.0, "evalLoss": 1.5}
    write_down(output, last)
    (output / "adapter").mkdir(exist_ok=True)
    samples = [{"prompt": p, "before": "Hm.", "after": "Ahoy!"} for p in config["evaluation"]["prompts"]]
    return {"progress": last, "output": {"path": "adapter", "digest": "sha256:0"}, "samples": samples}


def write_down(output: Path, progress: Report) -> None:
    with (output / "progress.jsonl").open("a") as file:
        file.write(json.dumps(progress) + "\n")


if __name__ == "__main__":
    main()
