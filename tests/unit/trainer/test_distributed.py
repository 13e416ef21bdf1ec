"""Two processes train what one does: the same losses and weights under every strategy, the same after a resume; and
they end together. On CPUs over gloo; FSDP2, which accelerate has on GPUs alone, is in tests/gpu."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.reports import TERMINATION_PATH_ENV, TerminationReport
from finetune_api.trainer_config import COORDINATOR_ENV, NODE_RANK_ENV, TrainerConfig
from finetune_trainer import cli
from finetune_trainer import train as training
from finetune_trainer.batches import Collator
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.evaluate import evaluating, token_losses
from finetune_trainer.launch import find_place
from finetune_trainer.picture import read_history
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from finetune_trainer.progress import FILE, ProgressLog
from peft import PeftModel
from ranks import fork, run_ranks, wait
from safetensors.torch import load_file
from trainings import Spoiler, at, configure, output_of
from transformers import AutoModelForCausalLM

STEPS = {"maxSteps": 4, "globalBatchSize": 4, "microBatchSize": 1, "learningRate": 0.01}
METHODS: dict[str, dict[str, Any]] = {
    # All that reaches into the weights at once: copies of modules, two learning rates, recomputed activations.
    "lora": {"lora": {"rank": 4, "modulesToSave": ["norm"], "loraPlusRatio": 4.0}},
    "full": {"full": {}},
    "freeze": {"freeze": {"trainableLayers": 1, "extraModules": ["norm"]}},
}
CASES = [
    *(("lora", strategy) for strategy in ("ddp", "zero2", "zero3")),
    *(("full", strategy) for strategy in ("zero1", "zero2", "zero3")),
    ("freeze", "zero3"),
]
RAW = {"zero1": {"zero_optimization": {"reduce_bucket_size": 4096}}}
"""A user's own settings of DeepSpeed, by strategy."""


class Runs:
    """Each training once."""

    def __init__(self, directory: Path, base: Path) -> None:
        self.directory, self.base = directory, base
        self._done: dict[tuple[str, str], tuple[TrainerConfig, TerminationReport]] = {}

    def configure(self, name: str, kind: str, strategy: str, **edits: Any) -> TrainerConfig:
        place = self.directory / name
        place.mkdir()
        spread = {} if strategy == "one" else {"nodes": 2, "strategy": strategy, "deepspeed": RAW.get(strategy)}
        settings = {"hyperparameters": STEPS, "distributed": spread, "method": METHODS[kind], **edits}
        return configure(place, self.base, **settings)

    def of(self, method: str, strategy: str) -> tuple[TrainerConfig, TerminationReport]:
        """Configuration and report."""
        if (method, strategy) not in self._done:
            config = self.configure(
                f"{method}-{strategy}",
                method,
                strategy,
                acceleration={"gradientCheckpointing": method == "lora"},
                evaluation={"everySteps": 3, "prompts": ["Colours of flag 3?"], "maxNewTokens": 2},
                merge={"dtype": "fp32"} if method == "lora" else None,
            )
            report = run_ranks(config, self.directory, 1 if strategy == "one" else 2)
            assert report.exit_code == ExitCode.OK, report.message
            self._done[method, strategy] = config, report
        return self._done[method, strategy]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), tiny)


def weights(config: TrainerConfig) -> dict[str, torch.Tensor]:
    name = "adapter/adapter_model.safetensors" if config.method.lora else "model/model.safetensors"
    return load_file(output_of(config, name))


@pytest.mark.parametrize(("method", "strategy"), CASES)
def test_two_processes_learn_what_one_does(runs: Runs, method: str, strategy: str) -> None:
    (alone, first), (spread, second) = runs.of(method, "one"), runs.of(method, strategy)
    one, two = read_history(output_of(alone, FILE)), read_history(output_of(spread, FILE))
    assert [report.step for report in one] == [report.step for report in two] == [0, 1, 2, 3, 4]
    for before, after in zip(one, two, strict=True):
        assert after.loss == pytest.approx(before.loss, abs=1e-5)
        assert after.eval_loss == pytest.approx(before.eval_loss, abs=1e-5)
        assert after.initial_eval_loss == pytest.approx(before.initial_eval_loss, abs=1e-5)
        assert (after.tokens, after.learning_rate) == (before.tokens, before.learning_rate)
    assert [sample.after for sample in first.samples] == [sample.after for sample in second.samples]
    expected = weights(alone)
    assert weights(spread).keys() == expected.keys()
    for name, value in weights(spread).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)
    assert first.model == second.model
    assert second.acceleration is not None
    assert (second.acceleration.strategy, second.acceleration.devices) == (strategy, 2)


@pytest.mark.parametrize(("method", "strategy"), CASES)
def test_what_is_delivered_loads_without_deepspeed(runs: Runs, method: str, strategy: str) -> None:
    config, report = runs.of(method, strategy)
    if method == "lora":
        base = AutoModelForCausalLM.from_pretrained(runs.base, dtype=torch.float32)
        models = [
            PeftModel.from_pretrained(base, output_of(config, "adapter")),
            AutoModelForCausalLM.from_pretrained(output_of(config, "merged")),
        ]
    else:
        models = [AutoModelForCausalLM.from_pretrained(output_of(config, "model"))]
    held = load_prepared(config).validation
    assert report.progress is not None
    for model in models:
        with evaluating(model, "fp32"):
            batch = Collator(0, packed=False)([held[i] for i in range(len(held))])
            assert float(token_losses(model, batch).mean()) == pytest.approx(report.progress.eval_loss, rel=1e-4)


@pytest.mark.parametrize(("method", "strategy"), [("lora", "ddp"), ("full", "zero2"), ("full", "zero3")])
def test_gradients_that_are_no_numbers_end_all_processes_with_the_rows_of_all(
    runs: Runs, method: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runs.configure(f"spoilt-{method}-{strategy}", method, strategy, checkpoint={"everySteps": 1, "keep": 9})
    Spoiler(monkeypatch, 2, gradient=float("nan"))
    report = run_ranks(config, runs.directory)
    assert report.exit_code == ExitCode.NON_FINITE_LOSS
    assert report.message is not None
    assert "the gradients of step 2 are not finite" in report.message
    named = re.search(r"The step held rows ([\d, ]+) of the data", report.message)
    assert named is not None
    assert len(named[1].split(",")) == STEPS["globalBatchSize"]
    assert Checkpoints(output_of(config), keep=9).newest() == output_of(config, "checkpoints", "checkpoint-1")


@pytest.mark.parametrize(("method", "strategy"), [("full", "zero2"), ("lora", "zero3")])
def test_a_crash_goes_on_to_the_same_weights(
    runs: Runs, method: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Five steps: the last ends an epoch, whose batches do not share out evenly.
    edits: dict[str, Any] = {"hyperparameters": {**STEPS, "maxSteps": 5}}
    if method == "lora":
        edits["method"] = {"lora": {"rank": 4, "dropout": 0.1}}
    config = runs.configure(f"crash-{method}-{strategy}", method, strategy, **edits)
    whole = at(config, runs.directory / f"whole-{method}-{strategy}")
    assert run_ranks(whole, runs.directory).exit_code == ExitCode.OK
    written = ProgressLog.report

    def crash(log: ProgressLog, progress: Any) -> None:
        written(log, progress)
        if progress.step == 3:
            raise KeyError("crash")

    monkeypatch.setattr(ProgressLog, "report", crash)
    report = run_ranks(config, runs.directory)
    assert (report.exit_code, report.message) == (ExitCode.TRAINER_CRASH, "KeyError: 'crash'")
    monkeypatch.setattr(ProgressLog, "report", written)
    saved = Checkpoints(output_of(config), keep=2).newest()
    assert saved is not None
    assert saved.name == "checkpoint-2"

    def fail(*_arguments: Any, **_options: Any) -> None:
        raise KeyError("export")

    monkeypatch.setattr(training, "export", fail)  # on rank 0, while the other waits
    report = run_ranks(config, runs.directory)
    assert (report.exit_code, report.rank, report.message) == (ExitCode.TRAINER_CRASH, 0, "KeyError: 'export'")
    monkeypatch.undo()
    assert run_ranks(config, runs.directory).exit_code == ExitCode.OK
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(config).items())


def test_raw_settings_are_those_of_the_engine(runs: Runs) -> None:
    """As its checkpoint has them: the user's, and beside them ours."""
    config, _ = runs.of("full", "zero1")
    (file,) = output_of(config, "checkpoints").glob("checkpoint-4/global_step*/mp_rank_00_model_states.pt")
    settings = torch.load(file, weights_only=False)["ds_config"]
    zero = settings["zero_optimization"]
    assert (zero["stage"], zero["reduce_bucket_size"], zero["contiguous_gradients"]) == (1, 4096, True)
    assert settings["gradient_clipping"] == config.hyperparameters.max_grad_norm


def test_one_device_can_hold_weights_in_host_memory(runs: Runs) -> None:
    config = runs.configure("offload", "full", "one", distributed={"strategy": "zero3", "offload": "parameters"})
    report = run_ranks(config, runs.directory, 1)
    assert report.acceleration is not None
    assert (report.acceleration.strategy, report.acceleration.offload) == ("zero3", "parameters")
    alone, _ = runs.of("full", "one")
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(config)[name], value, rtol=1e-3, atol=1e-4)


def test_packed_samples_in_bf16_learn_too(runs: Runs) -> None:
    settings = {**STEPS, "globalBatchSize": 2, "maxSteps": 8}
    config = runs.configure("bf16", "lora", "zero3", precision="bf16", packing=True, hyperparameters=settings)
    progress = run_ranks(config, runs.directory).progress
    assert progress is not None
    assert progress.eval_loss is not None
    assert progress.eval_loss < (progress.initial_eval_loss or 0) - 0.05
    assert {value.dtype for value in weights(config).values()} == {torch.float32}


class Node:
    """``finetune-train train`` of one of two nodes."""

    def __init__(self, directory: Path, config: Path, rank: int, coordinator: str) -> None:
        self.log, self.termination = directory / f"node-{rank}.log", directory / f"node-{rank}.json"
        self.arguments = ["train", "--config", str(config)]
        self.environment = {
            NODE_RANK_ENV: str(rank),
            COORDINATOR_ENV: coordinator,
            TERMINATION_PATH_ENV: str(self.termination),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *, fresh: bool) -> Node:
        """Start it as a program of its own, or as a fork of this process, which saves its imports."""
        if fresh:
            command = [sys.executable, "-m", "finetune_trainer.cli", *self.arguments]
            output = (os.POSIX_SPAWN_OPEN, 1, str(self.log), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            actions = [output, (os.POSIX_SPAWN_DUP2, 1, 2)]
            self.pid = os.posix_spawn(sys.executable, command, {**os.environ, **self.environment}, file_actions=actions)
        else:
            self.pid = fork(lambda: cli.main(self.arguments), self.log, self.environment)
        return self

    def await_line(self, text: str) -> None:
        """Wait until the log has it, or the node has ended."""
        while not self.log.exists() or text not in self.log.read_text():
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            assert not ended, f"ended with {os.waitstatus_to_exitcode(status)}:\n{self.log.read_text()}"
            time.sleep(0.05)

    def end(self) -> tuple[int, TerminationReport]:
        """Exit code and last word."""
        code = wait(self.pid)
        report = TerminationReport.decode(self.termination.read_bytes())
        assert report is not None, self.log.read_text()
        return code, report


def test_nodes_that_are_told_save_and_end_together_and_a_killed_rank_is_named(tmp_path: Path, tiny: Path) -> None:
    config = configure(
        tmp_path,
        tiny,
        hyperparameters={**STEPS, "maxSteps": 100000},
        checkpoint={"everySteps": 100000, "keep": 2},
        distributed={"nodes": 2},
    )
    prepare(config)
    path = tmp_path / "config.json"
    path.write_text(config.to_json())
    alone = configure(tmp_path, tiny)

    def start(*, fresh: bool) -> list[Node]:
        coordinator = find_place(alone, {}).coordinator
        return [Node(tmp_path, path, rank, coordinator).start(fresh=fresh) for rank in range(2)]

    nodes = start(fresh=True)
    nodes[0].await_line("step 3/")
    os.kill(nodes[1].pid, signal.SIGTERM)
    ends = [node.end() for node in nodes]
    assert [code for code, _ in ends] == [ExitCode.INTERRUPTED] * 2
    saved = Checkpoints(output_of(config), keep=2).newest()
    assert saved is not None
    assert [report.checkpoint and report.checkpoint.path for _, report in ends] == [f"checkpoints/{saved.name}"] * 2

    nodes = start(fresh=False)
    nodes[0].await_line(f"going on from {saved.name}")
    nodes[0].await_line(" tok/s")
    (worker,) = Path(f"/proc/{nodes[1].pid}/task/{nodes[1].pid}/children").read_text().split()
    os.kill(int(worker), signal.SIGKILL)
    (code, report), (killed_code, killed) = [node.end() for node in nodes]
    assert (code, report.exit_code) == (ExitCode.COLLECTIVE_TIMEOUT, ExitCode.COLLECTIVE_TIMEOUT)
    assert report.progress is not None
    assert killed_code == ExitCode.TRAINER_CRASH
    assert killed.rank == 1
    assert "rank 1 was killed (SIGKILL)" in (killed.message or "")
