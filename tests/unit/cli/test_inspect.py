"""``finetune inspect``: the report of the trainer's own code, drawn for a person."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetune_cli.console import out
from finetune_cli.errors import CliError
from finetune_cli.inspect import coloured, histogram, inspect, show
from finetune_cli.main import app
from rich.console import Console
from tiny_model import make_tiny_model
from typer.testing import CliRunner

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: night}
spec:
  model: {source: "file://MODEL"}
  dataset: {sources: [{uri: "configmap://rows/rows.jsonl"}], maxLength: 128, onError: ON_ERROR}
  method: {lora: {}}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: rows}
data:
  rows.jsonl: |
    {"instruction": "What is one?", "output": "It is one."}
    {"instruction": "What is two?"}
    {"instruction": "What is three?", "output": "It is three."}
"""
REPORT: dict[str, Any] = {
    "maxLength": 128,
    "dataset": {
        "samples": 5, "tokens": 100, "supervisedTokens": 40, "sequences": 5, "truncated": 1,
        "dropped": [{"reason": "malformed JSON", "count": 2, "first": "a:1", "examples": ["a:1: is not JSON", "a:2"]}],
        "truncations": [{"reason": "later turns beyond maxLength", "count": 1, "examples": ["a:9"]}],
        "sources": [{"uri": "pvc://a/a", "rows": 4, "samples": 4}, {"uri": "pvc://a/b", "rows": 9, "samples": 1}],
    },
    "lengths": {"least": 3, "median": 9, "p90": 20, "p99": 30, "most": 31, "mean": 11.5,
                "edges": [0, 16, 32], "counts": [4, 1]},
    "packed": {"sequences": 1, "filled": 0.9812},
    "samples": [{"where": "a:3", "tokens": 5, "trained": 2,
                 "pieces": [{"text": "[user] Hi", "trained": False}, {"text": "Hello", "trained": True}]}],
}  # fmt: skip


@pytest.fixture
def job(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("MODEL", str(make_tiny_model(tmp_path / "tiny"))))
    return file


def run(job: Path, *options: str, on_error: str = "skip") -> Any:
    job.write_text(job.read_text().replace("ON_ERROR", on_error))
    return CliRunner().invoke(app, ["inspect", "-f", str(job), "--cache", str(job.parent / "cache"), *options])


def test_from_the_manifest_to_samples_and_a_picture(job: Path, tmp_path: Path) -> None:
    result = run(job, "--json", "--samples", "1", "--png", str(tmp_path / "lengths.png"))
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["dataset"]["samples"] == 2
    assert report["samples"][0]["where"] == "rows.jsonl:1"
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_wrong_is_a_sentence(job: Path) -> None:
    result = run(job, on_error="fail")
    assert result.exit_code == 1
    assert "error: spec.dataset.sources[0].uri (configmap://rows/rows.jsonl): rows.jsonl:2: has no 'output'" in (
        result.stderr
    )


def test_a_trainer_that_dies_shows_its_last_words(job: Path) -> None:
    job.write_text(job.read_text().replace("ON_ERROR", "skip"))
    with pytest.raises(CliError, match=r"exit code 3 and no report:\nfar too little memory"):
        inspect([str(job)], job=None, samples=0, png=None, as_json=False,
                trainer=("sh", "-c", "echo far too little memory; exit 3"))  # fmt: skip


def test_every_figure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out, "_color_system", None)
    with out.capture() as capture:
        show("night", REPORT)
    said = capture.get()
    for line in (
        "night: 5 samples in 5 sequences, 0 held out, 1 truncated; 100 tokens, 40 of them supervised",
        "pvc://a/b: 9 rows, 1 samples an epoch (20.0 %)",
        "tokens a sample: 3 to 31, mean 11.5, median 9, 90 % up to 20, 99 % up to 30",
        "packed to 128: 1 sequences, 98.1 % filled",
        "left out 2: malformed JSON (a:1: is not JSON; a:2)",
        "cut 1: later turns beyond maxLength (a:9)",
        "— a:3: 5 tokens, 2 trained",
        "[user] Hi⟦Hello⟧",
    ):
        assert line in said


def test_what_is_trained_has_its_colour() -> None:
    console = Console(force_terminal=True, color_system="standard", width=80)
    with console.capture() as capture:
        console.print(coloured(REPORT["samples"][0]["pieces"]))
    assert "\x1b[2m[user] Hi\x1b[0m\x1b[1;32mHello\x1b[0m" in capture.get()


def test_a_very_long_text_loses_its_middle() -> None:
    text = coloured([{"text": "a" * 3000 + "b" * 3000, "trained": False}]).plain
    assert text == "a" * 2000 + " … 2000 characters … " + "b" * 2000


def test_bars_are_as_long_as_the_counts_and_the_least_one_shows() -> None:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(histogram([0, 10, 20, 30], [1000, 500, 1]))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert [line.count("█") for line in lines] == [50, 25, 0]
    assert "▏" in lines[2]
    assert lines[0].startswith("  0-9 ")
    assert lines[0].endswith("1,000")
