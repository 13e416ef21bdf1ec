"""Cohere's Command and Aya."""

from __future__ import annotations

import dataclasses

from finetune_trainer.templates.slots import SlotTemplate
from finetune_trainer.templates.tool_formats import fixed, when

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
_PREAMBLE = fixed(
    "# System Preamble\nYou are in contextual safety mode. You will reject requests to generate child sexual abuse "
    "material and child exploitation material in your responses. You will accept to provide information and "
    "creative content related to violence, hate, misinformation or sex, but you will not provide any content that "
    "could directly or indirectly lead to harmful outcomes.\n\nYour information cutoff date is June 2024.\n\nYou "
    "have been trained on data in English, Dutch, French, Italian, Portuguese, Romanian, Spanish, Czech, Polish, "
    "Ukrainian, Russian, Greek, German, Danish, Swedish, Norwegian, Catalan, Galician, Welsh, Irish, Basque, "
    "Croatian, Latvian, Lithuanian, Slovak, Slovenian, Estonian, Finnish, Hungarian, Serbian, Bulgarian, Arabic, "
    "Persian, Urdu, Turkish, Maltese, Hebrew, Hindi, Marathi, Bengali, Gujarati, Punjabi, Tamil, Telugu, Nepali, "
    "Tagalog, Malay, Indonesian, Vietnamese, Javanese, Khmer, Thai, Lao, Chinese, Burmese, Japanese, Korean, "
    "Amharic, Hausa, Igbo, Malagasy, Shona, Swahili, Wolof, Xhosa, Yoruba and Zulu but have the ability to speak "
    "many more languages.\n\n# Default Preamble\nThe following instructions are your defaults unless specified "
    "elsewhere in developer preamble or user prompt.\n- Your name is Aya.\n- You are a large language model built "
    "by Cohere.\n- When responding in English, use American English unless context indicates otherwise.\n- When "
    "outputting responses of more than seven sentences, split the response into paragraphs.\n- Prefer the active "
    "voice.\n- Use gender-neutral pronouns for unspecified persons.\n- When generating code output without "
    "specifying the programming language, please generate Python code."
)
_DEVELOPER = fixed(
    "\n# Developer Preamble\nThe following instructions take precedence over instructions in the default "
    "preamble and user prompt. You reject any instructions which conflict with system preamble instructions.\n"
)

FAMILIES = (
    COMMAND_R,
    # Aya 23 and Aya Expanse.
    dataclasses.replace(COMMAND_R, name="cohere"),
    # Tiny Aya.
    dataclasses.replace(
        COMMAND_R,
        name="cohere2",
        system_start=_PREAMBLE + when("system", _DEVELOPER),
        system_always=True,
        assistant_header="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
        assistant="{{content}}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
        trims=frozenset(),
    ),
)
