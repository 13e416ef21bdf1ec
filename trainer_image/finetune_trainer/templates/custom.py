"""A ChatTemplate of the user's own, as a declaration like the built-in ones."""

from __future__ import annotations

from finetune_api.chat_template import ChatTemplateSpec, Slot
from finetune_api.failures import ExitCode
from finetune_api.template_slots import CONTENT, slot_problems

from finetune_trainer.errors import TrainerError
from finetune_trainer.templates.slots import SlotTemplate


def custom_template(name: str, spec: ChatTemplateSpec) -> SlotTemplate:
    """The template that ``spec`` declares.

    ``formatUser`` and ``formatObservation`` may hold the header of the answer, as the guide's do, or leave it to
    ``assistantHeader``.

    Raises:
        TrainerError: TEMPLATE_INVALID, naming each field that cannot work.
    """
    if problems := [f"spec.{field}: {problem}" for field, problem in slot_problems(spec)]:
        raise TrainerError(ExitCode.TEMPLATE_INVALID, f"ChatTemplate {name}: {'; '.join(problems)}")
    opened, closed = spec.thought_words or ("", "")
    return SlotTemplate(
        name=name,
        prefix="".join(spec.format_prefix),
        system="".join(spec.format_system) or CONTENT,
        user="".join(spec.format_user),
        assistant_header="".join(spec.assistant_header),
        assistant="".join(spec.format_assistant),
        function=_given(spec.format_function),
        observation=_given(spec.format_observation),
        result=_given(spec.format_result),
        tools="".join(spec.format_tools) or CONTENT,
        tool_format=None if spec.tool_format == "none" else spec.tool_format,
        end=spec.stop_words[0] if spec.efficient_eos else "",
        default_system=spec.default_system,
        stop_words=tuple(spec.stop_words),
        replace_eos=spec.replace_eos,
        thought_words=(opened, closed) if spec.thought_words else None,
        thinks_by_default=spec.enable_thinking,
        image=spec.image_placeholder,
        video=spec.video_placeholder,
        audio=spec.audio_placeholder,
    )


def _given(slot: Slot) -> str | None:
    return "".join(slot) or None
