"""Live progress, on a terminal and off it."""

from __future__ import annotations

import io

from finetune_api.status import Progress
from finetune_cli.progress_view import ProgressView, describe
from rich.console import Console

HALF = Progress(step=12, total_steps=24, loss=2.31, tokens_per_second=160.4, eta_seconds=80)


def test_a_line_says_what_is_known() -> None:
    assert describe(HALF) == "step 12/24 50% · loss 2.3100 · 160 tok/s · ETA 1m20s"
    assert describe(Progress(step=0, total_steps=0)) == "step 0/?"
    done = Progress(step=24, total_steps=24, loss=1.0, eval_loss=1.5, eta_seconds=0)
    assert describe(done) == "step 24/24 100% · loss 1.0000 · held-out 1.5000"


def test_off_a_terminal_each_change_is_one_line() -> None:
    console = Console(file=io.StringIO(), width=100)
    with ProgressView("night", console) as view:
        view.phase("Running")
        view.phase("Running")
        view.progress(HALF)
        view.progress(HALF)
    told = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line.split(" ", 1)[1] for line in told] == ["Running", f"Running {describe(HALF)}"]


def test_on_a_terminal_the_bar_goes_and_what_was_said_stays() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with ProgressView("night", console) as view:
        view.phase("Running")
        view.progress(HALF)
        view.say("checkpoint at step 12")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "checkpoint at step 12" in text
    assert "\x1b[2K" in text  # the bar's line was cleared


def test_before_there_is_progress_the_bar_says_what_goes_on() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with ProgressView("night", console) as view:
        view.phase("Preparing")
        view.doing("first [sample]: 115 tokens")
        view._bar.refresh()
        assert "first [sample]: 115 tokens" in console.file.getvalue()  # type: ignore[attr-defined]
        view.progress(HALF)
        view.doing("not this")
        view._bar.refresh()
    assert "not this" not in console.file.getvalue()  # type: ignore[attr-defined]
