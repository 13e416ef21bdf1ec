"""The benchmark's scripts use the trainer from within; a change there must not leave them behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_memory_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/trainer/memory.py"), "--device", "cpu", "--tiny", "--method", "qlora",
         "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "memory.json").read_text())["cases"]
    assert [(case["checkpointing"], case["outcome"]) for case in found] == [(False, "ok"), (True, "ok")]
    assert (tmp_path / "memory.md").read_text().count("| tiny | qlora |") == 2


def test_the_table_of_speed_is_made(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/trainer/speed.py"), "--shape", "tiny", "--length", "64", "--steps", "3",
         "--warm-up", "1", "--cases", "lora", "--work", str(tmp_path / "work"), "--out", str(tmp_path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    log = tmp_path / "lora.log"
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| lora | 128 |" in done.stdout, done.stdout + (log.read_text()[-2000:] if log.exists() else "")
    assert json.loads((tmp_path / "lora.json").read_text())["tokensPerSecond"] > 0
