"""DeepSpeed's configuration: ours, the user's over it, and no key that a field of ours sets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.deepspeed_config import OWNED, make_config, owned_keys
from finetune_trainer.errors import TrainerError
from finetune_trainer.strategy import Strategy


def made(strategy: Strategy, raw: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    body = {
        "job": {"name": "tune"},
        "model": {"uri": "hf://org/tiny"},
        "sources": [],
        "method": {"full": {}},
        "hyperparameters": {"globalBatchSize": 24, "microBatchSize": 3, "maxGradNorm": 0.5},
        "distributed": {"gpusPerNode": 4, "deepspeed": raw},
    }
    config = TrainerConfig.model_validate_json(json.dumps({**body, **fields}))
    return make_config(config, strategy, processes=4, accumulation=2)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_stage_and_the_sizes_follow_from_our_fields(stage: int) -> None:
    config = made(Strategy(f"zero{stage}"))
    assert config["zero_optimization"]["stage"] == stage
    assert config["train_batch_size"] == 24
    assert config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 4 == 24
    assert config["gradient_clipping"] == 0.5
    assert "optimizer" not in config


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_arithmetic_is_that_of_precision(precision: str) -> None:
    config = made(Strategy("zero2"), precision=precision)
    assert (config["bf16"]["enabled"], config["fp16"]["enabled"]) == (precision == "bf16", precision == "fp16")


@pytest.mark.parametrize(
    ("offload", "held"),
    [("none", set()), ("optimizer", {"offload_optimizer"}), ("parameters", {"offload_optimizer", "offload_param"})],
)
def test_what_is_offloaded_lies_in_host_memory_and_torch_updates_it(offload: str, held: set[str]) -> None:
    config = made(Strategy("zero3", offload))
    zero = config["zero_optimization"]
    assert {key for key in zero if key.startswith("offload")} == held
    assert all(zero[key]["device"] == "cpu" for key in held)
    assert config["zero_force_ds_cpu_optimizer"] is False


def test_raw_settings_are_laid_over_key_by_key() -> None:
    raw = {"zero_optimization": {"overlap_comm": True, "offload_optimizer": {"pin_memory": False}}, "prescale": 1}
    config = made(Strategy("zero2", "optimizer"), raw)
    zero = config["zero_optimization"]
    assert (zero["overlap_comm"], zero["stage"], config["prescale"]) == (True, 2, 1)
    assert zero["offload_optimizer"] == {"device": "cpu", "pin_memory": False}


@pytest.mark.parametrize("path", OWNED)
def test_a_key_that_a_field_sets_is_refused_with_that_field(path: str) -> None:
    raw: dict[str, Any] = {}
    *parents, last = path.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = 1
    with pytest.raises(TrainerError, match=rf"{path} is set by spec\.{OWNED[path]}") as raised:
        made(Strategy("zero2"), raw)
    assert raised.value.exit_code is ExitCode.CONFIG_INVALID


def test_neighbours_of_such_keys_are_free() -> None:
    assert (
        list(owned_keys({"fp16": {"loss_scale": 128}, "zero_optimization": {"offload_param": {"buffer_count": 4}}}))
        == []
    )
