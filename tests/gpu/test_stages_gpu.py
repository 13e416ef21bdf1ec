"""The stages beside sft on a CUDA GPU: TRL's kernels for log-probabilities run there alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.picture import read_history
from finetune_trainer.progress import FILE
from stage_data import PREFERENCE, stage_config
from tiny_model import make_tiny_model
from trainings import output_of, run


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": {"lora": {"rank": 4}}},
    "qlora": {"method": {"lora": {"rank": 4}}, "quantization": {"bits": 4}},
    "full": {"method": {"full": {}}},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("stage", ["pt", *PREFERENCE])
def test_a_stage_learns(tmp_path: Path, base: Path, stage: Any, precision: str, method: str) -> None:
    config = stage_config(
        tmp_path,
        base,
        stage,
        precision=precision,
        **METHODS[method],
        packing=stage == "pt",
        hyperparameters={"maxSteps": 16},
        distributed={"gpusPerNode": 1},
    )
    progress = run(config).progress
    assert progress is not None
    assert progress.initial_eval_loss is not None
    assert progress.eval_loss is not None
    assert progress.eval_loss < progress.initial_eval_loss - (0.01 if stage == "kto" else 0.05)


@pytest.mark.parametrize("stage", ["dpo", "kto", "orpo"])  # rm starts from a head of random numbers
def test_the_first_loss_is_that_of_the_cpu(tmp_path: Path, base: Path, stage: Any) -> None:
    losses = []
    for gpus in (0, 1):
        directory = tmp_path / str(gpus)
        directory.mkdir()
        config = stage_config(
            directory, base, stage, hyperparameters={"maxSteps": 1}, distributed={"gpusPerNode": gpus}
        )
        run(config)
        losses.append(read_history(output_of(config, FILE))[1].loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    if stage == "dpo":
        assert losses[1] == pytest.approx(math.log(2), abs=1e-5)
