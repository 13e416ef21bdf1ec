from __future__ import annotations

from pathlib import Path

import pytest
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import downloads
from tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model; tests leave it as it is."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: no chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "base", chat_template=False)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads are tried again at once, and go by no proxy of this machine's."""
    monkeypatch.setattr(downloads, "WAIT_SECONDS", 0.0)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def media_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each type that sees or hears; tests leave them as they are."""
    from tiny_media import MAKERS  # noqa: PLC0415 - these take seconds

    root = tmp_path_factory.mktemp("media-models")
    for name, make in MAKERS.items():
        make(root / name)
    return {name: root / name for name in MAKERS}


@pytest.fixture
def job(tmp_path: Path, media_models: dict[str, Path], request: pytest.FixtureRequest) -> TrainerConfig:
    """A small job on a model of the type that the test asks for; modules with jobs of their own have another."""
    from media_jobs import media_job  # noqa: PLC0415 - as above

    return media_job(tmp_path, media_models[request.param])
