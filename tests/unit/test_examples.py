"""Every example is valid, the quickstart is up to date, and its data set is what its text says."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetune_api.validation import KINDS, validate_manifest
from finetune_cli.documents import read_documents

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "examples").iterdir())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_example_is_valid(file: Path) -> None:
    documents = read_documents([str(file)])
    assert any(document.is_ours for document in documents)
    for document in documents:
        if document.is_ours:
            assert validate_manifest(document.body) == []


def test_every_kind_has_an_example() -> None:
    kinds = {document.kind for file in FILES for document in read_documents([str(file)])}
    assert set(KINDS) <= kinds


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_an_example_names_of_its_own_is_there(file: Path) -> None:
    documents = read_documents([str(file)])
    keys = {
        f"configmap://{document.name}/{key}"
        for document in documents
        if document.kind == "ConfigMap"
        for key in document.body["data"]
    }
    named = {
        source["uri"]
        for document in documents
        if document.kind == "FineTuneJob"
        for source in document.body["spec"]["dataset"]["sources"]
        if source["uri"].startswith("configmap://")
    }
    assert named == keys


def test_the_quickstart_is_what_its_script_writes() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "hack/make_quickstart.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    config_map = read_documents([str(ROOT / "examples/quickstart.yaml")])[0]
    assert config_map.kind == "ConfigMap"
    return [json.loads(line) for line in config_map.body["data"]["helpdesk.jsonl"].splitlines()]


def test_all_answers_of_the_quickstart_have_one_form(rows: list[dict[str, str]]) -> None:
    for row in rows:
        lines = row["output"].splitlines()
        starts = ("Ahoy! Cause: ", "Check: ", "Fix: ", "Fair winds from the harbour desk.")
        assert len(lines) == len(starts)
        assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
        assert "{app}" not in row["output"] + row["instruction"]
        assert "{ns}" not in row["output"] + row["instruction"]


def test_no_two_rows_of_the_quickstart_tell_the_same(rows: list[dict[str, str]]) -> None:
    for part in (0, 2):  # cause and fix: a row held out must not be answered by one trained on
        told = [row["output"].splitlines()[part] for row in rows]
        assert len(set(told)) == len(told)
    words = [set(row["instruction"].lower().split()) for row in rows]
    assert max(_overlap(a, b) for a, b in itertools.combinations(words, 2)) < 0.8


def test_the_quickstart_fits_into_a_config_map(rows: list[dict[str, str]]) -> None:
    assert len("".join(map(json.dumps, rows))) < 2**20


def _overlap(a: set[Any], b: set[Any]) -> float:
    return len(a & b) / len(a | b)
