"""``finetune validate``: findings with file, line and field, and an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_cli.main import app
from typer.testing import CliRunner

GOOD = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: night
spec:
  model:
    source: hf://org/model
  dataset:
    sources:
      - uri: configmap://rows/rows.jsonl
  method:
    lora:
      rank: 8
"""


def validate(tmp_path: Path, text: str, *options: str) -> tuple[int, str, str]:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    result = CliRunner().invoke(app, ["validate", "-f", str(file), *options])
    return result.exit_code, result.stdout.replace(str(file), "job.yaml"), result.stderr


def test_a_good_manifest(tmp_path: Path) -> None:
    code, out, _ = validate(tmp_path, GOOD)
    assert (code, out) == (0, "job.yaml:1: FineTuneJob night is valid\n")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("rank: 8", "rnak: 8", "job.yaml:13: spec.method.lora.rnak: unknown field; did you mean rank?"),
        ("rank: 8", "rank: -8", "job.yaml:13: spec.method.lora.rank: should be greater than or equal to 1, not -8"),
        ("    lora:\n", "    full: {}\n    lora:\n", "job.yaml:11: spec.method: set exactly one of"),
        ("    source: hf://org/model\n", "    revision: main\n", "job.yaml:6: spec.model.source: is required"),
        ("configmap://rows/rows.jsonl", "file:///rows", "job.yaml:10: spec.dataset.sources[0].uri: file://"),
        ("finetune.dev/v1alpha1", "finetune.dev/v9", "job.yaml:1: apiVersion: must be finetune.dev/v1alpha1"),
    ],
)
def test_findings_have_line_and_field(tmp_path: Path, old: str, new: str, told: str) -> None:
    code, out, _ = validate(tmp_path, GOOD.replace(old, new, 1))
    assert code == 1
    assert told in out


def test_local_judges_for_finetune_run(tmp_path: Path) -> None:
    text = GOOD.replace("configmap://rows/rows.jsonl", "file:///rows.jsonl")
    assert validate(tmp_path, text)[0] == 1
    assert validate(tmp_path, text, "--local")[0] == 0


def test_other_kinds_are_passed_over_but_not_alone(tmp_path: Path) -> None:
    other = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"
    code, _, err = validate(tmp_path, f"{other}---\n{GOOD}")
    assert code == 0
    assert "Service web passed over" in err
    code, _, err = validate(tmp_path, other)
    assert code == 1
    assert "no FineTuneJob, ChatTemplate or TrainingProfile in it" in err


def test_a_file_that_is_no_yaml_is_a_sentence_and_no_traceback(tmp_path: Path) -> None:
    code, out, err = validate(tmp_path, "a: [1\n")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
