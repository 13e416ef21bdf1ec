"""Settings from the environment: defaults, all errors at once, and a page that lists every one."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from finetune_operator import settings as module
from finetune_operator.settings import SettingsError, read_settings

NEEDED = {"FINETUNE_TRAINER_IMAGE": "registry/trainer:1", "FINETUNE_NAMESPACE": "system"}
ROOT = Path(__file__).resolve().parents[3]


def test_the_image_alone_has_to_be_said() -> None:
    settings = read_settings(NEEDED)
    assert settings.core.progress_url == "https://finetune-operator.system.svc:8443"
    assert (settings.progress_port, settings.metrics_port, settings.namespaces) == (8443, 8080, ())
    assert settings.hosts == (
        "finetune-operator.system.svc",
        "finetune-operator.system",
        "finetune-operator.system.svc.cluster.local",
        "localhost",
    )


def test_an_image_with_unsloth_is_there_where_it_is_named() -> None:
    assert not read_settings(NEEDED).core.unsloth_image
    assert read_settings(NEEDED | {"FINETUNE_UNSLOTH_IMAGE": "registry/unsloth:1"}).core.unsloth_image.endswith(":1")


def test_what_is_empty_is_not_set() -> None:
    assert read_settings(NEEDED | {"FINETUNE_WORKERS": " ", "FINETUNE_LOG_LEVEL": ""}).workers == 32


def test_namespaces_are_separated_by_commas_or_spaces_and_told_once() -> None:
    assert read_settings(NEEDED | {"FINETUNE_WATCH_NAMESPACES": "a, b,a c"}).namespaces == ("a", "b", "c")


def test_a_url_of_ones_own_gives_the_certificate_its_host() -> None:
    settings = read_settings(NEEDED | {"FINETUNE_PROGRESS_URL": "https://127.0.0.1:9443/"})
    assert settings.core.progress_url == "https://127.0.0.1:9443"
    assert settings.hosts == ("127.0.0.1", "localhost")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FINETUNE_PROGRESS_PORT", "0"),
        ("FINETUNE_PROGRESS_PORT", "65536"),
        ("FINETUNE_METRICS_PORT", "80.5"),
        ("FINETUNE_WORKERS", "0"),
        ("FINETUNE_WORKERS", "1e3"),
        ("FINETUNE_RESYNC_SECONDS", "0"),
        ("FINETUNE_BACKOFF_BASE_SECONDS", "-1"),
        ("FINETUNE_BACKOFF_CAP_SECONDS", "inf"),
        ("FINETUNE_PROGRESS_INTERVAL_SECONDS", "nan"),
        ("FINETUNE_START_GRACE_SECONDS", "soon"),
        ("FINETUNE_PROGRESS_URL", "http://host"),
        ("FINETUNE_PROGRESS_URL", "https://"),
        ("FINETUNE_PROGRESS_URL", "https://host:port"),
        ("FINETUNE_PROGRESS_URL", "https://[::1"),
        ("FINETUNE_WATCH_NAMESPACES", "Team"),
        ("FINETUNE_LOG_FORMAT", "xml"),
        ("FINETUNE_LOG_LEVEL", "info"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        read_settings(NEEDED | {name: value})


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as error:
        read_settings({"FINETUNE_WORKERS": "x", "FINETUNE_LOG_FORMAT": "y"})
    for name in ("FINETUNE_TRAINER_IMAGE", "FINETUNE_WORKERS", "FINETUNE_LOG_FORMAT"):
        assert name in str(error.value)


def test_the_page_lists_every_variable_and_no_other() -> None:
    read = set(re.findall(r'"(FINETUNE_[A-Z_]+)"', inspect.getsource(module)))
    page = set(re.findall(r"^\| `(FINETUNE_[A-Z_]+)`", (ROOT / "docs/settings.md").read_text(), re.MULTILINE))
    assert read == page
