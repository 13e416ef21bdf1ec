"""Unquoted scalars mean what they mean to kubectl."""

from __future__ import annotations

import pytest
from finetune_cli.scalars import resolve_plain


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 0.0001),
        ("2e-4", 0.0002),
        ("8.0", 8),
        ("0x10", 16),
        ("0o17", 15),
        ("017", 15),
        ("1_000", 1000),
        ("-3", -3),
        (".5", 0.5),
        ("y", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("08", 8),
        ("16Gi", "16Gi"),
        ("truE", "truE"),
        ("1e400", "1e400"),
        ("_1", "_1"),
    ],
)
def test_value(text: str, value: object) -> None:
    found = resolve_plain(text)
    assert found == value
    assert type(found) is type(value)


def test_a_huge_float_stays_one() -> None:
    assert isinstance(resolve_plain("1e22"), float)


@pytest.mark.parametrize("text", [".inf", "-.Inf", ".nan"])
def test_what_json_lacks_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quote it"):
        resolve_plain(text)
