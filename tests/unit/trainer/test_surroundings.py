"""The environment that libraries read: set before they are imported, and for this process alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from finetune_trainer import surroundings
from torch._dynamo.utils import counters
from transformers import TrainingArguments


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_transformers_does_not_report_beside_us(tmp_path: Path) -> None:
    os.environ["KUBEFLOW_TRAINER_SERVER_URL"] = "https://operator:8443/progress"
    surroundings.set_up(tmp_path)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    assert list(arguments.report_to) in ([], ["none"])


def test_models_go_to_the_cache_volume_and_nothing_else_does(tmp_path: Path) -> None:
    surroundings.set_up(tmp_path / "cache")
    assert os.environ["HF_HUB_CACHE"] == str(tmp_path / "cache" / "hub")
    assert not os.environ["HF_MODULES_CACHE"].startswith(str(tmp_path))


def test_what_was_compiled_is_on_the_cache_volume_for_the_next_attempt(tmp_path: Path) -> None:
    """A product alone, which is a call of the library: no compiler of C++ is needed for it."""

    def attempt(cache: Path) -> str:
        surroundings.set_up(cache)
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "compiled" / "inductor")
        assert os.environ["TRITON_CACHE_DIR"] == str(cache / "compiled" / "triton")
        torch._dynamo.reset()  # as a new process, which has no graphs
        counters.clear()
        square = torch.compile(lambda matrix: matrix @ matrix)
        torch.testing.assert_close(square(torch.eye(8)), torch.eye(8))
        (found,) = (name for name in ("hit", "miss") if counters["inductor"][f"fxgraph_cache_{name}"])
        return found

    assert attempt(tmp_path / "volume") == "miss"
    written = {path for path in (tmp_path / "volume/compiled/inductor").rglob("*") if path.is_file()}
    assert written
    assert attempt(tmp_path / "volume") == "hit"
    assert all(path.is_file() for path in written)
    assert attempt(tmp_path / "other") == "miss"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
    ids=["v2", "v2 without limit", "v1", "v1 without limit", "no cgroup"],
)
def test_the_container_s_limit_is_read(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert surroundings.cpu_limit(tmp_path) == limit


def test_threads_are_what_is_said_else_what_the_limit_allows(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000")
    assert surroundings.threads({"OMP_NUM_THREADS": "3"}, tmp_path) == 3
    assert surroundings.threads({}, tmp_path) == 1
    assert surroundings.threads({"OMP_NUM_THREADS": "many"}, tmp_path / "none") == len(os.sched_getaffinity(0))
