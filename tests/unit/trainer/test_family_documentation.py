"""docs/templates.md says of every family what its declaration and its tests say."""

from __future__ import annotations

import re
from pathlib import Path

from family_examples import EXAMPLES
from finetune_trainer.templates.families import FAMILIES
from published_sources import SOURCES

PAGE = Path(__file__).parents[3] / "docs/templates.md"


def source(name: str) -> str:
    """Where its published format is found: packages, or what the example is of."""
    if name not in SOURCES:
        return EXAMPLES[name].source
    return ", ".join(dict.fromkeys(source.package for source in SOURCES[name]))


def tools(name: str) -> str:
    """Whether answers may call tools, and how many at once."""
    template = FAMILIES[name]
    return ("one a turn" if template.one_call else "yes") if template.takes_tools else ""


def thoughts(name: str) -> str:
    """Whether answers may have thoughts, and when."""
    template = FAMILIES[name]
    return ("by default" if template.thinks_by_default else "when told to") if template.thinks else ""


def parts(name: str) -> str:
    """What a message may hold beside text."""
    return ", ".join(FAMILIES[name].media_kinds)


def test_the_page_lists_each_family_as_it_is() -> None:
    rows = {
        cells[0].strip(" `"): [cell.strip() for cell in cells[2:]]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| `[a-z0-9_]+` \|.*\|.*\|.*\|.*\|.*\|$", line) and (cells := line.strip("|").split("|"))
    }
    assert rows == {name: [source(name), tools(name), thoughts(name), parts(name)] for name in FAMILIES}
