"""Rules of `precision`: what each type of the arithmetic needs, and what cannot be computed in it."""

from __future__ import annotations

from finetune_api.predicates import OneOf, Present, both
from finetune_api.rule import Rule, later
from finetune_api.spread_rules import NOT_BY_DDP

_FP8, _FP16, _FP32 = (OneOf("precision", (name,)) for name in ("fp8", "fp16", "fp32"))
_ON_CPU = OneOf("distributed.gpusPerNode", (0,))

PRECISION_RULES: tuple[Rule, ...] = (
    Rule(
        "precision",
        both(_FP16, _ON_CPU),
        "fp16 needs a GPU, since CPUs have no arithmetic for it; use fp32, or bf16 where the CPU has that",
    ),
    Rule(
        "method.full.masterWeights",
        both(_FP16, OneOf("method.full.masterWeights", ("none",))),
        "fp16 scales the loss, and scales back gradients of fp32 weights alone; use masterWeights: fp32, or bf16",
    ),
    Rule(
        "acceleration.flashAttention",
        both(_FP32, OneOf("acceleration.flashAttention", ("fa2", "fa3"))),
        "flash-attn computes in bf16 and fp16 alone; use auto, or another precision",
    ),
    Rule(
        "precision",
        both(_FP8, _ON_CPU),
        "fp8 needs a GPU (Ada, Hopper or later); use bf16",
    ),
    later("precision", both(_FP8, Present("method.freeze")), "fp8 with method freeze; use full or lora, or bf16"),
    later(
        "precision",
        both(_FP8, NOT_BY_DDP),
        "fp8 under DeepSpeed and FSDP2; use ddp, or bf16",
    ),
    later(
        "method.lora.dora",
        both(_FP8, OneOf("method.lora.dora", (True,))),
        "DoRA on an fp8 base; use bf16",
    ),
    Rule(
        "quantization",
        both(_FP8, Present("quantization")),
        "fp8 needs a base that is not quantized",
    ),
)
