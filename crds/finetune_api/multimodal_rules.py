"""Rules of what sees and hears: which methods and devices can train it."""

from __future__ import annotations

from finetune_api.predicates import MoreThan, OneOf, Present, both, either
from finetune_api.rule import Rule, later

MULTIMODAL_RULES: tuple[Rule, ...] = (
    Rule(
        "multimodal.freezeVisionTower",
        both(Present("method.freeze"), OneOf("multimodal.freezeVisionTower", (False,))),
        "method freeze trains layers of the language model; name modules of the tower in method.freeze.extraModules, "
        "or use lora or full",
    ),
    later(
        "multimodal",
        both(
            either(MoreThan("distributed.nodes", 1), MoreThan("distributed.gpusPerNode", 1)),
            either(
                OneOf("multimodal.freezeVisionTower", (False,)),
                OneOf("multimodal.freezeMultiModalProjector", (False,)),
            ),
        ),
        "training what sees and hears on several devices, of which one whose batch has text alone has no "
        "gradient for it; leave both frozen, or use one device",
    ),
    Rule(
        "multimodal.freezeMultiModalProjector",
        both(Present("method.freeze"), OneOf("multimodal.freezeMultiModalProjector", (False,))),
        "method freeze trains layers of the language model; name the projector in method.freeze.extraModules, or use "
        "lora or full",
    ),
)
