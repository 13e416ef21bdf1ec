"""The estimate against peaks of GPU memory that bench/trainer measured at real sizes (2026-11-25 and -26, an H100 or an
H200, torch 2.11): rows of one length, AdamW, LoRA of rank 16 on all linear layers."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.memory import estimate
from finetune_api.model_shape import ModelShape
from finetune_api.recipe import Recipe, Strategy
from finetune_api.training import FullMethod, LoraMethod, MethodSpec, QuantizationSpec

QWEN3: dict[str, Any] = {"model_type": "qwen3", "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
SHAPES = {
    "8B": ModelShape.from_config(
        {**QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
    ),
    "0.6B": ModelShape.from_config(
        {**QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
         "tie_word_embeddings": True}
    ),
}  # fmt: skip
LORA: dict[str, Any] = {"method": MethodSpec(lora=LoraMethod(rank=16)), "fused_adapters": True}
SEPARATE = {**LORA, "fused_adapters": False}
QLORA = {**LORA, "quantization": QuantizationSpec(bits=4)}
FULL: dict[str, Any] = {"method": MethodSpec(full=FullMethod(master_weights="none")), "master_weights": "none"}
FP8 = {"precision": "fp8"}
EIGHT = {"optimizer": "adamw8bit"}
AGAIN = {"checkpointing": True}
KEPT = {**AGAIN, "keeps_attention": True}
AWAY = {**AGAIN, "activation_offload": True}
PEAKS: list[tuple[str, tuple[int, int], dict[str, Any], float]] = [
    ("8B", (2, 4096), LORA, 40.4),
    ("8B", (2, 4096), SEPARATE, 43.8),
    ("8B", (2, 4096), {**LORA, **FP8}, 36.8),
    ("8B", (2, 4096), {**SEPARATE, **FP8}, 36.9),
    ("8B", (2, 4096), QLORA, 34.1),
    ("8B", (2, 4096), {**QLORA, "fused_adapters": False}, 34.0),
    ("8B", (4, 4096), {**LORA, **AGAIN}, 23.4),
    ("8B", (4, 4096), {**LORA, **AWAY}, 19.4),
    ("8B", (4, 4096), {**QLORA, **AGAIN}, 14.1),
    ("8B", (4, 4096), {**QLORA, **AWAY}, 10.2),
    ("8B", (1, 16384), {**LORA, **AGAIN}, 23.4),
    ("8B", (1, 16384), {**LORA, **AWAY}, 19.5),
    ("8B", (1, 16384), {**QLORA, **AGAIN}, 14.1),
    ("8B", (4, 4096), {**LORA, **KEPT}, 27.3),
    ("8B", (1, 16384), {**LORA, **KEPT}, 27.4),
    ("8B", (4, 4096), {**LORA, **KEPT, **AWAY}, 19.1),
    ("8B", (2, 4096), {**LORA, "activation_offload": True}, 17.9),
    ("8B", (4, 4096), {**QLORA, **KEPT, **AWAY}, 9.4),
    ("8B", (4, 4096), {**QLORA, **KEPT}, 17.6),
    ("8B", (1, 16384), {**QLORA, **KEPT}, 17.6),
    ("8B", (2, 4096), FULL, 76.2),
    ("8B", (2, 4096), {**FULL, **FP8}, 73.4),
    ("8B", (4, 4096), {**FULL, **AGAIN}, 62.9),
    ("8B", (1, 16384), {**FULL, **AGAIN}, 62.9),
    ("8B", (4, 4096), {**FULL, **KEPT}, 62.5),
    ("8B", (4, 4096), {**FULL, **KEPT, "compiled": False, "liger": True}, 62.3),
    ("8B", (4, 4096), {**FULL, **AGAIN, "compiled": False, "liger": True}, 62.3),
    ("8B", (2, 4096), {**FULL, **EIGHT}, 64.6),
    ("8B", (4, 4096), {**FULL, **AGAIN, **EIGHT}, 51.4),
    ("8B", (4, 4096), {**FULL, **KEPT, **EIGHT}, 50.9),
    ("0.6B", (2, 4096), FULL, 11.8),
    ("0.6B", (2, 4096), LORA, 7.9),
    ("0.6B", (1, 16384), {**FULL, **AGAIN}, 5.6),
    ("0.6B", (1, 16384), {**LORA, **AGAIN}, 3.2),
]


@pytest.mark.parametrize(("shape", "batch", "choices", "measured"), PEAKS)
def test_the_estimate_is_within_a_tenth_of_what_was_measured(
    shape: str, batch: tuple[int, int], choices: dict[str, Any], measured: float
) -> None:
    rows, length = batch
    settings = {"precision": "bf16", "fused_loss": True, "compiled": True, **choices}
    told = estimate(SHAPES[shape], Recipe(length=length, micro_batch=rows, **settings))
    assert told.total / 2**30 == pytest.approx(measured, rel=0.1)


MASTERED: dict[str, Any] = {"method": MethodSpec(full=FullMethod())}
SHARED: list[tuple[str, int, dict[str, Any], float]] = [
    ("zero2", 4, MASTERED, 53.5),
    ("zero3", 4, MASTERED, 48.9),
    ("fsdp2", 4, MASTERED, 40.5),
    ("zero2", 4, {**MASTERED, "compiled": True}, 53.5),
    ("fsdp2", 4, {**MASTERED, "compiled": True}, 40.5),
    ("zero1", 2, MASTERED, 91.6),
    ("zero2", 2, MASTERED, 91.6),
    ("zero3", 2, MASTERED, 79.4),
    ("fsdp2", 2, MASTERED, 64.0),
    ("fsdp2", 2, {**MASTERED, "compiled": True}, 64.0),
    ("ddp", 4, LORA, 20.3),
    ("ddp", 4, {**LORA, "compiled": True}, 19.8),
    ("zero3", 4, SEPARATE, 22.3),
    ("fsdp2", 4, SEPARATE, 21.4),
    ("fsdp2", 4, {**SEPARATE, "compiled": True}, 21.4),
    ("zero2", 2, SEPARATE, 19.8),
    ("fsdp2", 2, SEPARATE, 25.4),
    ("zero3", 2, {**QLORA, "fused_adapters": False}, 24.2),
]


@pytest.mark.parametrize(("strategy", "devices", "choices", "measured"), SHARED)
def test_so_it_is_where_several_gpus_share_the_work(
    strategy: Strategy, devices: int, choices: dict[str, Any], measured: float
) -> None:
    """Layers made again, 2 rows of 4,096 tokens a device."""
    settings = {"precision": "bf16", "fused_loss": strategy not in ("zero3", "fsdp2"), **choices}
    recipe = Recipe(length=4096, micro_batch=2, checkpointing=True, strategy=strategy, devices=devices, **settings)
    assert estimate(SHAPES["8B"], recipe).total / 2**30 == pytest.approx(measured, rel=0.1)
