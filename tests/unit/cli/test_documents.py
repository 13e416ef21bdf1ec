"""Manifests keep the line of every field, and are refused where kubectl would refuse them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from finetune_cli.documents import parse, read_documents
from finetune_cli.errors import CliError

TWO = """\
# a comment
apiVersion: v1
kind: ConfigMap
metadata: {name: rows}
---
---
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: night
spec:
  dataset:
    sources:
      - uri: configmap://rows/a
        format: alpaca
      - uri: configmap://rows/b
  hyperparameters: &numbers
    learningRate: 1e-4
"""


def test_each_field_has_its_line() -> None:
    config_map, job = parse(TWO, "job.yaml")
    assert (config_map.kind, config_map.name, config_map.line, config_map.is_ours) == ("ConfigMap", "rows", 2, False)
    assert (job.kind, job.name, job.line, job.is_ours) == ("FineTuneJob", "night", 7, True)
    assert job.line_of("spec.dataset.sources[1].uri") == 16
    assert job.line_of("spec.hyperparameters.learningRate") == 18


def test_a_missing_field_has_the_line_of_the_one_it_should_be_in() -> None:
    job = parse(TWO, "job.yaml")[1]
    assert job.line_of("spec.dataset.sources[0].columns.prompt") == 14
    assert job.line_of("spec.model.source") == 11
    assert job.line_of("status") == 7


def test_numbers_are_read_as_kubectl_reads_them() -> None:
    assert parse(TWO, "job.yaml")[1].body["spec"]["hyperparameters"]["learningRate"] == 0.0001


def test_quoted_text_stays_text() -> None:
    assert parse("a: '1e-4'\nb: !!str 5\nc: |\n  8\n", "f")[0].body == {"a": "1e-4", "b": "5", "c": "8\n"}


def test_merge_keys_fill_what_is_not_said() -> None:
    body = parse("base: &b {a: 1, b: 2}\nmade:\n  <<: *b\n  b: 3\n", "f")[0].body
    assert body["made"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: a is given twice, first in line 1"),
        ("a: [1\n", "f.yaml:2: not valid YAML"),
        ("a: 1\n\t b: 2\n", "f.yaml:2: not valid YAML"),
        ("- a\n- b\n", "f.yaml:1: a manifest must be a map"),
        ("a: &x\n  b: *x\n", "f.yaml:1: the alias stands within"),
        ("a:\n  b: .inf\n", "f.yaml:2: .inf is no number"),
        ("a: !!python/object:os.system x\n", "the tag"),
        ("a: !!int word\n", "is no int"),
        ("? [a]\n: 1\n", "a key must be a word"),
    ],
)
def test_refused_with_file_and_line(text: str, told: str) -> None:
    with pytest.raises(CliError) as caught:
        parse(text, "f.yaml")
    assert told in str(caught.value)


def test_a_directory_gives_its_manifests_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.yml").write_text("kind: B")
    (tmp_path / "a.json").write_text('{"kind": "A"}')
    (tmp_path / "notes.txt").write_text("no manifest")
    assert [document.kind for document in read_documents([str(tmp_path)])] == ["A", "B"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("kind: A\n"))
    assert read_documents(["-"])[0].file == "standard input"


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    (tmp_path / "none").mkdir()
    for path, told in (("gone.yaml", "No such file"), ("latin.yaml", "not UTF-8 at byte 3"), ("none", "no .yaml")):
        with pytest.raises(CliError, match=told) as caught:
            read_documents([str(tmp_path / path)])
        assert path in str(caught.value)
