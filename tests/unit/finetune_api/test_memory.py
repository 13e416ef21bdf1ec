"""Memory without a model: shapes from config.json, parts that move as they must, the smallest number of GPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from finetune_api.fitting import COUNTS, STRATEGIES, changes_that_fit, choose_micro_batch, fits, smallest_gpu_count
from finetune_api.heads import logit_bytes
from finetune_api.memory import USABLE, activations, estimate, resting_bytes
from finetune_api.model_shape import ModelShape, ShapeError
from finetune_api.recipe import Recipe, recipe_of
from finetune_api.trainer_config import JobIdentity, ResolvedModel, TrainerConfig
from finetune_api.training import FullMethod, LoraMethod, MethodSpec, QuantizationSpec

GIB = 2**30
QWEN3_8B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
SMALL = {**QWEN3_8B, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
         "tie_word_embeddings": True}  # fmt: skip
FULL, LORA = MethodSpec(full=FullMethod()), MethodSpec(lora=LoraMethod(rank=16))


def job(**fields: Any) -> TrainerConfig:
    body: dict[str, Any] = {
        "job": JobIdentity(name="job").to_dict(),
        "model": ResolvedModel(uri="hf://org/model").to_dict(),
        "sources": [],
        "method": {"lora": {"rank": 16}},
        "distributed": {"gpusPerNode": 1},
    }
    return TrainerConfig.model_validate({**body, **fields})


# -- config.json -----------------------------------------------------------------------------------------------------


def test_a_config_gives_the_parameters_that_the_model_is_known_for() -> None:
    assert ModelShape.from_config(QWEN3_8B).parameters == 8_190_735_360
    assert ModelShape.from_config(SMALL).parameters == 596_049_920


def test_the_text_part_of_a_model_for_images_is_what_is_trained() -> None:
    nested = {"model_type": "vision", "text_config": {**SMALL, "model_type": "qwen3"}, "tie_word_embeddings": True}
    assert ModelShape.from_config(nested) == ModelShape.from_config(SMALL)


@pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
                                   "intermediate_size"])  # fmt: skip
def test_a_missing_field_is_named(field: str) -> None:
    config = {key: value for key, value in QWEN3_8B.items() if key != field}
    with pytest.raises(ShapeError, match=f"lacks {field}"):
        ModelShape.from_config(config)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"hidden_size": "4096"}, "hidden_size must be a positive integer"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"model_type": "gpt_neox"}, "gpt_neox"),
    ],
)
def test_what_is_not_known_is_refused_and_not_guessed(edit: dict[str, Any], told: str) -> None:
    with pytest.raises(ShapeError, match=told):
        ModelShape.from_config({**QWEN3_8B, **edit})


def test_adapters_on_experts_are_refused_and_those_beside_them_are_not() -> None:
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 512, "model_type": "qwen3_moe"}
    shape = ModelShape.from_config({**SMALL, **experts})
    with pytest.raises(ShapeError, match="targetModules of k_proj, o_proj, q_proj, v_proj"):
        estimate(shape, Recipe(LORA, "bf16", 512, 1))
    beside = MethodSpec(lora=LoraMethod(target_modules=["q_proj", "v_proj"]))
    adapters, full = (estimate(shape, Recipe(method, "bf16", 512, 1)) for method in (beside, FULL))
    assert adapters.total < full.total


# -- parts ------------------------------------------------------------------------------------------------------------


def test_full_training_takes_sixteen_bytes_a_parameter_at_rest() -> None:
    shape = ModelShape.from_config(SMALL)
    weights, gradients, optimizer = resting_bytes(shape, Recipe(FULL, "bf16", 1024, 1))
    assert (weights, gradients, optimizer) == tuple(n * shape.parameters for n in (4, 4, 8))
    halves = resting_bytes(shape, Recipe(FULL, "bf16", 1024, 1, master_weights="none"))
    assert halves == tuple(n * shape.parameters for n in (2, 2, 4))


def test_the_total_is_the_sum_of_the_parts() -> None:
    told = estimate(ModelShape.from_config(SMALL), Recipe(LORA, "bf16", 1024, 2, masked=True))
    parts = told.weights + told.gradients + told.optimizer + told.activations + told.logits + told.buffers
    assert told.total == parts
    assert all(part >= 0 for part in told.model_dump(exclude={"moment"}).values())


@pytest.mark.parametrize(
    "less",
    [
        {"checkpointing": True},
        {"liger": True},
        {"fused_loss": True},
        {"compiled": True},
        {"activation_offload": True},
        {"length": 1024},
        {"micro_batch": 2},
        {"eager": False},
        {"optimizer": "adamw8bit"},
        {"optimizer": "adafactor"},
        {"master_weights": "none"},
        {"accumulation": 1},
        {"strategy": "zero2", "devices": 8},
    ],
    ids=str,
)
def test_each_saving_saves(less: dict[str, Any]) -> None:
    shape = ModelShape.from_config(SMALL)
    before: dict[str, Any] = {"method": FULL, "precision": "bf16", "length": 2048, "micro_batch": 4, "eager": True,
                              "accumulation": 4}  # fmt: skip
    assert estimate(shape, Recipe(**{**before, **less})).total < estimate(shape, Recipe(**before)).total


@pytest.mark.parametrize(
    ("edits", "fused"),
    [
        ({"distributed": {"gpusPerNode": 2, "strategy": "zero2"}}, {"fused_loss"}),
        ({"distributed": {"gpusPerNode": 2, "strategy": "zero3"}}, set()),
        ({"distributed": {"gpusPerNode": 2, "strategy": "fsdp2"}}, set()),
        ({"distributed": {"gpusPerNode": 1}}, {"fused_loss", "fused_adapters"}),
        ({"distributed": {"gpusPerNode": 1}, "acceleration": {"fusedAdapters": False, "liger": False}}, set()),
        ({"distributed": {"gpusPerNode": 1}, "method": {"lora": {"dora": True}}}, {"fused_loss"}),
        ({"distributed": {"gpusPerNode": 1}, "method": {"full": {}}}, {"fused_loss"}),
        ({"distributed": {"gpusPerNode": 1}, "quantization": {"bits": 4}}, {"fused_loss", "fused_adapters"}),
        ({"distributed": {"gpusPerNode": 1}, "quantization": {"bits": 8}}, {"fused_loss"}),
        ({"distributed": {"gpusPerNode": 0}}, set()),
    ],
    ids=str,
)
def test_what_is_fused_is_what_the_trainer_fuses(edits: dict[str, Any], fused: set[str]) -> None:
    recipe = recipe_of(job(**edits), micro_batch=1)
    assert {name for name in ("fused_loss", "fused_adapters") if getattr(recipe, name)} == fused


def test_zero_shares_state_gradients_and_weights_in_this_order() -> None:
    shape = ModelShape.from_config(SMALL)
    parts = [resting_bytes(shape, Recipe(FULL, "bf16", 1024, 1, strategy=strategy, devices=8))
             for strategy in ("zero1", "zero2", "zero3")]  # fmt: skip
    count = shape.parameters
    assert parts[0] == (2 * count, 2 * count, 12 * count / 8)
    assert parts[1] == (2 * count, 2 * count / 8, 12 * count / 8)
    assert parts[2] == (2 * count / 8, 2 * count / 8, 12 * count / 8)
    offloaded = resting_bytes(shape, Recipe(FULL, "bf16", 1024, 1, strategy="zero3", devices=8, offload="parameters"))
    assert offloaded == (0, 0, 0)


LIGER: dict[str, Any] = {"liger": True, "fused_loss": True}


@pytest.mark.parametrize(
    ("recipe", "measured"),
    [
        (Recipe(LORA, "bf16", 4096, 2, **LIGER), 63.5),
        (Recipe(LORA, "bf16", 4096, 4, **LIGER, checkpointing=True), 24.4),
        (Recipe(LORA, "bf16", 4096, 4, **LIGER, checkpointing=True, quantization=QuantizationSpec(bits=4)), 13.3),
        (Recipe(FULL, "bf16", 4096, 2, **LIGER, master_weights="none"), 87.6),
        (Recipe(FULL, "bf16", 4096, 4, **LIGER, master_weights="none", checkpointing=True), 62.3),
    ],
    ids=["lora", "lora-checkpointing", "qlora-checkpointing", "full", "full-checkpointing"],
)
def test_peaks_that_another_trainer_measured(recipe: Recipe, measured: float) -> None:
    """GiB of torch.cuda.max_memory_allocated on an H200: TRL 1.15 with Liger 0.8.5, torch 2.11, Qwen3-8B's shape with
    random weights, 2026-11-23."""
    assert estimate(ModelShape.from_config(QWEN3_8B), recipe).total / GIB == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("liger", [None, True])
@pytest.mark.parametrize(
    ("fields", "fused"),
    [
        ({}, True),
        ({"distributed": {"gpusPerNode": 2, "strategy": "zero2"}}, True),
        ({"distributed": {"gpusPerNode": 2, "strategy": "zero3"}}, False),
        ({"distributed": {"gpusPerNode": 2, "strategy": "fsdp2"}}, False),
        ({"stage": "orpo"}, False),
    ],
    ids=str,
)
def test_the_estimate_has_a_fused_loss_where_the_trainer_fuses_it(
    liger: bool | None, fields: dict[str, Any], fused: bool
) -> None:
    assert recipe_of(job(acceleration={"liger": liger}, **fields)).fused_loss == fused


# -- what fits ---------------------------------------------------------------------------------------------------------


def test_the_micro_batch_is_the_largest_power_of_two_that_divides_and_fits() -> None:
    shape = ModelShape.from_config(SMALL)
    config = job(hyperparameters={"globalBatchSize": 24, "microBatchSize": "auto"}, maxLength=1024)
    sizes = [choose_micro_batch(config, shape, memory * GIB) for memory in (1, 16, 24, 10_000)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1  # the least there is, whether it fits or not
    assert sizes[-1] == 8  # 16 does not divide 24
    for memory, size in zip((16, 24), sizes[1:3], strict=True):
        assert fits(estimate(shape, recipe_of(config, micro_batch=size)).total, memory * GIB)
        assert not fits(estimate(shape, recipe_of(config, micro_batch=2 * size)).total, memory * GIB) or size == 8


def test_shorter_data_than_allowed_leaves_room_for_more() -> None:
    shape = ModelShape.from_config(SMALL)
    config = job(hyperparameters={"globalBatchSize": 64, "microBatchSize": "auto"}, maxLength=4096)
    assert choose_micro_batch(config, shape, 24 * GIB, longest=256) > choose_micro_batch(config, shape, 24 * GIB)


def test_the_smallest_count_grows_as_memory_shrinks() -> None:
    shape = ModelShape.from_config(QWEN3_8B)
    config = job(method={"full": {}}, acceleration={"gradientCheckpointing": True},
                 hyperparameters={"globalBatchSize": 64, "microBatchSize": 1})  # fmt: skip
    found = [smallest_gpu_count(config, shape, memory * GIB) for memory in (192, 80, 40)]
    counts = [fit.devices for fit in found if fit is not None]
    assert len(counts) == 3
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    for fit, memory in zip(found, (192, 80, 40), strict=True):
        assert fit is not None
        assert fit.estimate.total <= USABLE * memory * GIB


@pytest.mark.parametrize("memory", [24, 32, 40, 48, 80, 141])
def test_no_smaller_count_fits(memory: int) -> None:
    """Of all that divide the global batch, three and six among them."""
    shape = ModelShape.from_config(QWEN3_8B)
    config = job(method={"full": {}}, acceleration={"gradientCheckpointing": True},
                 hyperparameters={"globalBatchSize": 24, "microBatchSize": 1})  # fmt: skip
    fit = smallest_gpu_count(config, shape, memory * GIB)
    assert fit is not None
    for devices in (count for count in COUNTS if count < fit.devices):
        for strategy in STRATEGIES:
            recipe = recipe_of(config, devices=devices, strategy=strategy)
            assert (
                24 % devices
                or (devices == 1 and strategy != "ddp")
                or not fits(estimate(shape, recipe).total, memory * GIB)
            )


def test_counts_are_not_powers_of_two_alone() -> None:
    config = job(method={"full": {}}, acceleration={"gradientCheckpointing": True},
                 hyperparameters={"globalBatchSize": 24, "microBatchSize": 1})  # fmt: skip
    shape = ModelShape.from_config(QWEN3_8B)
    counts = {fit.devices for memory in range(20, 142, 4) if (fit := smallest_gpu_count(config, shape, memory * GIB))}
    assert {3, 6} & counts


def test_one_gpu_is_trained_on_plainly() -> None:
    fit = smallest_gpu_count(job(), ModelShape.from_config(SMALL), 80 * GIB)
    assert fit is not None
    assert (fit.devices, fit.strategy) == (1, "ddp")


def test_a_strategy_that_the_rules_refuse_is_not_proposed() -> None:
    shape = ModelShape.from_config({**QWEN3_8B, "num_hidden_layers": 400})
    fields: dict[str, Any] = {"hyperparameters": {"globalBatchSize": 64, "microBatchSize": 1},
                              "acceleration": {"gradientCheckpointing": True}}  # fmt: skip
    plain, eight, half = job(**fields), job(**fields, quantization={"bits": 8}), job(**fields, precision="fp16")
    found = [smallest_gpu_count(config, shape, 40 * GIB) for config in (plain, half)]
    assert [fit.strategy for fit in found if fit is not None] == ["fsdp2", "zero3"]
    assert smallest_gpu_count(eight, shape, 40 * GIB) is None  # its weights cannot be shared out
    pairs = plain.model_copy(update={"stage": "orpo"})
    assert smallest_gpu_count(pairs, shape, 40 * GIB) is None  # nor those of a model that judges whole


def test_4_bit_weights_under_zero3_are_whole_while_a_step_is_computed() -> None:
    """The ones that others hold are kept from when they are gathered until their backward pass."""
    shape = ModelShape.from_config({**QWEN3_8B, "num_hidden_layers": 400})
    four = QuantizationSpec(bits=4)
    shared = Recipe(LORA, "bf16", 1024, 1, quantization=four, checkpointing=True, devices=64, strategy="zero3")
    weights, _, _ = resting_bytes(shape, replace(shared, devices=1))
    assert resting_bytes(shape, shared)[0] == weights / 64
    assert estimate(shape, shared).buffers > 0.9 * weights


def test_offload_needs_no_second_gpu() -> None:
    shape = ModelShape.from_config(QWEN3_8B)
    numbers = {"globalBatchSize": 8, "microBatchSize": 1}
    fields: dict[str, Any] = {"method": {"full": {}}, "hyperparameters": numbers,
                              "acceleration": {"gradientCheckpointing": True}}  # fmt: skip
    alone = smallest_gpu_count(job(**fields), shape, 40 * GIB)
    offloaded = smallest_gpu_count(
        job(**fields, distributed={"gpusPerNode": 1, "offload": "optimizer"}), shape, 40 * GIB
    )
    assert alone is None or alone.devices > 1
    assert offloaded is not None
    assert (offloaded.devices, offloaded.strategy) == (1, "zero2")


def test_what_must_change_is_said_in_order_and_makes_it_fit() -> None:
    config = job(method={"full": {}}, hyperparameters={"globalBatchSize": 1, "microBatchSize": 1})
    shape = ModelShape.from_config(QWEN3_8B)
    assert smallest_gpu_count(config, shape, 24 * GIB) is None
    changed = changes_that_fit(config, shape, 24 * GIB)
    assert changed is not None
    texts, fit = changed
    assert "gradientCheckpointing" in texts[0]
    assert any("method.lora" in text for text in texts)
    assert fit.devices == 1


def test_auto_is_no_number() -> None:
    with pytest.raises(ValueError, match="auto"):
        recipe_of(job(hyperparameters={"microBatchSize": "auto"}))


def test_stages_with_pairs_count_both_answers_and_the_reference() -> None:
    shape, plain = ModelShape.from_config(SMALL), Recipe(FULL, "bf16", 1024, 2)
    pairs = replace(plain, paired=True)
    assert pairs.tokens == 2 * plain.tokens
    assert activations(shape, pairs).layers == pytest.approx(2 * activations(shape, plain).layers)
    weights, copied = (resting_bytes(shape, replace(plain, reference=kept))[0] for kept in (False, True))
    assert copied == 2 * weights
    assert logit_bytes(shape, replace(pairs, scores=True)).backward == 0
    assert logit_bytes(shape, pairs).backward == 2 * logit_bytes(shape, plain).backward
