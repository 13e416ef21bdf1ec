"""A kubectl that answers from a script, and a FineTuneJob as it would print one."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAKE_KUBECTL = """\
import json, pathlib, sys
here = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
stdin = "" if sys.stdin.isatty() or "-" not in arguments else sys.stdin.read()
with (here / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps({"arguments": arguments, "stdin": stdin}) + "\\n")
state = here / "answers.json"
answers = json.loads(state.read_text())
for answer in answers:
    if set(answer["words"]) <= set(arguments) and answer["times"] != 0:
        answer["times"] -= 1
        state.write_text(json.dumps(answers))
        sys.stdout.write(answer["out"])
        sys.stderr.write(answer["err"])
        sys.exit(answer["code"])
sys.exit(f"no answer for {arguments}")
"""


@dataclass
class FakeKubectl:
    """Answers to calls, by words that the call must have; the first that fits, ``times`` times (-1: always)."""

    directory: Path

    def answer(self, *words: str, out: Any = "", err: str = "", code: int = 0, times: int = -1) -> None:
        """Add an answer; anything but text goes out as kubectl prints JSON."""
        state = self.directory / "answers.json"
        answers = json.loads(state.read_text())
        text = out if isinstance(out, str) else json.dumps(out, indent=4) + "\n"
        answers.append({"words": words, "out": text, "err": err, "code": code, "times": times})
        state.write_text(json.dumps(answers))

    def calls(self) -> list[list[str]]:
        """Arguments of each call so far."""
        return [json.loads(line)["arguments"] for line in self._lines()]

    def stdins(self) -> list[Any]:
        """What calls were given on standard input."""
        return [json.loads(text) for line in self._lines() if (text := json.loads(line)["stdin"])]

    def _lines(self) -> list[str]:
        file = self.directory / "calls.jsonl"
        return file.read_text().splitlines() if file.exists() else []

    @classmethod
    def install(cls, directory: Path) -> FakeKubectl:
        """Make the program ``directory/kubectl``."""
        directory.mkdir()
        (directory / "answers.json").write_text("[]")
        (directory / "fake.py").write_text(FAKE_KUBECTL)
        program = directory / "kubectl"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "{directory}/fake.py" "$@"\n')
        program.chmod(0o755)
        return cls(directory)


def job(phase: str | None = None, **status: Any) -> dict[str, Any]:
    """A FineTuneJob as the server sends it."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {
            "name": "night",
            "namespace": "research",
            "uid": "0123abcd-0000",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [],
        },
        "spec": {
            "model": {"source": "hf://org/model"},
            "dataset": {"sources": [{"uri": "configmap://rows/rows.jsonl"}]},
            "method": {"lora": {}},
        },
        "status": {"phase": phase, **status} if phase else status,
    }
