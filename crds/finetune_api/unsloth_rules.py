"""The rules of `acceleration.unsloth`: what its kernels cannot do, and what is not supported with them yet.

They are those of Unsloth's own path for dense models with LoRA (its FastLanguageModel); the trainer holds its
configuration against the same rules.
"""

from __future__ import annotations

from finetune_api.predicates import Condition, MoreThan, NonEmpty, Not, OneOf, Present, both, either
from finetune_api.rule import Rule, later
from finetune_api.spread_rules import NOT_BY_DDP

_UNSLOTH = OneOf("acceleration.unsloth", (True,))
_FIELD = "acceleration.unsloth"


def _conflict(field: str, when: Condition, message: str) -> Rule:
    return Rule(field, both(_UNSLOTH, when), message)


def _later(field: str, when: Condition, what: str) -> Rule:
    return later(field, both(_UNSLOTH, when), what)


UNSLOTH_RULES: tuple[Rule, ...] = (
    _conflict(
        _FIELD,
        OneOf("distributed.gpusPerNode", (0,)),
        "Unsloth's kernels need a GPU; set distributed.gpusPerNode, or leave it false",
    ),
    _conflict(
        "precision",
        OneOf("precision", ("fp32", "fp8")),
        "Unsloth's kernels compute in bf16 or fp16; use one of these",
    ),
    _conflict(
        "quantization",
        either(
            OneOf("quantization.method", ("hqq",)),
            both(
                OneOf("quantization.method", ("bitsandbytes",)),
                either(
                    OneOf("quantization.bits", (8,)),
                    Not(OneOf("quantization.type", ("nf4",))),
                    OneOf("quantization.doubleQuantization", (False,)),
                    Present("quantization.computeDtype"),
                ),
            ),
        ),
        "Unsloth's kernels read bitsandbytes' nf4 with double quantization, computed in precision; write "
        "quantization: {bits: 4}, or drop it",
    ),
    _conflict(
        "acceleration.fusedAdapters",
        OneOf("acceleration.fusedAdapters", (True,)),
        "Unsloth computes adapters by itself; leave it unset",
    ),
    _conflict(
        "method.lora.dora",
        OneOf("method.lora.dora", (True,)),
        "Unsloth's kernels leave out layers with DoRA; use one of them",
    ),
    _conflict(
        "model.trustRemoteCode",
        OneOf("model.trustRemoteCode", (True,)),
        "Unsloth's kernels are for transformers' own models, not for code that a repository carries",
    ),
    _conflict(
        "acceleration.liger",
        OneOf("acceleration.liger", (True,)),
        "Unsloth has norms, rotary embeddings and gated units of its own; leave liger unset",
    ),
    _conflict(
        "acceleration.compile",
        OneOf("acceleration.compile", (True,)),
        "Unsloth's layers are kernels already, which torch.compile cannot see through; leave it false",
    ),
    _conflict(
        "acceleration.flashAttention",
        Not(OneOf("acceleration.flashAttention", ("auto",))),
        "Unsloth chooses its attention itself; use auto",
    ),
    _conflict(
        "acceleration.activationOffload",
        OneOf("acceleration.activationOffload", (True,)),
        "Unsloth's own gradient checkpointing holds activations in host memory; use gradientCheckpointing",
    ),
    _conflict(
        "acceleration.keepAttention",
        OneOf("acceleration.keepAttention", (True,)),
        "Unsloth's own gradient checkpointing chooses what is kept; leave it false",
    ),
    _later(_FIELD, Not(OneOf("stage", ("sft", "pt"))), "Unsloth with preference stages; leave it false"),
    _later(
        _FIELD,
        either(Present("method.full"), Present("method.freeze")),
        "Unsloth with method full or freeze; use lora, or leave it false",
    ),
    _later(
        _FIELD,
        either(
            MoreThan("distributed.gpusPerNode", 1),
            MoreThan("distributed.nodes", 1),
            NOT_BY_DDP,
        ),
        "Unsloth on several devices, or under DeepSpeed or FSDP2; use one GPU with strategy auto, or leave it false",
    ),
    _later(
        "method.lora.init",
        OneOf("method.lora.init", ("pissa", "olora")),
        "Unsloth with starts from the weights; use init: default",
    ),
    _later(
        "method.lora.modulesToSave",
        NonEmpty("method.lora.modulesToSave"),
        "Unsloth with modules trained in full; leave it empty",
    ),
    _later("output.merge", Present("output.merge"), "merging what Unsloth trained; merge the adapter later"),
)
