"""What the families write of which no published template is to be had, or none that writes calls, by example."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from family_examples import CALLING, EXAMPLES, Example
from finetune_trainer.templates.families import FAMILIES
from finetune_trainer.templates.own_tokens import with_own_tokens
from finetune_trainer.templates.tool_formats import TOOL_FORMATS
from published_sources import SOURCES


@pytest.mark.parametrize(
    ("family", "example"),
    [*EXAMPLES.items(), *CALLING.items()],
    ids=[*EXAMPLES, *(f"{name} calls" for name in CALLING)],
)
def test_a_family_writes_the_example(family: str, example: Example) -> None:
    template = with_own_tokens(FAMILIES[family], SimpleNamespace(bos_token="<s>", eos_token="</s>"))
    segments = template.segments(example.messages, example.tools)
    assert "".join(segment.text for segment in segments) == example.text


def test_every_family_is_held_against_something() -> None:
    assert set(FAMILIES) == {*SOURCES, *EXAMPLES}
    assert not set(SOURCES) & set(EXAMPLES)


def test_there_are_more_than_sixty_families() -> None:
    assert len(FAMILIES) > 60


def test_every_tool_format_that_is_shared_is_used() -> None:
    used = {template.tool_format for template in FAMILIES.values() if hasattr(template, "tool_format")}
    assert set(TOOL_FORMATS) <= used
