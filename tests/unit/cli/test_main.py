"""The command line itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fake_kubectl import FakeKubectl
from finetune_cli.main import app
from typer.testing import CliRunner

COMMANDS = ("validate", "estimate", "run", "watch", "logs", "get", "fetch", "curve", "templates", "render")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_name_the_command(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    examples = result.stdout.partition("Examples:\n")[2]
    assert f"finetune {command}" in examples


def test_help_lists_all_commands() -> None:
    out = CliRunner().invoke(app, ["-h"]).stdout
    assert all(command in out for command in COMMANDS)


def test_the_version_is_the_distributions() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, "finetune 0.1.0\n")


def test_namespace_and_context_reach_kubectl(fake: FakeKubectl) -> None:
    fake.answer("get", out={"items": []})
    CliRunner().invoke(app, ["get", "-n", "research", "--context", "prod"])
    assert fake.calls()[0][:4] == ["--context", "prod", "--namespace", "research"]


@pytest.mark.parametrize("arguments", [["watch"], ["validate"], ["fetch", "x"], ["logs", "x", "--step", "push"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_an_error_is_a_sentence_on_stderr(fake: FakeKubectl) -> None:
    fake.answer("get", err="error: You must be logged in to the server (Unauthorized)\n", code=1)
    result = CliRunner().invoke(app, ["get"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: You must be logged in to the server (Unauthorized)\n"


def test_help_imports_no_heavy_library() -> None:
    program = (
        "import sys; from finetune_cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'plotext', 'kubernetes'} & set(sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "set()"
