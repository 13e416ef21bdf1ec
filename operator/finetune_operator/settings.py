"""Settings from the environment. Each has one variable, one default and one check; all errors are told at once."""

from __future__ import annotations

import os
import re
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from finetune_operator.core.settings import CoreSettings

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DNS_LABEL = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")


class SettingsError(Exception):
    """One or more variables are wrong; the message names each."""


@dataclass(frozen=True)
class Settings:
    """All that the operator is told from outside. docs/settings.md lists the variables."""

    core: CoreSettings
    namespace: str
    """The operator's own namespace: its Secret lives there."""
    namespaces: tuple[str, ...] = ()
    """Namespaces that are served; none means all."""
    progress_port: int = 8443
    metrics_port: int = 8080
    tls_secret: str = "finetune-operator-tls"  # noqa: S105 - a Secret's name
    lease: str = "finetune-operator"
    """Name of the Lease that says which replica acts, in the operator's own namespace."""
    lease_seconds: int = 15
    """How long the replica that acts may be away before another one does."""
    identity: str = "finetune-operator"
    """Of this process among the replicas."""
    pod_ip: str = ""
    """Where other replicas reach this one; empty where they cannot."""
    workers: int = 32
    """Jobs that are reconciled at a time."""
    resync_seconds: float = 300.0
    """Time between two looks at all jobs, in case a watch missed something."""
    log_format: Literal["json", "plain"] = "json"
    log_level: str = "INFO"

    @property
    def host(self) -> str:
        """Host of the progress endpoint as pods reach it."""
        return urlsplit(self.core.progress_url).hostname or "localhost"

    @property
    def address(self) -> str | None:
        """``host:port`` where other replicas reach this one's progress endpoint; None where they cannot."""
        if not self.pod_ip:
            return None
        return f"[{self.pod_ip}]:{self.progress_port}" if ":" in self.pod_ip else f"{self.pod_ip}:{self.progress_port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names and addresses that the server's certificate is for."""
        host = self.host
        short = [host.removesuffix(".svc")] if host.endswith(".svc") else []
        return tuple(dict.fromkeys([host, *short, f"{host}.cluster.local" if short else host, "localhost"]))


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from ``environment``, by default the process's.

    Raises:
        SettingsError: a variable is missing or is not what it must be.
    """
    reader = _Reader(os.environ if environment is None else environment)
    namespace = reader.text("FINETUNE_NAMESPACE", _own_namespace())
    service = reader.text("FINETUNE_SERVICE", "finetune-operator")
    port = reader.whole("FINETUNE_PROGRESS_PORT", 8443, at_least=1, at_most=65535)
    url = reader.text("FINETUNE_PROGRESS_URL", f"https://{service}.{namespace}.svc:{port}").rstrip("/")
    if not _is_base(url):
        reader.problems.append(f"FINETUNE_PROGRESS_URL must be https://host:port, not {url!r}")
    watched = tuple(part for part in re.split(r"[\s,]+", reader.text("FINETUNE_WATCH_NAMESPACES", "")) if part)
    for name in (*watched, namespace):
        if not _DNS_LABEL.match(name):
            reader.problems.append(
                f"{name!r} is no name of a namespace (FINETUNE_WATCH_NAMESPACES, FINETUNE_NAMESPACE)"
            )
    core = CoreSettings(
        trainer_image=reader.required(
            "FINETUNE_TRAINER_IMAGE", "the image of training pods, such as registry/trainer:1"
        ),
        progress_url=url,
        unsloth_image=reader.text("FINETUNE_UNSLOTH_IMAGE", ""),
        progress_interval=reader.number("FINETUNE_PROGRESS_INTERVAL_SECONDS", 10),
        backoff_base=reader.number("FINETUNE_BACKOFF_BASE_SECONDS", 10),
        backoff_cap=reader.number("FINETUNE_BACKOFF_CAP_SECONDS", 360),
        start_grace=reader.number("FINETUNE_START_GRACE_SECONDS", 60, at_least=1),
        image_pull_grace=reader.number("FINETUNE_IMAGE_PULL_GRACE_SECONDS", 300, at_least=1),
        unschedulable_timeout=reader.number("FINETUNE_UNSCHEDULABLE_TIMEOUT_SECONDS", 0),
    )
    log_format = reader.one_of("FINETUNE_LOG_FORMAT", "json", ("json", "plain"))
    settings = Settings(
        core=core,
        namespace=namespace,
        namespaces=tuple(dict.fromkeys(watched)),
        progress_port=port,
        metrics_port=reader.whole("FINETUNE_METRICS_PORT", 8080, at_least=1, at_most=65535),
        tls_secret=reader.text("FINETUNE_TLS_SECRET", "finetune-operator-tls"),
        lease=reader.text("FINETUNE_LEASE", "finetune-operator"),
        lease_seconds=reader.whole("FINETUNE_LEASE_SECONDS", 15, at_least=3, at_most=3600),
        # Without a pod's name, which no two processes have at a time, one of this process alone.
        identity=reader.text("FINETUNE_POD_NAME", f"{socket.gethostname()}_{uuid.uuid4().hex[:12]}"),
        pod_ip=reader.text("FINETUNE_POD_IP", ""),
        workers=reader.whole("FINETUNE_WORKERS", 32, at_least=1, at_most=1000),
        resync_seconds=reader.number("FINETUNE_RESYNC_SECONDS", 300, at_least=1),
        log_format="plain" if log_format == "plain" else "json",
        log_level=reader.one_of("FINETUNE_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR")),
    )
    if reader.problems:
        raise SettingsError("; ".join(reader.problems))
    return settings


def _own_namespace() -> str:
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "default"


def _is_base(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and (parts.port or 443) > 0 and not parts.query
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: list[str] = []

    def text(self, name: str, default: str) -> str:
        return self._environment.get(name, "").strip() or default

    def required(self, name: str, what: str) -> str:
        value = self.text(name, "")
        if not value:
            self.problems.append(f"{name} is not set: {what}")
        return value

    def number(self, name: str, default: float, *, at_least: float = 0) -> float:
        text = self.text(name, str(default))
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not value >= at_least or value == float("inf"):
            self.problems.append(f"{name} must be a number of at least {at_least:g}, not {text!r}")
            return default
        return value

    def whole(self, name: str, default: int, *, at_least: int, at_most: int) -> int:
        text = self.text(name, str(default))
        if not text.isdecimal() or not at_least <= int(text) <= at_most:
            self.problems.append(f"{name} must be a whole number from {at_least} to {at_most}, not {text!r}")
            return default
        return int(text)

    def one_of(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(name, default)
        if value not in choices:
            self.problems.append(f"{name} must be one of {', '.join(choices)}, not {value!r}")
        return value
