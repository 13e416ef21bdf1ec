"""``finetune templates``: the built-in conversation formats."""

from __future__ import annotations

import json
from typing import Any

from finetune_trainer.templates import FAMILIES, SlotTemplate
from finetune_trainer.templates.declared import DeclaredTemplate
from rich.table import Table
from rich.text import Text

from finetune_cli.console import note, out


def templates(*, as_json: bool) -> None:
    """Print all names of ``template.name`` with what each can hold."""
    found = [_facts(FAMILIES[name]) for name in sorted(FAMILIES)]
    if as_json:
        out.print_json(json.dumps(found))
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column, values in (("NAME", [facts["name"] for facts in found]), ("TOOLS", []), ("THINKS", ["if asked"])):
        table.add_column(column, no_wrap=True, min_width=max(map(len, [column, *values])))
    table.add_column("ENDS WITH", no_wrap=True, min_width=13)
    table.add_column("DEFAULT SYSTEM MESSAGE", no_wrap=True)
    table.add_row("auto", *["(own)"] * 4)
    for facts in found:
        thinks = {None: "-", True: "yes", False: "if asked"}[facts["thinksByDefault"]]
        system = facts["defaultSystem"].partition("\n")[0]
        cells = (facts["name"], facts["toolFormat"] or "-", thinks, " ".join(facts["stopWords"]), system or "-")
        table.add_row(*map(Text, cells))
    note("auto is the tokenizer's own Jinja; finetune render --template NAME --messages FILE shows the text of one")
    out.print(table)


def _facts(template: DeclaredTemplate) -> dict[str, Any]:
    fragments = template.tool_fragments if isinstance(template, SlotTemplate) else None
    own = "own" if template.takes_tools else None
    return {
        "name": template.name,
        "toolFormat": fragments.name if fragments else own,
        "thinksByDefault": template.thinks_by_default if template.thinks else None,
        "stopWords": list(template.stop_words),
        "replaceEos": template.replace_eos,
        "defaultSystem": template.default_system,
    }
