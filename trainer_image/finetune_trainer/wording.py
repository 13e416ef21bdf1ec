"""How a job's text becomes tokens: by a chat template for conversations and answers, as it is for plain text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.stages import STAGE_FORMATS
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.encode import ConversationEncoder
from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import MediaKind
from finetune_trainer.samples import Conversations, Labelled, Pairs, SampleEncoder, Texts
from finetune_trainer.templates import Template, resolve_template


@dataclass(frozen=True)
class Wording:
    """What prepare encodes by, and what the export carries on."""

    encoder: SampleEncoder
    chat_template: str | None
    """Jinja; None where the tokenizer has none and none is trained."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end an answer or a text."""
    replace_eos: bool
    """Whether the export's tokenizer must have ``eos_token`` as its end of sequence."""
    eos_token: str
    """The token that ends an answer or a text."""
    facts: dict[str, Any]
    """All of it that tokens follow from, for the digest of the data."""


def find_wording(config: TrainerConfig, tokenizer: Any, media: Mapping[MediaKind, str] | None = None) -> Wording:
    """The wording of ``config``'s stage. Stages that share a format share their data too. ``media``: the model's
    placeholder of each kind that it takes.

    Raises:
        TrainerError: TEMPLATE_INVALID, MODEL_INVALID.
    """
    return _plain(config, tokenizer) if config.stage == "pt" else _templated(config, tokenizer, media)


def _plain(config: TrainerConfig, tokenizer: Any) -> Wording:
    end = tokenizer.eos_token
    if end is None:
        raise TrainerError(
            ExitCode.MODEL_INVALID,
            "spec.model.source: the model's tokenizer has no end-of-text token (eos_token), which stage pt puts behind "
            "each text; set one in tokenizer_config.json",
        )
    return Wording(
        encoder=Texts(tokenizer, config.max_length),
        chat_template=tokenizer.chat_template,
        stop_token_ids=(tokenizer.eos_token_id,),
        replace_eos=False,
        eos_token=end,
        facts={"kind": "text", "start": tokenizer.bos_token, "end": end},
    )


def _templated(config: TrainerConfig, tokenizer: Any, media: Mapping[MediaKind, str] | None) -> Wording:
    template = resolve_template(config.template, tokenizer, config.chat_template)
    stops = tuple(_stop_tokens(template, tokenizer))
    jinja = template.jinja(config.template.system, config.template.thinking)
    encoder: SampleEncoder
    if config.stage == "sft":
        encoder = Conversations(
            ConversationEncoder(tokenizer, template, config.template, config.max_length, media=media)
        )
    else:
        kind = Labelled if config.stage == "kto" else Pairs
        encoder = kind(tokenizer, template, config.template, config.max_length)
    return Wording(
        encoder=encoder,
        chat_template=jinja,
        stop_token_ids=stops,
        replace_eos=template.replace_eos,
        eos_token=template.stop_words[0] if template.stop_words else tokenizer.eos_token,
        facts={
            "kind": STAGE_FORMATS[config.stage],
            "template": [template.name, jinja, template.stop_words],
            "options": config.template.model_copy(update={"date": None}).to_dict(),
            "date": config.template.date if "strftime_now" in jinja else None,
        },
    )


def _stop_tokens(template: Template, tokenizer: Any) -> list[int]:
    """Ids that end an answer.

    Raises:
        TrainerError: TEMPLATE_INVALID where the tokenizer lacks the template's.
    """
    vocabulary = tokenizer.get_vocab()
    for word in template.stop_words:
        if word not in vocabulary:
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                f"spec.template.name: {template.name} ends an answer with {word}, which is no token of this model's "
                "tokenizer; name a template of the model's family, or auto",
            )
    ids = [vocabulary[word] for word in template.stop_words]
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return list(dict.fromkeys(ids))
