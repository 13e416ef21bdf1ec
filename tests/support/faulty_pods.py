"""Profiles whose pods have one fault each, and a model that has one: what fails is made to fail for real."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_cli.kubectl import Kubectl
from installed import PROFILE_SPEC
from safetensors.torch import load_file, save_file
from team import Team

FAULTS = Path(__file__).with_name("pod_faults")
_MODEL_MOUNT = "/finetune/model"
_CODE = "/opt/finetune"
"""Where the image has the trainer."""


@contextmanager
def profiles(kubectl: Kubectl, **specs: dict[str, Any]) -> Iterator[None]:
    """TrainingProfiles, by name with ``_`` for dashes, that differ from the tier's own by these fields."""
    names = [name.replace("_", "-") for name in specs]
    for name, spec in zip(names, specs.values(), strict=True):
        profile = {"apiVersion": "finetune.dev/v1alpha1", "kind": "TrainingProfile", "metadata": {"name": name}}
        kubectl.apply(profile | {"spec": PROFILE_SPEC | spec})
    try:
        yield
    finally:
        kubectl.run("delete", "trainingprofile", *names)


def with_fault(name: str) -> dict[str, Any]:
    """Of a profile: the fault ``name`` of pod_faults, which has to be in the claim of the model."""
    return {"environment": {"PYTHONPATH": f"{_MODEL_MOUNT}/faults:{_CODE}", "FAULT": name}}


def send_faults(team: Team) -> None:
    """Put the faults beside the tiny model."""
    team.send(FAULTS, "model", "faults")


def send_broken_model(team: Team, model: Path, aside: Path) -> None:
    """Put ``model`` with one weight that is no number beside it, as ``broken``."""
    shutil.copytree(model, aside)
    weights = load_file(aside / "model.safetensors")
    weights[next(name for name in weights if name.endswith("down_proj.weight"))][0, 0] = float("nan")
    save_file(weights, aside / "model.safetensors", metadata={"format": "pt"})
    team.send(aside, "model", "broken")
