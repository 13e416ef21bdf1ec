"""Manifests for tests: a valid one, and one edit away from it every refusal that the API promises.

The same cases go to pydantic and to a real API server; their verdicts must be equal.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from template_cases import DELETE, Manifest, chat_template


def finetunejob(name: str = "job", **edits: Any) -> Manifest:
    """A valid FineTuneJob; ``edits`` are values by dotted path below spec, with ``__`` for dots."""
    manifest: Manifest = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "hf://org/model"},
            "dataset": {"sources": [{"uri": "configmap://rows/rows.jsonl"}]},
            "method": {"lora": {}},
        },
    }
    for path, value in edits.items():
        set_path(manifest["spec"], path.replace("__", "."), value)
    return manifest


def set_path(node: Any, path: str, value: Any) -> None:
    """Set, or with DELETE remove, what ``path`` names; ``[n]`` is not needed, a number does as a part."""
    *parents, last = path.split(".")
    for part in parents:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    if value is DELETE:
        del node[last]
    elif isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value


@dataclass(frozen=True)
class Case:
    """An edit of the valid manifest's spec and, where it is refused, a piece of the refusal."""

    sentence: str
    edits: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None

    def manifest(self, name: str = "job") -> Manifest:
        """The edited manifest."""
        document = finetunejob(name)
        for path, value in self.edits.items():
            set_path(document["spec"], path, value if value is DELETE else copy.deepcopy(value))
        return document


SOURCE = "dataset.sources.0"
LATER = "not supported yet"
TEXT = {"uri": "configmap://a/b", "format": "text"}
PAIRS = {"uri": "configmap://a/b", "format": "preference"}
LABELLED = {"uri": "configmap://a/b", "format": "kto"}
UNSLOTH = {"acceleration.unsloth": True, "distributed.gpusPerNode": 1}
MADE_AGAIN = {"gradientCheckpointing": True, "keepAttention": True}

CASES: tuple[Case, ...] = (
    Case("the smallest manifest is taken"),
    Case("created at rest", {"runPolicy": {"suspend": True}}),
    Case("full parameters", {"method": {"full": {}}}),
    Case(
        "every field that is supported",
        {
            "stage": "sft",
            "model": {
                "source": "pvc://claim/dir",
                "revision": "v1",
                "trustRemoteCode": True,
                "secretRef": {"name": "s"},
            },
            SOURCE: {
                "uri": "hf://org/data/train.jsonl",
                "format": "openai",
                "columns": {"messages": "chat"},
                "split": "train",
                "weight": 1,
                "sha256": "0123456789abcdef" * 4,
                "secretRef": {"name": "s", "key": "k"},
            },
            "dataset.onError": "skip",
            "dataset.maxLength": 512,
            "dataset.packing": True,
            "dataset.validation": {"fraction": 0.1},
            "method.lora": {"rank": 16, "alpha": 16, "dropout": 0.1, "targetModules": ["q_proj"], "rslora": True},
            "precision": "fp32",
            "template": {"name": "qwen", "system": "Be brief.", "maskHistory": True},
            "acceleration": {"flashAttention": "sdpa", "gradientCheckpointing": True},
            "hyperparameters": {"maxSteps": 10, "learningRate": 1e-3, "globalBatchSize": 4, "microBatchSize": 2},
            "distributed": {"gpusPerNode": 1},
            "resources": {"cpu": "500m", "memory": "4Gi"},
            "scheduling": {
                "nodeSelector": {"a": "b"},
                "tolerations": [{"operator": "Exists"}],
                "schedulerName": "x",
                "priorityClassName": "p",
                "queueName": "team.q",
            },
            "output": {"claim": {"name": "mine"}, "checkpoint": {"everySteps": 5, "keep": 1}},
            "evaluation": {"everySteps": 5, "prompts": ["Hello?"], "maxNewTokens": 8},
            "runPolicy": {
                "suspend": True,
                "backoffLimit": 0,
                "activeDeadlineSeconds": 3600,
                "ttlSecondsAfterFinished": 0,
                "checkpointOnTerminationSeconds": 30,
            },
        },
    ),
    Case(
        "freeze", {"method": {"freeze": {"trainableLayers": -2, "trainableModules": ["mlp"], "extraModules": ["norm"]}}}
    ),
    Case(
        "variants of lora",
        {"method.lora": {"dora": True, "init": "gaussian", "loraPlusRatio": 16, "modulesToSave": ["norm"]}},
    ),
    Case("a tower that is trained", {"multimodal": {"freezeVisionTower": False, "imageMaxPixels": 200704}}),
    Case("pissa", {"method.lora.init": "pissa"}),
    Case("full without masters", {"method": {"full": {"masterWeights": "none"}}}),
    Case("qlora by bits alone", {"method": {}, "quantization": {"bits": 4}}),
    Case(
        "qlora, all said",
        {"quantization": {"bits": 4, "type": "fp4", "doubleQuantization": False, "computeDtype": "fp32"}},
    ),
    Case("dora on hqq", {"quantization": {"method": "hqq", "bits": 4}, "method.lora.dora": True}),
    Case("a gptq checkpoint", {"quantization": {"method": "gptq"}}),
    Case(
        "kernels on a GPU",
        {
            "acceleration": {"flashAttention": "fa2", "liger": True, "activationOffload": True},
            "hyperparameters.optimizer": "paged_adamw8bit",
            "distributed": {"gpusPerNode": 1},
        },
    ),
    Case(
        "compile and adafactor on the CPU",
        {
            "acceleration": {"compile": True, "liger": False, "fusedAdapters": True},
            "hyperparameters.optimizer": "adafactor",
        },
    ),
    Case("8-bit floats", {"precision": "fp8", "distributed": {"gpusPerNode": 1}}),
    Case("a merge", {"output": {"merge": {"dtype": "fp16"}}}),
    Case("half precision on a GPU", {"precision": "fp16", "distributed": {"gpusPerNode": 1}}),
    Case("an automatic micro-batch", {"hyperparameters": {"microBatchSize": "auto"}}),
    Case("two GPUs", {"distributed": {"gpusPerNode": 2}}),
    Case("a strategy on one CPU", {"distributed": {"strategy": "zero2"}}),
    Case("weights in host memory", {"distributed": {"strategy": "zero3", "offload": "parameters", "gpusPerNode": 1}}),
    Case("offload by the strategy that is found", {"distributed": {"offload": "optimizer", "gpusPerNode": 4}}),
    Case(
        "raw deepspeed",
        {"distributed": {"strategy": "zero2", "deepspeed": {"zero_optimization": {"overlap_comm": True}}}},
    ),
    Case("fsdp2", {"method": {"full": {}}, "distributed": {"strategy": "fsdp2", "gpusPerNode": 2}}),
    Case("data over the web", {SOURCE: {"uri": "https://host/rows.jsonl", "secretRef": {"name": "s"}}}),
    Case("data over the web in the open", {SOURCE: {"uri": "http://host/rows.jsonl"}}),
    Case("data in an object store", {SOURCE: {"uri": "s3://bucket/rows.jsonl", "secretRef": {"name": "s"}}}),
    Case("a weighted source", {SOURCE: {"uri": "configmap://a/b", "weight": 2.5}}),
    Case("integers where floats are meant", {"hyperparameters": {"epochs": 1, "weightDecay": 0}}),
    # Types, bounds, unknown names.
    Case("an unknown field", {"method.lora.rnak": 8}, "rnak"),
    Case("an unknown field at the top", {"modle": {}}, "modle"),
    Case("a missing model", {"model": DELETE}, "model"),
    Case("a model without a source", {"model": {}}, "source"),
    Case("no data", {"dataset.sources": []}, "sources"),
    Case("an empty source path", {"model.source": "hf://"}, "model.source"),
    Case("a model source without a scheme", {"model.source": "org/model"}, "model.source"),
    Case("a local directory", {"model.source": "/models/x"}, "model.source"),
    Case("a negative rank", {"method.lora.rank": -8}, "rank"),
    Case("a weight of zero", {SOURCE: {"uri": "configmap://a/b", "weight": 0}}, "weight"),
    Case("a checksum in capitals", {SOURCE: {"uri": "configmap://a/b", "sha256": "A" * 64}}, "sha256"),
    Case("an unknown answer to errors", {"dataset.onError": "ignore"}, "onError"),
    Case("rank zero", {"method.lora.rank": 0}, "rank"),
    Case("a rank that is a string", {"method.lora.rank": "8"}, "rank"),
    Case("a rank that is a boolean", {"method.lora.rank": True}, "rank"),
    Case("a boolean that is a string", {"dataset.packing": "true"}, "packing"),
    Case("dropout of one", {"method.lora.dropout": 1.0}, "dropout"),
    Case("a learning rate of zero", {"hyperparameters.learningRate": 0}, "learningRate"),
    Case("an unknown precision", {"precision": "int8"}, "precision"),
    Case("an unknown stage", {"stage": "ppo"}, "stage"),
    Case("a maximal length too short", {"dataset.maxLength": 4}, "maxLength"),
    Case("a validation share above a half", {"dataset.validation": {"fraction": 0.6}}, "fraction"),
    Case("a malformed quantity", {"resources.memory": "4 GB"}, "memory"),
    Case("a queue with capitals", {"scheduling": {"queueName": "Team"}}, "queueName"),
    Case("a queue whose name fits no label", {"scheduling": {"queueName": "q" * 64}}, "queueName"),
    Case("a claim with capitals", {"output.claim": {"name": "Claim"}}, "name"),
    Case("a prompt that is too long", {"evaluation.prompts": ["x" * 20000]}, "prompts"),
    Case("a deadline at once", {"runPolicy": {"activeDeadlineSeconds": 0}}, "activeDeadlineSeconds"),
    Case("a time to live that is over", {"runPolicy": {"ttlSecondsAfterFinished": -1}}, "ttlSecondsAfterFinished"),
    Case("a suspension that is a word", {"runPolicy": {"suspend": "yes"}}, "suspend"),
    Case("no checkpoint kept", {"output.checkpoint.keep": 0}, "keep"),
    # Rules between fields.
    Case("both full and lora", {"method.full": {}}, "exactly one of full, freeze and lora"),
    Case("no method", {"method": {}}, "set one of full, freeze and lora"),
    Case("4 bits with full", {"method": {"full": {}}, "quantization": {"bits": 4}}, "cannot be trained in full"),
    Case("4 bits with freeze", {"method": {"freeze": {}}, "quantization": {"bits": 4}}, "cannot be trained"),
    Case("5 bits of bitsandbytes", {"quantization": {"bits": 5}}, "4 and 8"),
    Case("7 bits", {"quantization": {"bits": 7}}, "bits"),
    Case("quantization without bits", {"quantization": {}}, "how many bits"),
    Case(
        "8 bits under zero3",
        {"quantization": {"bits": 8}, "distributed": {"strategy": "zero3"}},
        "cannot shard bitsandbytes' 8-bit",
    ),
    Case(
        "hqq under zero3",
        {"quantization": {"method": "hqq", "bits": 4}, "distributed": {"strategy": "zero3"}},
        "hqq's weights under ZeRO-3",
    ),
    Case(
        "freeze with the tower", {"method": {"freeze": {}}, "multimodal": {"freezeVisionTower": False}}, "of the tower"
    ),
    Case(
        "freeze with the projector",
        {"method": {"freeze": {}}, "multimodal": {"freezeMultiModalProjector": False}},
        "name the projector",
    ),
    Case(
        "a tower that is trained on two GPUs",
        {"multimodal": {"freezeVisionTower": False}, "distributed": {"gpusPerNode": 2}},
        "training what sees and hears on several devices",
    ),
    Case("no room for a pixel", {"multimodal": {"imageMaxPixels": 1000}}, "multimodal.imageMaxPixels"),
    Case("pissa and dora", {"method.lora": {"init": "pissa", "dora": True}}, "use one of them"),
    Case("pissa on 4 bits", {"quantization": {"bits": 4}, "method.lora.init": "pissa"}, "PiSSA"),
    Case(
        "pissa under zero3",
        {"method.lora.init": "pissa", "distributed": {"strategy": "zero3"}},
        "PiSSA and OLoRA under ZeRO-3",
    ),
    Case("fp8 on 4 bits", {"quantization": {"bits": 4}, "precision": "fp8"}, "fp8 needs"),
    Case(
        "a merge of sharded 4 bits",
        {"quantization": {"bits": 4}, "distributed": {"strategy": "zero3"}, "output": {"merge": {}}},
        "merge the adapter later",
    ),
    Case("unsloth", UNSLOTH),
    Case("unsloth on 4 bits", {**UNSLOTH, "quantization": {"bits": 4}}),
    Case("unsloth on plain text", {**UNSLOTH, "stage": "pt", f"{SOURCE}.format": "text"}),
    Case("unsloth on a checkpoint of GPTQ's", {**UNSLOTH, "quantization": {"method": "gptq"}}),
    Case("unsloth on the CPU", {"acceleration": {"unsloth": True}}, "need a GPU; set distributed.gpusPerNode"),
    Case("unsloth in 32 bits", {**UNSLOTH, "precision": "fp32"}, "compute in bf16 or fp16"),
    Case("unsloth on 8 bits", {**UNSLOTH, "quantization": {"bits": 8}}, "nf4 with double quantization"),
    Case("unsloth on hqq", {**UNSLOTH, "quantization": {"method": "hqq", "bits": 4}}, "nf4 with double quantization"),
    Case("unsloth on fp4", {**UNSLOTH, "quantization": {"bits": 4, "type": "fp4"}}, "nf4 with double quantization"),
    Case(
        "unsloth on 4 bits quantized once",
        {**UNSLOTH, "quantization": {"bits": 4, "doubleQuantization": False}},
        "nf4 with double quantization",
    ),
    Case(
        "unsloth on 4 bits with a type of their own",
        {**UNSLOTH, "quantization": {"bits": 4, "computeDtype": "fp16"}},
        "computed in precision",
    ),
    Case("unsloth with fused adapters", {**UNSLOTH, "acceleration.fusedAdapters": True}, "computes adapters by itself"),
    Case("unsloth with dora", {**UNSLOTH, "method.lora.dora": True}, "leave out layers with DoRA"),
    Case("unsloth on code of a repository", {**UNSLOTH, "model.trustRemoteCode": True}, "transformers' own models"),
    Case("unsloth with liger", {**UNSLOTH, "acceleration.liger": True}, "leave liger unset"),
    Case("unsloth, compiled", {**UNSLOTH, "acceleration.compile": True}, "kernels already"),
    Case("unsloth with an attention", {**UNSLOTH, "acceleration.flashAttention": "sdpa"}, "chooses its attention"),
    Case(
        "unsloth with activations in host memory",
        {**UNSLOTH, "acceleration.activationOffload": True},
        "Unsloth's own gradient checkpointing",
    ),
    Case(
        "unsloth with attention kept",
        {**UNSLOTH, "acceleration.keepAttention": True, "acceleration.gradientCheckpointing": True},
        "chooses what is kept",
    ),
    Case("8-bit floats on the CPU", {"precision": "fp8"}, "fp8 needs a GPU"),
    Case(
        "8-bit floats under zero2",
        {"precision": "fp8", "distributed": {"gpusPerNode": 1, "strategy": "zero2"}},
        "fp8 under DeepSpeed",
    ),
    Case(
        "dora on 8-bit floats",
        {"precision": "fp8", "method.lora.dora": True, "distributed": {"gpusPerNode": 1}},
        "DoRA on an fp8 base",
    ),
    Case(
        "8-bit floats of some layers",
        {"precision": "fp8", "method": {"freeze": {}}, "distributed": {"gpusPerNode": 1}},
        "fp8 with method freeze",
    ),
    Case("flash attention on the CPU", {"acceleration": {"flashAttention": "fa3"}}, "need a GPU"),
    Case("liger on the CPU", {"acceleration": {"liger": True}}, "need a GPU"),
    Case(
        "liger in compiled layers",
        {"acceleration": {"liger": True, "compile": True}, "distributed": {"gpusPerNode": 1}},
        "leave liger unset, which keeps its fused loss",
    ),
    Case(
        "a fused loss in compiled layers",
        {"acceleration": {"compile": True}, "distributed": {"gpusPerNode": 1}},
    ),
    Case("attention kept of layers that are made again", {"acceleration": MADE_AGAIN}),
    Case(
        "attention kept of layers that are not", {"acceleration": {"keepAttention": True}}, "set gradientCheckpointing"
    ),
    Case(
        "plain attention kept",
        {"acceleration": {**MADE_AGAIN, "flashAttention": "disabled"}},
        "not a kernel whose output could be kept",
    ),
    Case(
        "flex kept",
        {"acceleration": {**MADE_AGAIN, "flashAttention": "flex"}, "distributed": {"gpusPerNode": 1}},
        "keeping the output of flex",
    ),
    Case("offload on the CPU", {"acceleration": {"activationOffload": True}}, "from a GPU"),
    Case("an 8-bit optimizer on the CPU", {"hyperparameters.optimizer": "adamw8bit"}, "need a GPU"),
    Case(
        "compile under zero3",
        {"acceleration": {"compile": True}, "distributed": {"strategy": "zero3"}},
        "ZeRO-3 shares out",
    ),
    Case(
        "hqq and compile",
        {"acceleration": {"compile": True}, "quantization": {"method": "hqq", "bits": 4}},
        "compiled layers of hqq's",
    ),
    Case(
        "fused adapters of none",
        {"acceleration": {"fusedAdapters": True}, "method": {"full": {}}},
        "adapters are LoRA's",
    ),
    Case(
        "fused adapters with dropout",
        {"acceleration": {"fusedAdapters": True}, "method.lora.dropout": 0.1},
        "are not the two products alone",
    ),
    Case(
        "fused adapters on 8 bits",
        {"acceleration": {"fusedAdapters": True}, "quantization": {"bits": 8}},
        "fused adapters on hqq's",
    ),
    Case(
        "fused adapters, shared out",
        {"acceleration": {"fusedAdapters": True}, "distributed": {"strategy": "zero2"}},
        "fused adapters under DeepSpeed",
    ),
    Case("half precision on the CPU", {"precision": "fp16"}, "fp16 needs a GPU"),
    Case(
        "half precision without masters",
        {
            "precision": "fp16",
            "method": {"full": {"masterWeights": "none"}},
            "distributed": {"gpusPerNode": 1},
        },
        "spec.method.full.masterWeights: fp16 scales the loss",
    ),
    Case(
        "without masters, shared out",
        {"method": {"full": {"masterWeights": "none"}}, "distributed": {"gpusPerNode": 2, "strategy": "zero2"}},
        "training without masters under ZeRO",
    ),
    Case(
        "without masters, in host memory",
        {"method": {"full": {"masterWeights": "none"}}, "distributed": {"gpusPerNode": 1, "offload": "optimizer"}},
        "training without masters under ZeRO",
    ),
    Case(
        "without masters under FSDP2",
        {"method": {"full": {"masterWeights": "none"}}, "distributed": {"gpusPerNode": 2, "strategy": "fsdp2"}},
    ),
    Case(
        "half precision with a module in full",
        {"precision": "fp16", "method.lora.modulesToSave": ["norm"], "distributed": {"gpusPerNode": 1}},
    ),
    Case(
        "flash attention in 32 bits",
        {"precision": "fp32", "acceleration": {"flashAttention": "fa2"}, "distributed": {"gpusPerNode": 1}},
        "computes in bf16 and fp16 alone",
    ),
    Case("freeze of no layer", {"method": {"freeze": {"trainableLayers": 0}}}, "0 trains nothing"),
    Case("a merge of whole weights", {"method": {"full": {}}, "output": {"merge": {}}}, "merging is for adapters"),
    # Stages.
    Case("pre-training on text", {"stage": "pt", SOURCE: TEXT, "dataset.packing": True}),
    Case(
        "dpo",
        {"stage": "dpo", SOURCE: PAIRS, "preference": {"beta": 0.2, "loss": "ipo", "sftWeight": 0.5}},
    ),
    Case("dpo with its defaults", {"stage": "dpo", SOURCE: PAIRS}),
    Case("orpo", {"stage": "orpo", SOURCE: PAIRS, "preference": {"beta": 1}}),
    Case("a reward model", {"stage": "rm", SOURCE: PAIRS}),
    Case(
        "kto",
        {
            "stage": "kto",
            SOURCE: {**LABELLED, "columns": {"label": "good"}},
            "preference": {"desirableWeight": 1.5, "undesirableWeight": 1},
            "hyperparameters": {"microBatchSize": 2},
        },
    ),
    Case("sft on text", {SOURCE: TEXT}, "stage sft trains conversations"),
    Case("sft on preferences", {SOURCE: PAIRS}, "stage sft trains conversations"),
    Case("pt on conversations", {"stage": "pt"}, "stage pt trains plain text"),
    Case("dpo on conversations", {"stage": "dpo"}, "compare two answers"),
    Case("rm on labels", {"stage": "rm", SOURCE: LABELLED}, "compare two answers"),
    Case(
        "kto on preferences",
        {"stage": "kto", SOURCE: PAIRS, "hyperparameters": {"microBatchSize": 2}},
        "learns from labelled answers",
    ),
    Case(
        "one source of two is for another stage",
        {"stage": "pt", "dataset.sources": [TEXT, {"uri": "configmap://a/c", "format": "openai"}]},
        "stage pt trains plain text",
    ),
    Case(
        "preferences under zero3",
        {"stage": "orpo", SOURCE: PAIRS, "distributed": {"strategy": "zero3"}},
        "preference stages under ZeRO-3",
    ),
    Case(
        "dpo of all weights under zero2",
        {"stage": "dpo", SOURCE: PAIRS, "method": {"full": {}}, "distributed": {"strategy": "zero2"}},
        "with full or freeze under DeepSpeed",
    ),
    Case(
        "packed preferences", {"stage": "dpo", SOURCE: PAIRS, "dataset.packing": True}, "packing in preference stages"
    ),
    Case("preference numbers for sft", {"preference": {}}, "numbers of stages dpo, kto and orpo"),
    Case("preference numbers for a reward model", {"stage": "rm", SOURCE: PAIRS, "preference": {}}, "numbers of"),
    Case("a loss for orpo", {"stage": "orpo", SOURCE: PAIRS, "preference": {"loss": "ipo"}}, "a choice of losses"),
    Case(
        "a weighted loss of answers for orpo",
        {"stage": "orpo", SOURCE: PAIRS, "preference": {"sftWeight": 1}},
        "only stage dpo adds",
    ),
    Case("weights for dpo", {"stage": "dpo", SOURCE: PAIRS, "preference": {"desirableWeight": 2}}, "only stage kto"),
    Case("a beta of zero", {"stage": "dpo", SOURCE: PAIRS, "preference": {"beta": 0}}, "beta"),
    Case("an unknown loss", {"stage": "dpo", SOURCE: PAIRS, "preference": {"loss": "kto_pair"}}, "loss"),
    Case("kto one by one", {"stage": "kto", SOURCE: LABELLED}, "set 2 or more"),
    Case(
        "noise on preferences",
        {"stage": "orpo", SOURCE: PAIRS, "hyperparameters": {"neftuneAlpha": 5}},
        "would blur",
    ),
    Case(
        "preferences about the prompt",
        {"stage": "dpo", SOURCE: PAIRS, "template": {"trainOnPrompt": True}},
        "judge the last answer alone",
    ),
    Case("a template for text", {"stage": "pt", SOURCE: TEXT, "template": {"name": "qwen"}}, "without a template"),
    Case("a system message for text", {"stage": "pt", SOURCE: TEXT, "template": {"system": "x"}}, "without a template"),
    Case(
        "pissa under dpo",
        {"stage": "dpo", SOURCE: PAIRS, "method.lora.init": "pissa"},
        "PiSSA and OLoRA in stages dpo and kto",
    ),
    Case(
        "prompts for a reward model",
        {"stage": "rm", SOURCE: PAIRS, "evaluation": {"prompts": ["Hello?"]}},
        "scores answers and writes none",
    ),
    Case("a template in the job", {"template": {"inline": chat_template()["spec"]}}),
    Case(
        "a template in the job that cannot work",
        {"template": {"inline": chat_template(thoughtWords=["<think>"])["spec"]}},
        "spec.template.inline.thoughtWords: must be two",
    ),
    Case(
        "a template in the job and a ref", {"template": {"inline": chat_template()["spec"], "ref": "x"}}, "one of name"
    ),
    Case("a template's name and ref", {"template": {"name": "qwen", "ref": "mine"}}, "not both"),
    Case("two ways to mask", {"template": {"maskHistory": True, "trainOnPrompt": True}}, "choose one"),
    Case("a micro-batch of zero", {"hyperparameters": {"microBatchSize": 0}}, "positive integer or auto"),
    Case("a micro-batch that is a word", {"hyperparameters": {"microBatchSize": "big"}}, "positive integer or auto"),
    Case(
        "an indivisible batch",
        {"hyperparameters": {"globalBatchSize": 8, "microBatchSize": 3}},
        "multiple of microBatchSize",
    ),
    Case(
        "two nodes",
        {"distributed": {"nodes": 2}, "output": {"claim": {"accessMode": "ReadWriteMany"}}},
    ),
    Case("two nodes and a claim by name", {"distributed": {"nodes": 2}, "output": {"claim": {"name": "shared"}}}),
    Case("two nodes and a claim of one", {"distributed": {"nodes": 2}}, "output.claim.accessMode: pods on several"),
    Case(
        "an indivisible batch over nodes",
        {"hyperparameters": {"globalBatchSize": 8}, "distributed": {"nodes": 3}, "output": {"claim": {"name": "c"}}},
        "multiple of microBatchSize",
    ),
    Case(
        "an automatic micro-batch of an indivisible batch",
        {
            "hyperparameters": {"globalBatchSize": 8, "microBatchSize": "auto"},
            "distributed": {"nodes": 3},
            "output": {"claim": {"name": "c"}},
        },
        "multiple of microBatchSize",
    ),
    Case(
        "offload without zero",
        {"distributed": {"offload": "optimizer", "strategy": "ddp"}},
        "offload is of what is shared out",
    ),
    *(
        Case(
            f"{name} with {offload} in host memory by the strategy that is found",
            {**edits, "distributed": {"offload": offload, "gpusPerNode": 1}},
            refused,
        )
        for name, offload, edits, refused in (
            ("fp8", "optimizer", {"precision": "fp8"}, "fp8 under DeepSpeed"),
            ("8 bits", "parameters", {"quantization": {"bits": 8}}, "cannot shard bitsandbytes' 8-bit"),
            ("pissa", "parameters", {"method.lora.init": "pissa"}, "PiSSA and OLoRA under ZeRO-3"),
            ("compile", "parameters", {"acceleration": {"compile": True}}, "ZeRO-3 shares out"),
            ("orpo", "parameters", {"stage": "orpo", SOURCE: PAIRS}, "preference stages under ZeRO-3"),
            (
                "dpo of all weights",
                "optimizer",
                {"stage": "dpo", SOURCE: PAIRS, "method": {"full": {}}},
                "with full or freeze under DeepSpeed",
            ),
        )
    ),
    Case(
        "parameters in host memory under zero2",
        {"distributed": {"strategy": "zero2", "offload": "parameters"}},
        "only zero3 can hold parameters",
    ),
    Case(
        "an 8-bit optimizer in host memory",
        {"hyperparameters": {"optimizer": "adamw8bit"}, "distributed": {"strategy": "zero2", "offload": "optimizer"}},
        "cannot update state in host memory",
    ),
    Case(
        "raw deepspeed without deepspeed", {"distributed": {"deepspeed": {"a": 1}}}, "strategy of DeepSpeed's by name"
    ),
    Case(
        "offload under fsdp2",
        {"distributed": {"offload": "optimizer", "strategy": "fsdp2", "gpusPerNode": 2}},
        "offload under FSDP2",
    ),
    Case("fsdp2 on CPUs", {"distributed": {"strategy": "fsdp2"}}, "fsdp2 on CPUs"),
    Case(
        "fsdp2 of some layers",
        {"method": {"freeze": {}}, "distributed": {"strategy": "fsdp2", "gpusPerNode": 2}},
        "fsdp2 with freeze, a quantized base or fp16",
    ),
    Case(
        "fsdp2 on 4 bits",
        {"quantization": {"bits": 4}, "distributed": {"strategy": "fsdp2", "gpusPerNode": 2}},
        "fsdp2 with freeze, a quantized base or fp16",
    ),
    Case(
        "fsdp2 in half precision",
        {"precision": "fp16", "distributed": {"strategy": "fsdp2", "gpusPerNode": 2}},
        "fsdp2 with freeze, a quantized base or fp16",
    ),
    Case("an adapter on the output head", {"method.lora.targetModules": ["lm_head"]}, "output head"),
    Case("a local model on a cluster", {"model.source": "file:///models/x"}, "file:// is this machine's disk"),
    Case("local data on a cluster", {SOURCE: {"uri": "file:///rows.jsonl"}}, "file:// is this machine's disk"),
    Case("a token in the open", {SOURCE: {"uri": "http://host/a", "secretRef": {"name": "s"}}}, "use https"),
    Case("a token for a claim", {SOURCE: {"uri": "pvc://a/b", "secretRef": {"name": "s"}}}, "need no token"),
    # Not supported yet.
    Case("a model in an object store", {"model.source": "s3://bucket/model"}, LATER),
    Case("a model as an artifact", {"model.source": "oci://registry/model:1"}, LATER),
    Case("a template of one's own", {"template": {"ref": "mine"}}),
    Case("unsloth under zero3", {**UNSLOTH, "distributed.strategy": "zero3"}, "under DeepSpeed or FSDP2"),
    Case("unsloth on several devices", {**UNSLOTH, "distributed.gpusPerNode": 2}, "on several devices"),
    Case("unsloth on several nodes", {**UNSLOTH, "distributed.nodes": 2}, "on several devices"),
    Case("unsloth with an offload", {**UNSLOTH, "distributed.offload": "optimizer"}, "under DeepSpeed or FSDP2"),
    Case(
        "unsloth on preferences",
        {**UNSLOTH, "stage": "orpo", f"{SOURCE}.format": "preference"},
        "with preference stages",
    ),
    Case("unsloth on every weight", {**UNSLOTH, "method": {"full": {}}}, "with method full or freeze"),
    Case("unsloth from the weights", {**UNSLOTH, "method.lora.init": "pissa"}, "with starts from the weights"),
    Case(
        "unsloth with a module in full",
        {**UNSLOTH, "method.lora.modulesToSave": ["lm_head"]},
        "with modules trained in full",
    ),
    Case("unsloth, merged", {**UNSLOTH, "output": {"merge": {}}}, "merging what Unsloth trained"),
    Case("sequence parallelism", {"distributed": {"sequenceParallel": 2}}, LATER),
    Case("a push", {"output": {"push": {"uri": "hf://org/tuned"}}}, LATER),
    Case("tensorboard", {"tracking": {"tensorboard": {}}}, LATER),
    Case("mlflow", {"tracking": {"mlflow": {"uri": "x"}}}, LATER),
    Case("wandb", {"tracking": {"wandb": {}}}, LATER),
)
