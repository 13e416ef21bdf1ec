"""Tests that take parts of the embedded cluster away, each for a minute or more."""

from __future__ import annotations

from on_cluster import (
    api,
    images,
    kubeconfig,
    kubectl,
    make_team,
    model,
    operator,
    priority,
    pytest_runtest_makereport,
)

__all__ = [
    "api",
    "images",
    "kubeconfig",
    "kubectl",
    "make_team",
    "model",
    "operator",
    "priority",
    "pytest_runtest_makereport",
]
