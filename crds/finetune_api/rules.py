"""Every rule between fields, in one table: what cannot work, what is not supported yet, what a value must be.

From this table come the CRD's CEL rules, the local validation, the trainer's own, what `strategy: auto` chooses from,
the compatibility page (docs/compatibility.md) and the tests that demand equal verdicts. A rule says when a spec is
*refused*.

The combinations that no trainer can run are those of peft, bitsandbytes and DeepSpeed themselves; each rule's
message says what to do instead.
"""

from __future__ import annotations

from finetune_api.multimodal_rules import MULTIMODAL_RULES
from finetune_api.precision_rules import PRECISION_RULES
from finetune_api.predicates import (
    Custom,
    Data,
    MoreThan,
    Not,
    OneOf,
    Present,
    StartsWith,
    both,
    either,
    lookup,
)
from finetune_api.rule import SOURCES, Rule, later
from finetune_api.spread_rules import SPREAD_RULES
from finetune_api.stage_rules import STAGE_RULES
from finetune_api.unsloth_rules import UNSLOTH_RULES


def _micro_batch(data: Data) -> object:
    return lookup(data, "hyperparameters.microBatchSize")


def _bad_micro_batch(data: Data) -> bool:
    value = _micro_batch(data)
    return not (value == "auto" or (isinstance(value, int) and 1 <= value <= 1048576))


def _devices(data: Data) -> int:
    return int(lookup(data, "distributed.nodes")) * max(1, int(lookup(data, "distributed.gpusPerNode")))


def _indivisible_batch(data: Data) -> bool:
    micro = _micro_batch(data)
    if micro == "auto":
        micro = 1  # the least that it can come to
    if not isinstance(micro, int) or micro < 1:
        return False
    return int(lookup(data, "hyperparameters.globalBatchSize")) % (micro * _devices(data)) != 0


_FULL, _FREEZE, _LORA = Present("method.full"), Present("method.freeze"), Present("method.lora")
_QUANTIZED = Present("quantization")
_ON_CPU = OneOf("distributed.gpusPerNode", (0,))
_FUSED = OneOf("acceleration.fusedAdapters", (True,))
_KEPT = OneOf("acceleration.keepAttention", (True,))
_MICRO = "self.hyperparameters.microBatchSize"
_DEVICES = "(self.distributed.nodes * (self.distributed.gpusPerNode > 0 ? self.distributed.gpusPerNode : 1))"

CONFLICTS: tuple[Rule, ...] = (
    Rule(
        "method",
        either(both(_FULL, _FREEZE), both(_FULL, _LORA), both(_FREEZE, _LORA)),
        "set exactly one of full, freeze and lora",
    ),
    Rule(
        "method",
        both(Not(_FULL), Not(_FREEZE), Not(_LORA), Not(Present("quantization.bits"))),
        "set one of full, freeze and lora, such as lora: {}",
        "invalid",
    ),
    Rule(
        "method.full",
        both(_QUANTIZED, _FULL),
        "quantized weights cannot be trained in full; use lora (4 bits and lora is QLoRA), or drop quantization",
    ),
    Rule(
        "method.freeze",
        both(_QUANTIZED, _FREEZE),
        "quantized weights cannot be trained; use lora, or drop quantization",
    ),
    Rule(
        "quantization.bits",
        both(
            OneOf("quantization.method", ("bitsandbytes",)),
            Present("quantization.bits"),
            Not(OneOf("quantization.bits", (4, 8))),
        ),
        "bitsandbytes has 4 and 8 bits",
        "invalid",
    ),
    Rule(
        "quantization.bits",
        both(
            _QUANTIZED,
            OneOf("quantization.method", ("bitsandbytes", "hqq")),
            Not(Present("quantization.bits")),
        ),
        "say how many bits, such as bits: 4",
        "invalid",
    ),
    later(
        "method.lora.init",
        both(OneOf("method.lora.init", ("pissa", "olora")), _QUANTIZED),
        "PiSSA and OLoRA on a quantized base, whose full weights they start from; use init: default",
    ),
    later(
        "method.lora.init",
        both(OneOf("method.lora.init", ("pissa", "olora")), OneOf("method.lora.dora", (True,))),
        "PiSSA and OLoRA with DoRA; use one of them",
    ),
    Rule(
        "method.freeze.trainableLayers",
        both(_FREEZE, OneOf("method.freeze.trainableLayers", (0,))),
        "0 trains nothing; n > 0 trains the last n layers, n < 0 the first n",
        "invalid",
    ),
    Rule(
        "output.merge",
        both(Present("output.merge"), Not(_LORA), either(_FULL, _FREEZE)),
        "merging is for adapters; full and freeze deliver whole weights anyway",
    ),
    *(
        Rule(field, both(condition, _ON_CPU), f"{what} a GPU; set distributed.gpusPerNode, or {instead}")
        for field, condition, what, instead in (
            (
                "acceleration.flashAttention",
                OneOf("acceleration.flashAttention", ("fa2", "fa3", "flex")),
                "these kernels need",
                "use auto",
            ),
            ("acceleration.liger", OneOf("acceleration.liger", (True,)), "Liger's kernels need", "leave it unset"),
            (
                "acceleration.activationOffload",
                OneOf("acceleration.activationOffload", (True,)),
                "activations are offloaded from",
                "leave it false",
            ),
            (
                "hyperparameters.optimizer",
                OneOf("hyperparameters.optimizer", ("adamw8bit", "paged_adamw8bit")),
                "8-bit optimizers need",
                "use adamw",
            ),
        )
    ),
    later(
        "acceleration.compile",
        both(OneOf("acceleration.compile", (True,)), OneOf("quantization.method", ("hqq",))),
        "compiled layers of hqq's weights; leave it false, or use bitsandbytes",
    ),
    Rule(
        "acceleration.liger",
        both(OneOf("acceleration.liger", (True,)), OneOf("acceleration.compile", (True,))),
        "compiled layers make kernels of norms, rotary embeddings and gated units themselves; leave liger unset, which "
        "keeps its fused loss",
    ),
    Rule(
        "acceleration.keepAttention",
        both(_KEPT, Not(OneOf("acceleration.gradientCheckpointing", (True,)))),
        "it is for layers that are made again, others keep attention's output anyway; set gradientCheckpointing, or "
        "leave it false",
    ),
    Rule(
        "acceleration.keepAttention",
        both(_KEPT, OneOf("acceleration.flashAttention", ("disabled",))),
        "plain attention is not a kernel whose output could be kept; use flashAttention: auto, or leave it false",
    ),
    later(
        "acceleration.keepAttention",
        both(_KEPT, OneOf("acceleration.flashAttention", ("flex",))),
        "keeping the output of flex; use flashAttention: auto, or leave it false",
    ),
    Rule(
        "acceleration.fusedAdapters",
        both(_FUSED, either(_FULL, _FREEZE)),
        "adapters are LoRA's; leave it unset, or use method lora",
    ),
    Rule(
        "acceleration.fusedAdapters",
        both(_FUSED, either(OneOf("method.lora.dora", (True,)), MoreThan("method.lora.dropout", 0))),
        "adapters with dropout or DoRA are not the two products alone; leave it unset, or use dropout 0 without DoRA",
    ),
    later(
        "acceleration.fusedAdapters",
        both(
            _FUSED,
            _QUANTIZED,
            either(
                OneOf("quantization.method", ("hqq",)),
                both(OneOf("quantization.method", ("bitsandbytes",)), OneOf("quantization.bits", (8,))),
            ),
        ),
        "fused adapters on hqq's weights and bitsandbytes' 8 bits; leave it unset, or use bitsandbytes with 4 bits",
    ),
    Rule(
        "output.claim.accessMode",
        both(
            MoreThan("distributed.nodes", 1),
            Not(Present("output.claim.name")),
            Not(OneOf("output.claim.accessMode", ("ReadWriteMany",))),
        ),
        "pods on several nodes write to one claim: use ReadWriteMany, or name a claim that has it",
        cluster_only=True,
    ),
    Rule(
        "template.ref",
        both(Present("template.ref"), Not(OneOf("template.name", ("auto",)))),
        "set name or ref, not both",
    ),
    Rule(
        "template.inline",
        both(Present("template.inline"), either(Present("template.ref"), Not(OneOf("template.name", ("auto",))))),
        "set one of name, ref and inline",
    ),
    Rule(
        "template.maskHistory",
        both(OneOf("template.maskHistory", (True,)), OneOf("template.trainOnPrompt", (True,))),
        "maskHistory trains less than every answer and trainOnPrompt more: choose one",
    ),
    Rule(
        "hyperparameters.microBatchSize",
        Custom(
            _bad_micro_batch,
            f"!({_MICRO} == 'auto' || (type({_MICRO}) == int && {_MICRO} >= 1 && {_MICRO} <= 1048576))",
        ),
        "must be a positive integer or auto",
        "invalid",
    ),
    Rule(
        "hyperparameters.globalBatchSize",
        Custom(
            _indivisible_batch,
            f"(type({_MICRO}) == int && {_MICRO} >= 1 && "
            f"self.hyperparameters.globalBatchSize % ({_MICRO} * {_DEVICES}) != 0) || "
            f"({_MICRO} == 'auto' && self.hyperparameters.globalBatchSize % {_DEVICES} != 0)",
        ),
        "must be a multiple of microBatchSize x nodes x gpusPerNode",
        "invalid",
    ),
    later(
        "method.lora.targetModules",
        Custom(
            lambda data: "lm_head" in (lookup(data, "method.lora.targetModules") or []),
            "has(self.method.lora) && 'lm_head' in self.method.lora.targetModules",
        ),
        "an adapter on the output head, which the fused loss never runs; put it into modulesToSave",
    ),
    Rule(
        "model.source",
        StartsWith("model.source", ("file://",)),
        "file:// is this machine's disk, which pods do not have; use hf:// or pvc://, or finetune run",
        "invalid",
        cluster_only=True,
    ),
    Rule(
        "uri",
        StartsWith("uri", ("file://",)),
        "file:// is this machine's disk, which pods do not have; use configmap://, pvc:// or hf://, or finetune run",
        "invalid",
        SOURCES,
        cluster_only=True,
    ),
    Rule(
        "secretRef",
        both(StartsWith("uri", ("http://",)), Present("secretRef")),
        "a token over http can be read by everybody on the way; use https",
        "invalid",
        SOURCES,
    ),
    Rule(
        "secretRef",
        both(StartsWith("uri", ("pvc://", "configmap://", "file://")), Present("secretRef")),
        "claims, ConfigMaps and files need no token; leave it unset",
        "invalid",
        SOURCES,
    ),
)


UNSUPPORTED: tuple[Rule, ...] = (
    later("model.source", StartsWith("model.source", ("s3://", "oci://")), "use hf:// or pvc://"),
    later("distributed.sequenceParallel", MoreThan("distributed.sequenceParallel", 1), "leave it 1"),
    later("output.push", Present("output.push"), "fetch the result with finetune fetch"),
    later("tracking.tensorboard", Present("tracking.tensorboard"), "read progress.jsonl in the output"),
    later("tracking.mlflow", Present("tracking.mlflow"), "read progress.jsonl in the output"),
    later("tracking.wandb", Present("tracking.wandb"), "read progress.jsonl in the output"),
)

RULES: tuple[Rule, ...] = (
    *CONFLICTS,
    *PRECISION_RULES,
    *SPREAD_RULES,
    *MULTIMODAL_RULES,
    *STAGE_RULES,
    *UNSLOTH_RULES,
    *UNSUPPORTED,
)

IMMUTABLE_FIELDS: tuple[str, ...] = (
    "stage",
    "preference",
    "model",
    "dataset",
    "multimodal",
    "method",
    "quantization",
    "precision",
    "template",
    "acceleration",
    "hyperparameters",
    "distributed",
    "resources",
    "output",
    "evaluation",
    "tracking",
    "scheduling.profile",
    "scheduling.nodeSelector",
    "scheduling.tolerations",
    "scheduling.priorityClassName",
    "scheduling.schedulerName",
)
"""All of the spec but `runPolicy` and `scheduling.queueName`; a test holds this against the model."""

IMMUTABLE_MESSAGE = "cannot be changed once the job is accepted; create another FineTuneJob"
