"""The chart through the real helm."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

Body = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/finetune-operator"


class HelmError(Exception):
    """helm refused; the message is its own."""


@functools.cache
def program(name: str) -> str:
    """Path of a program that hack/cluster builds."""
    result = subprocess.run(
        [str(ROOT / "hack/cluster/cluster"), "which", name], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def helm(*arguments: str, values: Body | None = None, kubeconfig: Path | None = None) -> str:
    """Standard output of a helm command; ``values`` are its ``--values``.

    Raises:
        HelmError: it failed.
    """
    command = [program("helm"), *arguments]
    if kubeconfig is not None:
        command += ["--kubeconfig", str(kubeconfig)]
    if values is not None:
        command += ["--values", "-"]
    result = subprocess.run(command, input=json.dumps(values or {}), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise HelmError(result.stdout + result.stderr)
    return result.stdout


def render(values: Body | None = None, *options: str, namespace: str = "finetune-system") -> list[Body]:
    """The objects that the chart makes for a release called ``tuner``."""
    text = _template(json.dumps(values or {}), "--namespace", namespace, "--kube-version", "1.34.0", *options)
    return [body for body in yaml.load_all(text, yaml.CSafeLoader) if body]


@functools.cache
def _template(values: str, *options: str) -> str:
    return helm("template", "tuner", str(CHART), *options, values=json.loads(values))


def of_kind(bodies: list[Body], *kinds: str) -> list[Body]:
    """Those of the kinds."""
    return [body for body in bodies if body["kind"] in kinds]


def only(bodies: list[Body], kind: str) -> Body:
    """The one of the kind."""
    (body,) = of_kind(bodies, kind)
    return body
