"""ChatTemplate: a user's own conversation format, by slots."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import API_VERSION, ApiModel
from finetune_api.job import ObjectMeta
from finetune_api.types import LongText, ShortText

Slot = Annotated[list[LongText], Field(max_length=16)]


class ChatTemplateSpec(ApiModel):
    """A slot is a list of pieces; `{{content}}` stands for the message, `{{idx}}` for the turn's number."""

    format_prefix: Slot = []
    """Written once, before everything."""
    format_system: Slot = ["{{content}}"]
    """System message."""
    format_user: Annotated[list[LongText], Field(min_length=1, max_length=16)]
    """User message together with the header of the answer that follows."""
    format_assistant: Annotated[list[LongText], Field(min_length=1, max_length=16)]
    """Answer, with what ends it."""
    format_function: Slot = []
    """Tool call of the assistant; empty means as `formatAssistant`."""
    format_observation: Slot = []
    """Result of a tool; empty means as `formatUser`."""
    format_tools: Slot = []
    """List of tools, written behind the system message."""
    tool_format: Literal["none", "default", "qwen", "llama3", "mistral", "glm4"] = "none"
    """How calls and tool lists are written."""
    default_system: LongText = ""
    """System message of conversations that have none."""
    stop_words: Annotated[list[ShortText], Field(max_length=16)] = []
    """Tokens that end an answer; they go to the generation config."""
    replace_eos: bool = False
    """Make the first stop word the tokenizer's end-of-sequence token."""
    efficient_eos: bool = False
    """The end-of-sequence token stands before the next user turn, not in the assistant's slot."""
    thought_words: Annotated[list[ShortText], Field(max_length=2)] = []
    """What opens and closes a chain of thought."""
    enable_thinking: bool = True
    """Whether the template writes chains of thought."""
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
