"""Unsloth itself, on a CUDA GPU: the program as a pod runs it, beside the same training without Unsloth.

Its packages are of the image trainer-unsloth and not of the development's environment: `hack/tiers` says when they are
not there, and these tests are named in the summary as not run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_api.reports import TERMINATION_PATH_ENV, TerminationReport
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.checkpoints import Checkpoints
from finetune_trainer.picture import read_history
from finetune_trainer.prepare import prepare
from finetune_trainer.progress import FILE
from safetensors import safe_open
from tiny_model import make_tiny_model
from trainings import at, configure, output_of, run

TOLERANCE = 0.01
"""Relative difference of the losses of the first steps: other kernels round otherwise, and the adapters start from
other random numbers, which B = 0 hides in the first step and small steps behind it."""
PATIENCE = 300
"""Seconds that a training may take: Unsloth compiles for one to two minutes before its first."""
Settings = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", head_dim=64, width=128)


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "qwen", head_dim=64, width=128, qwen3=True)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all tests, as jobs share one: kernels are compiled once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def settings(cache: Path) -> Settings:
    return lambda **edits: {
        "precision": "bf16",
        "distributed": {"gpusPerNode": 1},
        "paths": {"cache": str(cache)},
        "hyperparameters": {"maxSteps": 6, "learningRate": 0.001},
        "evaluation": {"prompts": ["Which colours?"], "maxNewTokens": 8},
        **edits,
    }


def with_unsloth(config: TrainerConfig, output: Path) -> TrainerConfig:
    wishes = config.acceleration.model_copy(update={"unsloth": True})
    return at(config.model_copy(update={"acceleration": wishes}), output)


def trained(config: TrainerConfig, tmp_path: Path) -> TerminationReport:
    """Both steps, the second a process of its own: Unsloth changes the libraries of the one that it is imported to."""
    prepare(config)
    name = Path(config.paths.output).name
    file, termination = tmp_path / f"{name}.json", tmp_path / f"{name}-termination"
    file.write_text(config.to_json())
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_trainer.cli", "train", "--config", str(file)],
        env=os.environ | {TERMINATION_PATH_ENV: str(termination), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert ended.returncode == 0, ended.stdout[-6000:]
    return TerminationReport.decode(termination.read_bytes())


def losses(config: TrainerConfig) -> list[float]:
    """Of each step."""
    return [line.loss for line in read_history(output_of(config, FILE)) if line.step and line.loss is not None][:6]


def tensors(path: Path) -> dict[str, tuple[Any, Any]]:
    with safe_open(path, framework="pt") as file:
        return {
            name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype())
            for name in file.keys()  # noqa: SIM118 - no mapping
        }


@pytest.mark.parametrize("kind", ["base", "qwen"])
@pytest.mark.parametrize("quantization", [None, {"bits": 4}], ids=["lora", "qlora"])
def test_it_trains_what_we_train_without_it(
    tmp_path: Path, request: pytest.FixtureRequest, settings: Settings, kind: str, quantization: Any
) -> None:
    model = request.getfixturevalue(kind)
    plain = at(configure(tmp_path, model, **settings(quantization=quantization)), tmp_path / "plain")
    own = with_unsloth(plain, tmp_path / "unsloth")
    reports = [run(plain), trained(own, tmp_path)]
    assert reports[1].acceleration is not None
    assert reports[1].acceleration.kernels == ["unsloth", "fused-loss"]
    assert reports[1].acceleration.attention == "unsloth"
    assert reports[1].model == reports[0].model
    assert losses(own) == pytest.approx(losses(plain), rel=TOLERANCE)
    progress = [report.progress for report in reports]
    assert progress[0] is not None
    assert progress[1] is not None
    assert progress[1].initial_eval_loss == pytest.approx(progress[0].initial_eval_loss, rel=TOLERANCE)
    assert progress[1].eval_loss == pytest.approx(progress[0].eval_loss, rel=TOLERANCE)
    files = [output_of(config, "adapter/adapter_model.safetensors") for config in (plain, own)]
    assert tensors(files[0]) == tensors(files[1])
    wanted = [json.loads((file.parent / "adapter_config.json").read_text()) for file in files]
    for name in ("r", "lora_alpha", "task_type", "use_rslora", "base_model_name_or_path", "auto_mapping"):
        assert wanted[0][name] == wanted[1][name], name
    assert sorted(wanted[0]["target_modules"]) == sorted(wanted[1]["target_modules"])
    generation = [json.loads((file.parent / "generation_config.json").read_text()) for file in files]
    assert generation[0] == generation[1]


@pytest.mark.parametrize("packing", [False, True], ids=["plain", "packed"])
def test_it_learns_with_its_own_checkpointing(tmp_path: Path, base: Path, settings: Settings, packing: bool) -> None:
    acceleration = {"unsloth": True, "gradientCheckpointing": True}
    numbers = {"maxSteps": 30, "learningRate": 0.01}
    report = trained(
        configure(tmp_path, base, **settings(packing=packing, acceleration=acceleration, hyperparameters=numbers)),
        tmp_path,
    )
    assert report.acceleration is not None
    assert report.acceleration.kernels == ["unsloth", "fused-loss", "gradient-checkpointing"]
    assert report.progress is not None
    assert report.progress.eval_loss is not None
    assert report.progress.eval_loss < (report.progress.initial_eval_loss or 0) - 0.1


def test_packed_losses_are_those_without_it(tmp_path: Path, base: Path, settings: Settings) -> None:
    """Samples that lie in one row keep apart by Unsloth's attention too."""
    plain = at(configure(tmp_path, base, **settings(packing=True)), tmp_path / "plain")
    own = with_unsloth(plain, tmp_path / "unsloth")
    run(plain)
    trained(own, tmp_path)
    assert losses(own) == pytest.approx(losses(plain), rel=TOLERANCE)


def test_it_goes_on_from_a_checkpoint(tmp_path: Path, base: Path, settings: Settings) -> None:
    whole = with_unsloth(configure(tmp_path, base, **settings()), tmp_path / "whole")
    trained(whole, tmp_path)
    half = at(whole, tmp_path / "half")
    trained(half, tmp_path)
    # As if the attempt had ended behind its second checkpoint.
    kept = Checkpoints(output_of(half), keep=2)
    newest = kept.newest()
    assert newest is not None
    assert newest.name == "checkpoint-6"
    for path in (newest / "manifest.json", output_of(half, "result.json")):
        path.unlink()
    again = trained(half, tmp_path)
    assert again.progress is not None
    assert again.progress.step == 6
    assert losses(half)[-1] == pytest.approx(losses(whole)[-1], rel=TOLERANCE)
