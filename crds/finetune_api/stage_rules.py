"""The rules of stages: which data each takes, and what it cannot be combined with."""

from __future__ import annotations

from finetune_api.predicates import Condition, Custom, Data, MoreThan, Not, OneOf, Present, both, either, lookup
from finetune_api.rule import Rule, later
from finetune_api.spread_rules import NOT_BY_DDP, SHARDED
from finetune_api.stages import PREFERENCE_NUMBERS, PREFERENCE_STAGES, REFERENCE_STAGES, STAGE_FORMATS


def _other_formats(stages: tuple[str, ...]) -> Condition:
    """A source has a format that none of ``stages``, which take the same ones, takes."""
    (formats,) = {taken for stage, taken in STAGE_FORMATS.items() if stage in stages}

    def holds(data: Data) -> bool:
        sources = lookup(data, "dataset.sources") or []
        return lookup(data, "stage") in stages and any(source["format"] not in formats for source in sources)

    def listed(values: tuple[str, ...]) -> str:
        return "[" + ", ".join(f"'{value}'" for value in values) + "]"

    return Custom(
        holds,
        f"self.stage in {listed(stages)} && self.dataset.sources.exists(s, !(s.format in {listed(formats)}))",
    )


_PREFERENCE = OneOf("stage", PREFERENCE_STAGES)

STAGE_RULES: tuple[Rule, ...] = (
    Rule(
        "dataset.sources",
        _other_formats(("sft",)),
        "stage sft trains conversations: give each source the format alpaca, sharegpt or openai, or set the stage that "
        "the data is for (pt: text; dpo, orpo, rm: preference; kto: kto)",
    ),
    Rule(
        "dataset.sources",
        _other_formats(("pt",)),
        "stage pt trains plain text: give each source the format text",
    ),
    Rule(
        "dataset.sources",
        _other_formats(("dpo", "orpo", "rm")),
        "stages dpo, orpo and rm compare two answers: give each source the format preference",
    ),
    Rule(
        "dataset.sources",
        _other_formats(("kto",)),
        "stage kto learns from labelled answers: give each source the format kto",
    ),
    later(
        "dataset.packing",
        both(OneOf("dataset.packing", (True,)), _PREFERENCE),
        "packing in preference stages; leave it false",
    ),
    Rule(
        "preference",
        both(Present("preference"), Not(OneOf("stage", PREFERENCE_NUMBERS))),
        "these are numbers of stages dpo, kto and orpo; leave them unset for others",
    ),
    Rule(
        "preference.loss",
        both(OneOf("preference.loss", ("hinge", "ipo")), Not(OneOf("stage", ("dpo",)))),
        "only stage dpo has a choice of losses; leave it sigmoid",
    ),
    Rule(
        "preference.sftWeight",
        both(MoreThan("preference.sftWeight", 0.0), Not(OneOf("stage", ("dpo",)))),
        "only stage dpo adds the chosen answer's loss by weight (orpo always does); leave it 0",
    ),
    Rule(
        "preference",
        both(
            either(
                both(Present("preference.desirableWeight"), Not(OneOf("preference.desirableWeight", (1.0,)))),
                both(Present("preference.undesirableWeight"), Not(OneOf("preference.undesirableWeight", (1.0,)))),
            ),
            Not(OneOf("stage", ("kto",))),
        ),
        "only stage kto weighs desirable and undesirable answers; leave both weights 1",
    ),
    Rule(
        "hyperparameters.microBatchSize",
        both(OneOf("stage", ("kto",)), OneOf("hyperparameters.microBatchSize", (1,))),
        "stage kto estimates how far the model has moved from the other samples of a micro-batch; set 2 or more",
    ),
    Rule(
        "hyperparameters.neftuneAlpha",
        both(MoreThan("hyperparameters.neftuneAlpha", 0.0), _PREFERENCE),
        "noise on the embeddings would blur what preference stages compare; leave it 0",
    ),
    Rule(
        "template.trainOnPrompt",
        both(OneOf("template.trainOnPrompt", (True,)), _PREFERENCE),
        "preference stages judge the last answer alone; leave it false",
    ),
    Rule(
        "template",
        both(
            OneOf("stage", ("pt",)),
            either(
                Not(OneOf("template.name", ("auto",))),
                Present("template.ref"),
                Present("template.inline"),
                Present("template.system"),
                Not(OneOf("template.thinking", ("auto",))),
                OneOf("template.trainOnPrompt", (True,)),
                OneOf("template.maskHistory", (True,)),
            ),
        ),
        "stage pt trains plain text without a template; leave it unset",
    ),
    later(
        "method.lora.init",
        both(OneOf("method.lora.init", ("pissa", "olora")), OneOf("stage", REFERENCE_STAGES)),
        "PiSSA and OLoRA in stages dpo and kto, which compare with the base that these change; use init: default",
    ),
    later(
        "distributed.strategy",
        both(SHARDED, _PREFERENCE),
        "preference stages under ZeRO-3 and FSDP2; use ddp, zero2 or auto",
    ),
    later(
        "distributed.strategy",
        both(
            NOT_BY_DDP,
            OneOf("stage", REFERENCE_STAGES),
            Not(Present("method.lora")),
        ),
        "stages dpo and kto with full or freeze under DeepSpeed and FSDP2, where the copy that they compare "
        "with is not held; use ddp, or lora",
    ),
    Rule(
        "evaluation.prompts",
        Custom(
            lambda data: lookup(data, "stage") == "rm" and bool(lookup(data, "evaluation.prompts")),
            "self.stage == 'rm' && size(self.evaluation.prompts) > 0",
        ),
        "a reward model scores answers and writes none; leave prompts empty",
    ),
)
