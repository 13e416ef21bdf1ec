"""Which cluster the demo chooses, and how that cluster gets the images."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = ("KUBECONFIG", "KUBECTL", "OPERATOR_IMAGE", "TRAINER_IMAGE", "IMAGE_REGISTRY")


@pytest.fixture
def demo_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, on a machine whose programs only say how they were called."""
    monkeypatch.syspath_prepend(str(ROOT / "hack"))
    module = importlib.import_module("demo_cluster")
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("kubectl", "helm", "kind", "buildah", "tiers", "build", "cluster"):
        program = programs / name
        answer = f"[ ! -f {tmp_path}/{name} ] || cat {tmp_path}/{name}"
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/calls\n{answer}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(module, "BUILD", programs / "build")
    monkeypatch.setattr(module, "CLUSTER", programs / "cluster")
    monkeypatch.setattr(module, "TIERS", programs / "tiers")
    (tmp_path / "cluster").write_text("/state/kubeconfig\n")
    (tmp_path / "build").write_text("localhost/finetune-image:1\n")
    return module


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_kubeconfig_names_the_cluster(demo_cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", "/home/me/config")
    target = demo_cluster.find_target()
    assert target.embedded is False
    assert (target.kubectl, target.helm) == (str(tmp_path / "bin/kubectl"), str(tmp_path / "bin/helm"))


def test_the_embedded_clusters_own_kubeconfig_is_no_other_cluster(
    demo_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/state/kubeconfig")
    assert demo_cluster.find_target().embedded is True


def test_without_root_there_is_none(demo_cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "tiers").write_text("the embedded node needs root\n")
    assert demo_cluster.find_target() is None


def test_images_that_are_there_are_taken(demo_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPERATOR_IMAGE", "r/o:1")
    monkeypatch.setenv("TRAINER_IMAGE", "r/t:1")
    assert demo_cluster.Target(embedded=False).images() == ("r/o:1", "r/t:1")


def test_a_registry_is_pushed_to(demo_cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IMAGE_REGISTRY", "registry.example.com/team")
    demo_cluster.Target(embedded=False).images()
    assert calls(tmp_path) == [
        f"build {image} --registry registry.example.com/team" for image in ("operator", "trainer")
    ]


def test_kind_loads_them(demo_cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", "/home/me/config")
    (tmp_path / "kubectl").write_text("kind-lab\n")
    images = demo_cluster.find_target().images()
    assert images == ("localhost/finetune-image:1",) * 2
    told = "\n".join(calls(tmp_path))
    assert "build operator --registry localhost --no-push" in told
    assert "push localhost/finetune-image:1 docker-archive:" in told
    assert told.count("kind load image-archive") == 2
    assert "--name lab" in told


def test_another_cluster_needs_to_be_told(demo_cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KUBECONFIG", "/home/me/config")
    (tmp_path / "kubectl").write_text("prod\n")
    with pytest.raises(demo_cluster.DemoError, match=r"'prod'.*IMAGE_REGISTRY.*OPERATOR_IMAGE and TRAINER_IMAGE"):
        demo_cluster.find_target().images()


def test_a_program_that_fails_is_told_with_its_last_words(demo_cluster: Any) -> None:
    with pytest.raises(demo_cluster.DemoError, match=r"(?s)sh -c .* failed:.*the last words"):
        demo_cluster.Step("x", None).command(["sh", "-c", "echo the last words >&2; exit 3"])


@pytest.mark.parametrize(
    ("image", "settings"),
    [
        ("127.0.0.1:5055/o:abc", {"tag": "abc", "repository": "127.0.0.1:5055/o"}),
        ("r.example.com/o@sha256:1", {"digest": "sha256:1", "repository": "r.example.com/o"}),
    ],
)
def test_an_image_becomes_the_charts_values(
    demo_cluster: Any, monkeypatch: pytest.MonkeyPatch, image: str, settings: dict[str, str]
) -> None:
    demo = importlib.import_module("demo")
    assert demo.image_values("image", image) == {f"image.{key}": value for key, value in settings.items()}
    with pytest.raises(demo_cluster.DemoError, match="with a tag or digest"):
        demo.image_values("image", "127.0.0.1:5055/o")


def test_down_on_a_machine_with_nothing_is_no_error(demo_cluster: Any, tmp_path: Path) -> None:
    demo = importlib.import_module("demo")
    assert demo.remove(demo_cluster.Target(embedded=True)) == 0
    assert not any(call == "cluster down" for call in calls(tmp_path))
