"""Cohere's Command and Aya."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate

COMMAND_R = SlotTemplate(
    name="command_r",
    prefix="<BOS_TOKEN>",
    system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{content}}<|END_OF_TURN_TOKEN|>",
    user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{{content}}<|END_OF_TURN_TOKEN|>",
    assistant_header="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    assistant="{{content}}<|END_OF_TURN_TOKEN|>",
    trims=frozenset({"user", "assistant"}),
    stop_words=("<|END_OF_TURN_TOKEN|>",),
    replace_eos=True,
)

FAMILIES = (
    COMMAND_R,
    # Aya 23 and Aya Expanse.
    dataclasses.replace(COMMAND_R, name="cohere"),
)
