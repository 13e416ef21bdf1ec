"""What the images are built from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def images(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in ("hack/cluster", "hack/images"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    return importlib.import_module("images")


@pytest.mark.parametrize("name", ["operator", "trainer", "trainer-unsloth"])
def test_the_builder_is_given_all_that_an_image_is_made_from(images: Any, name: str) -> None:
    dockerfile, sources = images.SOURCES[name]
    given = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert [source for source in sources if source not in given | {dockerfile}] == []
    assert [source for source in sources if not (ROOT / source).exists()] == []
