"""What a ChatTemplate's slots must hold so that a conversation can be rendered, trained and served by them."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.chat_template import ChatTemplateSpec, Slot

CONTENT, INDEX = "{{content}}", "{{idx}}"


def slot_problems(spec: ChatTemplateSpec) -> Iterator[tuple[str, str]]:
    """Each field of ``spec`` that cannot work, as a manifest names it, and why."""
    slots: dict[str, Slot] = {
        "formatSystem": spec.format_system,
        "formatUser": spec.format_user,
        "formatAssistant": spec.format_assistant,
        "formatFunction": spec.format_function,
        "formatObservation": spec.format_observation,
        "formatResult": spec.format_result,
        "formatTools": spec.format_tools,
    }
    for field, slot in slots.items():
        count = "".join(slot).count(CONTENT)
        if slot and count != 1:
            yield field, f"must hold {CONTENT} once, not {count} times"
        if field != "formatUser" and INDEX in "".join(slot):
            yield field, f"holds {INDEX}, which formatUser alone may"
    for field, bare in {"formatPrefix": spec.format_prefix, "assistantHeader": spec.assistant_header}.items():
        if any(mark in "".join(bare) for mark in (CONTENT, INDEX)):
            yield field, f"holds {CONTENT} or {INDEX}, and no message stands in it"
    yield from _ends(spec)
    tools = {name: slots[name] for name in ("formatFunction", "formatObservation", "formatResult", "formatTools")}
    if spec.tool_format == "none":
        yield from ((field, "needs toolFormat, which is none") for field, slot in tools.items() if slot)
    if len(spec.thought_words) == 1:
        yield "thoughtWords", "must be two, what opens and what closes a thought, or none"


def _ends(spec: ChatTemplateSpec) -> Iterator[tuple[str, str]]:
    """An answer must end, and the end must be known to training and serving."""
    if not spec.stop_words:
        yield "stopWords", "must name what ends an answer: without it a tuned model never stops"
        return
    if not all(spec.stop_words):
        yield "stopWords", "holds an empty word"
        return
    answers = {"formatAssistant": spec.format_assistant, "formatFunction": spec.format_function}
    for field, slot in answers.items():
        _, _, after = "".join(slot).partition(CONTENT)
        ended = any(word in after for word in spec.stop_words)
        if slot and spec.efficient_eos and ended:
            yield field, "holds a stop word behind {{content}}, which efficientEos writes by itself"
        if slot and not spec.efficient_eos and not ended:
            yield field, f"must hold a stop word behind {CONTENT}: {', '.join(spec.stop_words)}"
