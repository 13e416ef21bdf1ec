"""The loss curve."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_api.status import Progress
from finetune_cli.curve import Curve, read_curve
from finetune_cli.errors import CliError
from finetune_cli.main import app
from typer.testing import CliRunner

LINES = [
    '{"step":0,"totalSteps":4,"initialEvalLoss":3.0}',
    '{"step":1,"totalSteps":4,"loss":2.5}',
    '{"step":2,"totalSteps":4,"loss":9.0}',
    '{"step":2,"totalSteps":4,"loss":2.0}',
    "torn{",
    '{"step":4,"totalSteps":4,"loss":1.0,"evalLoss":1.25}',
]


def test_a_step_done_twice_counts_as_done_last(tmp_path: Path) -> None:
    (tmp_path / "progress.jsonl").write_text("\n".join(LINES))
    for path in (tmp_path, tmp_path / "progress.jsonl"):
        curve = read_curve(path)
        assert curve.training == {1: 2.5, 2: 2.0, 4: 1.0}
        assert curve.held_out == {0: 3.0, 4: 1.25}


def test_the_picture_fits_and_names_both_losses() -> None:
    curve = Curve()
    for step in range(1, 30):
        curve.add(Progress(step=step, total_steps=30, loss=3 / step, eval_loss=2 / step))
    lines = curve.draw(width=60, height=14).plain.splitlines()
    assert len(lines) <= 14
    assert max(map(len, lines)) <= 60
    text = "\n".join(lines)
    assert "training loss" in text
    assert "held-out loss" in text


def test_the_command_draws_it(tmp_path: Path) -> None:
    (tmp_path / "progress.jsonl").write_text("\n".join(LINES))
    result = CliRunner().invoke(app, ["curve", str(tmp_path)])
    assert result.exit_code == 0
    assert "step" in result.stdout


def test_the_loss_before_the_first_step_is_in_the_picture() -> None:
    curve = Curve()
    curve.add(Progress(step=0, total_steps=9, initial_eval_loss=3.0))
    for step in range(1, 10):
        curve.add(Progress(step=step, total_steps=9, loss=2.9 - step / 10))
    curve.add(Progress(step=9, total_steps=9, eval_loss=2.0))
    assert curve.draw().plain.count("●") == 3  # the legend's, before and after


@pytest.mark.parametrize("content", [None, LINES[0]])
def test_without_losses_there_is_none(tmp_path: Path, content: str | None) -> None:
    if content:
        (tmp_path / "progress.jsonl").write_text(content)
    with pytest.raises(CliError, match=r"progress\.jsonl: (fewer than two|cannot be read)|cannot be read"):
        read_curve(tmp_path)
