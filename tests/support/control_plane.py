"""Faults of the embedded cluster's control plane, and of the way to it, each taken back when its block ends."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit

from chart import ROOT
from finetune_cli.kubectl import Kubectl


@contextlib.contextmanager
def without(part: str, *, kill: bool = False) -> Iterator[None]:
    """``etcd`` or ``kube-apiserver`` is away for the length of the block; ``kill`` gives it no time to end."""
    _cluster("stop", *(["--kill"] if kill else []), part)
    try:
        yield
    finally:
        _cluster("start", part)


@contextlib.contextmanager
def connections_reset(kubectl: Kubectl, address: str) -> Iterator[None]:
    """Whatever the pod of ``address`` sends to the API server is answered by a reset, also on connections it has."""
    server = urlsplit(kubectl.run("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))
    rule = (
        "INPUT", "--source", address, "--protocol", "tcp", "--dport", str(server.port),
        "--jump", "REJECT", "--reject-with", "tcp-reset",
    )  # fmt: skip
    _iptables("--insert", *rule)
    try:
        yield
    finally:
        _iptables("--delete", *rule)


def _cluster(*arguments: str) -> None:
    _run(str(ROOT / "hack/cluster/cluster"), *arguments)


def _iptables(*arguments: str) -> None:
    _run("iptables", "--wait", *arguments)


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}:\n{result.stdout}{result.stderr}"
