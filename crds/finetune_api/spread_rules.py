"""Rules of `distributed`: what goes with which way to spread the work.

Offload decides a part of the strategy where that is `auto`: what is held in host memory is DeepSpeed's, and parameters
are ZeRO-3's.
"""

from __future__ import annotations

from finetune_api.predicates import Not, OneOf, Present, both, either
from finetune_api.rule import Rule

_OFFLOADED = OneOf("distributed.offload", ("optimizer", "parameters"))
_FSDP = OneOf("distributed.strategy", ("fsdp2",))
ZERO3 = either(OneOf("distributed.strategy", ("zero3",)), OneOf("distributed.offload", ("parameters",)))
SHARDED = either(ZERO3, _FSDP)
"""No device holds the whole model."""
NOT_BY_DDP = either(OneOf("distributed.strategy", ("zero1", "zero2", "zero3", "fsdp2")), _OFFLOADED)
"""DeepSpeed or FSDP2 holds what is trained."""

SPREAD_RULES: tuple[Rule, ...] = (
    Rule(
        "distributed.strategy",
        both(SHARDED, OneOf("quantization.method", ("hqq",))),
        "ZeRO-3 and FSDP2 cannot shard hqq's weights; use ddp or zero2, or bitsandbytes with 4 bits",
    ),
    Rule(
        "distributed.strategy",
        both(SHARDED, OneOf("quantization.method", ("bitsandbytes",)), OneOf("quantization.bits", (8,))),
        "ZeRO-3 and FSDP2 cannot shard bitsandbytes' 8-bit weights; use 4 bits, or ddp or zero2",
    ),
    Rule(
        "method.lora.init",
        both(OneOf("method.lora.init", ("pissa", "olora")), SHARDED),
        "PiSSA and OLoRA need whole weights, which ZeRO-3 and FSDP2 shard; use init: default or zero2",
    ),
    Rule(
        "output.merge",
        both(Present("output.merge"), Present("quantization"), SHARDED),
        "a quantized base is merged from its own weights, which are shared out; use zero2, or merge the adapter later",
    ),
    Rule(
        "acceleration.compile",
        both(OneOf("acceleration.compile", (True,)), ZERO3),
        "layers whose weights ZeRO-3 shares out cannot be compiled; leave it false, or use fsdp2, zero2 or ddp",
    ),
    Rule(
        "acceleration.fusedAdapters",
        both(OneOf("acceleration.fusedAdapters", (True,)), NOT_BY_DDP),
        "it is for one device, or several by ddp; leave it unset",
    ),
    Rule(
        "distributed.offload",
        both(
            OneOf("distributed.offload", ("optimizer", "parameters")),
            OneOf("distributed.strategy", ("ddp", "fsdp2")),
        ),
        "offload is DeepSpeed's; use strategy zero2 or zero3",
    ),
    Rule(
        "distributed.offload",
        both(OneOf("distributed.offload", ("parameters",)), OneOf("distributed.strategy", ("zero1", "zero2"))),
        "only zero3 can hold parameters in host memory; use it, or offload: optimizer",
    ),
    Rule(
        "distributed.offload",
        both(
            OneOf("distributed.offload", ("optimizer", "parameters")),
            OneOf("hyperparameters.optimizer", ("adamw8bit", "paged_adamw8bit")),
        ),
        "bitsandbytes' optimizers cannot update state in host memory; use adamw, or offload: none",
    ),
    Rule(
        "distributed.deepspeed",
        both(
            Present("distributed.deepspeed"),
            Not(OneOf("distributed.strategy", ("zero1", "zero2", "zero3"))),
        ),
        "raw DeepSpeed settings need a strategy of DeepSpeed's by name: zero1, zero2 or zero3",
    ),
    Rule(
        "distributed.strategy",
        both(_FSDP, OneOf("distributed.gpusPerNode", (0,))),
        "fsdp2 needs GPUs; use ddp, zero2 or zero3 on CPUs",
    ),
    Rule(
        "distributed.strategy",
        both(_FSDP, either(Present("method.freeze"), Present("quantization"), OneOf("precision", ("fp16",)))),
        "fsdp2 trains full and lora, unquantized, in bf16 or fp32; use zero3 or zero2",
    ),
)
