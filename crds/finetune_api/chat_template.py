"""ChatTemplate: a user's own conversation format, by slots."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import API_VERSION, ApiModel
from finetune_api.metadata import ObjectMeta
from finetune_api.types import LongText, ShortText

Slot = Annotated[list[LongText], Field(max_length=16)]


class ChatTemplateSpec(ApiModel):
    """A slot is a list of pieces, joined as they are; `{{content}}` stands once for the message,
    `{{bos_token}}` and `{{eos_token}}` for the tokens of the model's tokenizer, also among the stop words."""

    format_prefix: Slot = []
    """Written once, before everything."""
    format_system: Slot = ["{{content}}"]
    """System message."""
    format_user: Annotated[list[LongText], Field(min_length=1, max_length=16)]
    """User message together with the header of the answer that follows, unless `assistantHeader` has that. It may hold
    `{{idx}}`, the turn's number from 1."""
    assistant_header: Slot = []
    """Header of an answer, where `formatUser` and `formatObservation` leave it out."""
    format_assistant: Annotated[list[LongText], Field(min_length=1, max_length=16)]
    """Answer, with the stop word that ends it."""
    format_function: Slot = []
    """Tool call of the assistant; empty means as `formatAssistant`."""
    format_observation: Slot = []
    """Turn with the result of a tool; empty means as `formatUser`."""
    format_result: Slot = []
    """One result of several in a turn of `formatObservation`; empty means that each result is a turn."""
    format_tools: Slot = []
    """List of tools, written behind the system message within its slot."""
    tool_format: Literal["none", "default", "qwen", "llama3", "mistral", "glm4", "deepseek"] = "none"
    """How calls and tool lists are written."""
    default_system: LongText = ""
    """System message of conversations that have none."""
    stop_words: Annotated[list[ShortText], Field(max_length=16)] = []
    """Tokens that end an answer; they go to the generation config."""
    replace_eos: bool = False
    """Make the first stop word the tokenizer's end-of-sequence token."""
    efficient_eos: bool = False
    """The first stop word stands before the next user turn and at the end, not in the assistant's slot."""
    thought_words: Annotated[list[ShortText], Field(max_length=2)] = []
    """What opens and closes a chain of thought."""
    enable_thinking: bool = True
    """Whether a template with `thoughtWords` thinks where nobody says."""
    image_placeholder: ShortText | None = None
    """Stands for an image."""
    video_placeholder: ShortText | None = None
    """Stands for a video."""
    audio_placeholder: ShortText | None = None
    """Stands for a sound."""


class ChatTemplate(ApiModel):
    """A conversation format of one's own, for `spec.template.ref`."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION
    kind: Literal["ChatTemplate"] = "ChatTemplate"
    metadata: ObjectMeta
    spec: ChatTemplateSpec
