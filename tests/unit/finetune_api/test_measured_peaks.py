"""The estimate against peaks of GPU memory that bench/trainer measured at real sizes (2026-11-25 and -26, an H100 or an
H200, torch 2.11): rows of one length, AdamW, LoRA of rank 16 on all linear layers, compiled layers."""

from __future__ import annotations

from typing import Any

import pytest
from finetune_api.memory import estimate
from finetune_api.model_shape import ModelShape
from finetune_api.recipe import Recipe
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
AGAIN = {"checkpointing": True}
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
    ("8B", (2, 4096), FULL, 76.2),
    ("8B", (2, 4096), {**FULL, **FP8}, 73.4),
    ("8B", (4, 4096), {**FULL, **AGAIN}, 62.9),
    ("8B", (1, 16384), {**FULL, **AGAIN}, 62.9),
    ("0.6B", (2, 4096), FULL, 11.8),
    ("0.6B", (2, 4096), LORA, 7.7),
    ("0.6B", (1, 16384), {**FULL, **AGAIN}, 5.5),
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
