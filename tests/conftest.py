"""Tiers: a test's folder is its tier. A tier that this machine cannot run is named in the summary, with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIERS = ("unit", "api", "e2e", "faults", "gpu", "unsloth")
ON_DEMAND = {"faults": "it takes half an hour and more; make test-faults"}
"""Tiers that run only where they are asked for by name, and why."""
_NOT_RUN = pytest.StashKey[dict[str, tuple[int, str]]]()

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models: a second thread waits more than it works, and beside other processes it waits for ever.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def tier_of(path: Path) -> str:
    """The first folder below tests/."""
    return path.relative_to(ROOT / "tests").parts[0]


def why_not(tier: str) -> str:
    """Why ``tier`` cannot run on this machine; empty where it can."""
    if tier == "unit":
        return ""
    result = subprocess.run(
        [str(ROOT / "hack/tiers"), "why-not", tier],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def _asked_for(config: pytest.Config, tier: str) -> bool:
    named = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    return any(path.is_relative_to(ROOT / "tests" / tier) for path in named)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {tier: reason for tier, reason in ON_DEMAND.items() if not _asked_for(config, tier)}
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        tier = tier_of(item.path)
        if tier != "unit":
            item.add_marker(tier)
        if tier not in reasons:
            reasons[tier] = why_not(tier)
        reason = reasons[tier]
        (left_out if reason else kept).append(item)
    kept.sort(key=lambda item: TIERS.index(tier_of(item.path)))  # the quick ones first: they say the most per second
    not_run = {
        tier: (sum(tier_of(item.path) == tier for item in left_out), reason)
        for tier, reason in reasons.items()
        if reason and any(tier_of(item.path) == tier for item in left_out)
    }
    config.stash[_NOT_RUN] = not_run
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for tier, (count, reason) in config.stash.get(_NOT_RUN, {}).items():
        terminalreporter.write_line(f"tier {tier} NOT RUN ({count} tests): {reason}", yellow=True)
