"""The command line under test: a kubectl of our own, and output that no terminal's width cuts."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_kubectl import FakeKubectl
from finetune_cli import console
from finetune_cli.kubectl import Kubectl


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    """The kubectl that the command line finds."""
    installed = FakeKubectl.install(tmp_path / "kubectl-home")
    monkeypatch.setenv("KUBECTL", str(installed.directory / "kubectl"))
    return installed


@pytest.fixture
def kubectl(fake: FakeKubectl) -> Kubectl:
    """As a command makes it."""
    return Kubectl.find("research")


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "_width", 200)
    monkeypatch.setattr(console.err, "_width", 200)
