"""Rules of `distributed`: what goes with which way to spread the work.

Offload decides a part of the strategy where that is `auto`: what is held in host memory is DeepSpeed's, and parameters
are ZeRO-3's.
"""

from __future__ import annotations

from finetune_api.predicates import Not, OneOf, Present, both, either
from finetune_api.rule import Rule, later

_OFFLOADED = OneOf("distributed.offload", ("optimizer", "parameters"))
_FSDP = OneOf("distributed.strategy", ("fsdp2",))
ZERO3 = either(OneOf("distributed.strategy", ("zero3",)), OneOf("distributed.offload", ("parameters",)))
SHARDED = either(ZERO3, _FSDP)
"""No device holds the whole model."""
NOT_BY_DDP = either(OneOf("distributed.strategy", ("zero1", "zero2", "zero3", "fsdp2")), _OFFLOADED)
"""DeepSpeed or FSDP2 holds what is trained."""
_ZERO = either(OneOf("distributed.strategy", ("zero1", "zero2", "zero3")), _OFFLOADED)

SPREAD_RULES: tuple[Rule, ...] = (
    later(
        "distributed.strategy",
        both(SHARDED, OneOf("quantization.method", ("hqq",))),
        "hqq's weights under ZeRO-3 and FSDP2; use ddp or zero2, or bitsandbytes with 4 bits",
    ),
    Rule(
        "distributed.strategy",
        both(SHARDED, OneOf("quantization.method", ("bitsandbytes",)), OneOf("quantization.bits", (8,))),
        "ZeRO-3 and FSDP2 cannot shard bitsandbytes' 8-bit weights; use 4 bits, or ddp or zero2",
    ),
    later(
        "method.lora.init",
        both(OneOf("method.lora.init", ("pissa", "olora")), SHARDED),
        "PiSSA and OLoRA under ZeRO-3 and FSDP2, which share out the weights that they start from; use init: "
        "default, or zero2",
    ),
    later(
        "output.merge",
        both(Present("output.merge"), Present("quantization"), SHARDED),
        "merging into a quantized base whose weights are shared out; use zero2, or merge the adapter later",
    ),
    later(
        "method.full.masterWeights",
        both(OneOf("method.full.masterWeights", ("none",)), _ZERO),
        "training without masters under ZeRO, which holds them with the optimizer's state; leave it fp32, or use ddp "
        "or fsdp2",
    ),
    later(
        "acceleration.compile",
        both(OneOf("acceleration.compile", (True,)), ZERO3),
        "compiled layers whose weights ZeRO-3 shares out; leave it false, or use fsdp2, zero2 or ddp",
    ),
    later(
        "acceleration.fusedAdapters",
        both(OneOf("acceleration.fusedAdapters", (True,)), NOT_BY_DDP),
        "fused adapters under DeepSpeed and FSDP2; leave it unset",
    ),
    Rule(
        "distributed.offload",
        both(
            _OFFLOADED,
            OneOf("distributed.strategy", ("ddp",)),
        ),
        "offload is of what is shared out; use strategy zero2 or zero3",
    ),
    later("distributed.offload", both(_OFFLOADED, _FSDP), "offload under FSDP2; use zero2 or zero3"),
    Rule(
        "distributed.offload",
        both(OneOf("distributed.offload", ("parameters",)), OneOf("distributed.strategy", ("zero1", "zero2"))),
        "only zero3 can hold parameters in host memory; use it, or offload: optimizer",
    ),
    Rule(
        "distributed.offload",
        both(
            _OFFLOADED,
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
    later(
        "distributed.strategy",
        both(_FSDP, OneOf("distributed.gpusPerNode", (0,))),
        "fsdp2 on CPUs; use ddp, zero2 or zero3",
    ),
    later(
        "distributed.strategy",
        both(_FSDP, either(Present("method.freeze"), Present("quantization"), OneOf("precision", ("fp16",)))),
        "fsdp2 with freeze, a quantized base or fp16; use zero3 or zero2",
    ),
)
