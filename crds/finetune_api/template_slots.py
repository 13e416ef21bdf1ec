"""What a ChatTemplate's slots must hold so that a conversation can be rendered, trained and served by them: one table,
from which come the CEL rules of the CRD, the local validation, and the trainer's own check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from finetune_api.chat_template import ChatTemplateSpec, Slot

CONTENT, INDEX = "{{content}}", "{{idx}}"


@dataclass(frozen=True)
class SlotRule:
    """``field`` is wrong where ``broken`` holds; ``cel`` says the same of the manifest's spec, ``self``."""

    field: str
    message: str
    broken: Callable[[ChatTemplateSpec], bool]
    cel: str


def slot_problems(spec: ChatTemplateSpec) -> Iterator[tuple[str, str]]:
    """Each field of ``spec`` that cannot work, as a manifest names it, and why."""
    return ((rule.field, rule.message) for rule in SLOT_RULES if rule.broken(spec))


def _slot(spec: ChatTemplateSpec, field: str) -> str:
    return "".join(_pieces(spec, field))


def _pieces(spec: ChatTemplateSpec, field: str) -> Slot:
    name = next(name for name, known in ChatTemplateSpec.model_fields.items() if known.alias == field)
    pieces: Slot = getattr(spec, name)
    return pieces


def _count(field: str) -> str:
    return f"self.{field}.join().split('{CONTENT}').size()"


def _content(field: str) -> SlotRule:
    return SlotRule(
        field,
        f"must hold {CONTENT} once",
        lambda spec: bool(_pieces(spec, field)) and _slot(spec, field).count(CONTENT) != 1,
        f"self.{field}.size() > 0 && {_count(field)} != 2",
    )


def _no_index(field: str) -> SlotRule:
    return SlotRule(
        field,
        f"holds {INDEX}, which formatUser alone may",
        lambda spec: INDEX in _slot(spec, field),
        f"self.{field}.join().contains('{INDEX}')",
    )


def _bare(field: str) -> SlotRule:
    return SlotRule(
        field,
        f"holds {CONTENT} or {INDEX}, and no message stands in it",
        lambda spec: any(mark in _slot(spec, field) for mark in (CONTENT, INDEX)),
        f"self.{field}.join().contains('{CONTENT}') || self.{field}.join().contains('{INDEX}')",
    )


def _of_tools(field: str) -> SlotRule:
    return SlotRule(
        field,
        "needs toolFormat, which is none",
        lambda spec: spec.tool_format == "none" and bool(_pieces(spec, field)),
        f"self.toolFormat == 'none' && self.{field}.size() > 0",
    )


def _ended(spec: ChatTemplateSpec, field: str) -> bool:
    """Whether a stop word stands behind the slot's content."""
    after = _slot(spec, field).partition(CONTENT)[2]
    return any(word in after for word in spec.stop_words)


def _ends(field: str) -> Iterator[SlotRule]:
    """An answer must end, and the end must be known to training and serving."""
    ended = f"self.stopWords.exists(word, self.{field}.join().split('{CONTENT}')[1].contains(word))"
    whole = f"{_count(field)} == 2 && self.stopWords.size() > 0"
    yield SlotRule(
        field,
        f"must hold a stop word behind {CONTENT}",
        lambda spec: _whole(spec, field) and not spec.efficient_eos and not _ended(spec, field),
        f"{whole} && !self.efficientEos && !{ended}",
    )
    yield SlotRule(
        field,
        f"holds a stop word behind {CONTENT}, which efficientEos writes by itself",
        lambda spec: _whole(spec, field) and spec.efficient_eos and _ended(spec, field),
        f"{whole} && self.efficientEos && {ended}",
    )


def _whole(spec: ChatTemplateSpec, field: str) -> bool:
    return _slot(spec, field).count(CONTENT) == 1 and bool(spec.stop_words)


_OF_TOOLS = ("formatFunction", "formatObservation", "formatResult", "formatTools")
_WITHOUT_INDEX = ("formatSystem", "formatAssistant", *_OF_TOOLS)

SLOT_RULES: tuple[SlotRule, ...] = (
    *map(_content, ("formatUser", *_WITHOUT_INDEX)),
    *map(_no_index, _WITHOUT_INDEX),
    *map(_bare, ("formatPrefix", "assistantHeader")),
    SlotRule(
        "stopWords",
        "must name what ends an answer: without it a tuned model never stops",
        lambda spec: not spec.stop_words,
        "self.stopWords.size() == 0",
    ),
    SlotRule(
        "stopWords",
        "holds an empty word",
        lambda spec: not all(spec.stop_words),
        "self.stopWords.exists(word, word == '')",
    ),
    *_ends("formatAssistant"),
    *_ends("formatFunction"),
    *map(_of_tools, _OF_TOOLS),
    SlotRule(
        "thoughtWords",
        "must be two, what opens and what closes a thought, or none",
        lambda spec: len(spec.thought_words) == 1,
        "self.thoughtWords.size() == 1",
    ),
)
