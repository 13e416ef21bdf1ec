"""The strategy in use: what is asked for, or the cheapest that fits."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.kernels import recomputing
from finetune_trainer.spread import Spread
from finetune_trainer.steps import count_steps
from finetune_trainer.strategy import Strategy, choose, processes
from finetune_trainer.world import World


def config(*, distributed: dict[str, Any], **fields: Any) -> TrainerConfig:
    body = {"job": {"name": "tune"}, "model": {"uri": "hf://org/tiny"}, "sources": [], "method": {"lora": {}}}
    return TrainerConfig.model_validate_json(json.dumps({**body, **fields, "distributed": distributed}))


FULL: dict[str, Any] = {"method": {"full": {}}}
TWO = {"gpusPerNode": 2}
CPUS = {"nodes": 2, "gpusPerNode": 0}


@pytest.mark.parametrize(
    ("spread", "count"),
    [
        ({}, 1),
        ({"gpusPerNode": 1}, 1),
        ({"gpusPerNode": 4}, 4),
        ({"nodes": 3}, 3),
        ({"nodes": 2, "gpusPerNode": 8}, 16),
    ],
)
def test_there_is_one_process_a_device(spread: dict[str, Any], count: int) -> None:
    assert processes(config(distributed=spread)) == count


@pytest.mark.parametrize(
    ("spread", "fields", "expected"),
    [
        ({}, {}, Strategy("none")),
        ({"gpusPerNode": 1, "strategy": "ddp"}, {}, Strategy("none")),
        ({"gpusPerNode": 1, "strategy": "zero2", "offload": "optimizer"}, FULL, Strategy("zero2", "optimizer")),
        ({"gpusPerNode": 1, "offload": "optimizer"}, {}, Strategy("zero2", "optimizer")),
        ({"gpusPerNode": 1, "offload": "parameters"}, {}, Strategy("zero3", "parameters")),
        (TWO, {}, Strategy("ddp")),
        (TWO, FULL, Strategy("zero2")),
        (TWO, {"method": {"freeze": {}}}, Strategy("zero2")),
        ({**TWO, "strategy": "fsdp2"}, FULL, Strategy("fsdp2")),
    ],
)
def test_without_an_estimate(spread: dict[str, Any], fields: dict[str, Any], expected: Strategy) -> None:
    assert choose(config(distributed=spread, **fields)) == expected


@pytest.mark.parametrize(
    ("fitting", "spread", "fields", "expected"),
    [
        ({"ddp", "zero2", "zero3"}, TWO, FULL, "ddp"),
        ({"zero2", "zero3"}, TWO, FULL, "zero2"),
        ({"fsdp2", "zero3"}, TWO, {}, "fsdp2"),
        ({"fsdp2", "zero3"}, TWO, FULL, "fsdp2"),
        ({"fsdp2", "zero3"}, TWO, {"method": {"freeze": {}}}, "zero3"),
        ({"fsdp2", "zero3"}, TWO, {"precision": "fp16"}, "zero3"),
        ({"fsdp2", "zero3"}, CPUS, {}, "zero3"),
        ({"fsdp2"}, TWO, {"method": {"full": {"masterWeights": "none"}}}, "fsdp2"),
        ({"zero3"}, TWO, {}, "zero3"),
        (set(), TWO, {}, "zero3"),
        ({"zero3"}, TWO, {"quantization": {"bits": 4}}, "zero3"),
        ({"zero3"}, TWO, {"quantization": {"bits": 8}}, "zero2"),
        ({"zero3"}, TWO, {"method": {"lora": {"init": "pissa"}}}, "zero2"),
        ({"ddp", "zero2"}, {**TWO, "offload": "optimizer"}, {}, "zero2"),
        ({"fsdp2", "zero3"}, {**TWO, "offload": "optimizer"}, {}, "zero3"),
        ({"zero3"}, {**TWO, "strategy": "ddp"}, {}, "ddp"),
        ({"zero3"}, TWO, {"quantization": {"method": "hqq", "bits": 4}}, "zero2"),
        ({"zero3"}, TWO, {"quantization": {"bits": 4}, "merge": {}}, "zero2"),
        ({"fsdp2"}, TWO, {"acceleration": {"compile": True}}, "fsdp2"),
        ({"zero3"}, TWO, {"stage": "orpo", "preference": {}}, "zero2"),
        ({"zero2"}, TWO, {"precision": "fp8"}, "ddp"),
        ({"zero2"}, TWO, {**FULL, "stage": "dpo", "preference": {}}, "ddp"),
        ({"zero2"}, TWO, {"acceleration": {"fusedAdapters": True}}, "ddp"),
    ],
)
def test_with_an_estimate_the_cheapest_that_fits_and_that_can_work(
    fitting: set[str], spread: dict[str, Any], fields: dict[str, Any], expected: str
) -> None:
    assert choose(config(distributed=spread, **fields), fitting.__contains__).name == expected


def test_where_the_rules_leave_nothing_to_choose_they_are_named() -> None:
    with pytest.raises(
        TrainerError, match=r"auto finds none for this job: .*fp8 under DeepSpeed.*offload is of"
    ) as raised:
        choose(config(distributed={**TWO, "offload": "optimizer"}, precision="fp8"))
    assert raised.value.exit_code is ExitCode.CONFIG_INVALID


@pytest.mark.parametrize(
    ("name", "stage", "sharded"),
    [("none", 0, False), ("ddp", 0, False), ("zero1", 1, False), ("zero3", 3, True), ("fsdp2", 0, True)],
)
def test_what_a_strategy_shards(name: str, stage: int, sharded: bool) -> None:
    assert (Strategy(name).zero_stage, Strategy(name).shards_weights) == (stage, sharded)


@pytest.mark.parametrize(("strategy", "optimizer"), [("zero2", "adamw"), ("ddp", "adafactor")])
def test_the_log_names_the_optimizer_that_is_in_use(
    strategy: str, optimizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = config(
        distributed={**TWO, "strategy": strategy}, hyperparameters={"optimizer": optimizer, "microBatchSize": 1}
    )
    with caplog.at_level(logging.INFO):
        Spread.plan(wanted, World(0, 2), count_steps(wanted.hyperparameters, 64, 2))
    assert f"{strategy} over 2 devices, optimizer {optimizer}" in caplog.text


@pytest.mark.parametrize(
    ("fields", "by_fsdp"),
    [
        ({**FULL, "acceleration": {"gradientCheckpointing": True}}, True),
        ({**FULL, "acceleration": {"gradientCheckpointing": True, "keepAttention": True}}, False),
        ({"acceleration": {"gradientCheckpointing": True}}, False),
    ],
    ids=["full", "attention kept", "adapters"],
)
def test_fsdp2_makes_layers_again_where_it_can(fields: dict[str, Any], by_fsdp: bool) -> None:
    wanted = config(distributed={**TWO, "strategy": "fsdp2"}, **fields)
    spread = Spread.plan(wanted, World(size=2), count_steps(wanted.hyperparameters, 100, 2))
    assert spread.arguments()["fsdp_config"]["activation_checkpointing"] is by_fsdp
    (how,) = (
        value for name, value in recomputing(wanted, elsewhere=spread.checkpoints_activations).items()
        if not name.endswith("_kwargs")
    )  # fmt: skip
    assert how is not by_fsdp
