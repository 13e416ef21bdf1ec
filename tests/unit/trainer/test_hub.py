"""The hub: what is fetched, what each refusal means, and what happens when nobody answers."""

from __future__ import annotations

import errno
import logging
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from finetune_api.failures import ExitCode
from finetune_trainer import hub as hub_module
from finetune_trainer.errors import TrainerError
from finetune_trainer.hub import Repository, choose_rows, fetch_files, fetch_model
from huggingface_hub import constants

TOKEN = "hf_right"
MODEL = "acme/tiny"
ROWS = "acme/rows"


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which is read at import."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def served(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    root = tmp_path / "served"
    shutil.copytree(tiny, root / "models" / MODEL)
    for name in ("pytorch_model.bin", "README.md", "modeling_tiny.py", "onnx/model.json", "notes.txt"):
        path = root / "models" / MODEL / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("extra")
    for name in ("data/train.jsonl", "data/test.jsonl", "README.md"):
        path = root / "datasets" / ROWS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"rows of {name}")
    with FakeHub(root, token=TOKEN) as hub:
        use(hub.url, monkeypatch)
        yield hub


def repository(name: str = MODEL, *, revision: str = "main", token_env: str | None = None) -> Repository:
    return Repository("model", name, revision, "spec.model.source", token_env)


def rows(name: str = ROWS) -> Repository:
    return Repository("dataset", name, "main", "spec.dataset.sources[0].uri", None)


def fetch(cache: Path, what: Repository | None = None, **options: bool) -> tuple[Path, str]:
    return fetch_model(what or repository(), cache, **{"allow_pickle": False, "code": False, **options})


def refused(cache: Path, what: Repository, code: ExitCode) -> str:
    with pytest.raises(TrainerError) as failure:
        fetch(cache, what)
    assert failure.value.exit_code is code
    return str(failure.value)


def test_only_what_training_needs_is_fetched(served: FakeHub, tmp_path: Path, tiny: Path) -> None:
    directory, commit = fetch(tmp_path / "cache")
    assert commit == served.commit("models", MODEL)
    names = {path.name for path in directory.iterdir()}
    assert names == {path.name for path in tiny.iterdir()} | {"notes.txt"}
    assert (directory / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()
    assert directory.is_relative_to(tmp_path / "cache" / "hub")


def test_code_is_fetched_where_it_is_trusted(served: FakeHub, tmp_path: Path) -> None:
    directory, _ = fetch(tmp_path / "cache", code=True)
    assert (directory / "modeling_tiny.py").exists()


def test_pickles_are_fetched_where_they_are_allowed_and_all_there_is(served: FakeHub, tmp_path: Path) -> None:
    directory, _ = fetch(tmp_path / "a", allow_pickle=True)
    assert not (directory / "pytorch_model.bin").exists()
    (served.root / "models" / MODEL / "model.safetensors").unlink()
    directory, _ = fetch(tmp_path / "b", allow_pickle=True)
    assert (directory / "pytorch_model.bin").exists()
    directory, _ = fetch(tmp_path / "c", allow_pickle=False)
    assert not (directory / "pytorch_model.bin").exists()


def test_a_second_fetch_moves_no_file(served: FakeHub, tmp_path: Path) -> None:
    first = fetch(tmp_path / "cache")
    served.requests.clear()
    assert fetch(tmp_path / "cache") == first
    assert not [request for request in served.requests if request.startswith("GET") and "/resolve/" in request]


def test_a_model_that_is_not_there(served: FakeHub, tmp_path: Path) -> None:
    said = refused(tmp_path, repository("acme/none"), ExitCode.MODEL_NOT_FOUND)
    assert "spec.model.source: there is no model acme/none" in said
    assert "if it is private, name a Secret with a token in spec.model.secretRef" in said


def test_a_revision_that_is_not_there(served: FakeHub, tmp_path: Path) -> None:
    said = refused(tmp_path, repository(revision="v9"), ExitCode.MODEL_NOT_FOUND)
    assert "spec.model.revision: acme/tiny has no revision 'v9'" in said


def test_a_name_that_cannot_be(served: FakeHub, tmp_path: Path) -> None:
    assert "is no name of a repository" in refused(tmp_path, repository("acme/a--b"), ExitCode.MODEL_NOT_FOUND)


def test_a_gated_model_without_a_token(served: FakeHub, tmp_path: Path) -> None:
    served.gated = {MODEL}
    said = refused(tmp_path, repository(), ExitCode.MODEL_ACCESS_DENIED)
    assert "is gated" in said
    assert "no token was given: accept the licence on the hub and name a Secret with a token" in said
    assert "spec.model.secretRef" in said


def test_a_gated_model_with_a_token(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served.gated = {MODEL}
    monkeypatch.setenv("MODEL_TOKEN", "hf_wrong")
    said = refused(tmp_path / "cache", repository(token_env="MODEL_TOKEN"), ExitCode.MODEL_ACCESS_DENIED)
    assert "the token of spec.model.secretRef was given, but does not grant access" in said
    assert "hf_wrong" not in said
    monkeypatch.setenv("MODEL_TOKEN", TOKEN)
    directory, _ = fetch(tmp_path / "cache", repository(token_env="MODEL_TOKEN"))
    assert (directory / "model.safetensors").exists()


def test_only_the_token_that_the_job_names_is_sent(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_machine")
    fetch(tmp_path / "cache")
    assert served.tokens == set()


def test_a_gated_model_in_the_cache_does_not_open_to_whoever_has_no_token(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.private = {MODEL}
    monkeypatch.setenv("MODEL_TOKEN", TOKEN)
    fetch(tmp_path / "cache", repository(token_env="MODEL_TOKEN"))
    refused(tmp_path / "cache", repository(), ExitCode.MODEL_NOT_FOUND)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_without_a_hub_the_cache_serves_and_the_log_says_so(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found = fetch(tmp_path / "cache")
    use(f"http://127.0.0.1:{closed_port()}", monkeypatch)
    caplog.set_level(logging.INFO, logger="finetune")
    started = time.monotonic()
    assert fetch(tmp_path / "cache") == found
    assert time.monotonic() - started < 5
    assert "cannot be reached" in caplog.text
    assert f"using the cache's copy of the model {MODEL}, commit {found[1][:12]}" in caplog.text
    assert fetch(tmp_path / "cache", repository(revision=found[1])) == found


def test_without_a_hub_and_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(f"http://127.0.0.1:{closed_port()}", monkeypatch)
    said = refused(tmp_path, repository(), ExitCode.HUB_UNREACHABLE)
    assert "cannot be reached" in said
    assert "the cache has no copy of the model acme/tiny" in said


def test_an_incomplete_copy_is_no_copy(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, _ = fetch(tmp_path / "cache")
    (directory / "config.json").unlink()
    use(f"http://127.0.0.1:{closed_port()}", monkeypatch)
    assert "not complete" in refused(tmp_path / "cache", repository(), ExitCode.HUB_UNREACHABLE)


def test_a_hub_that_is_ill_is_as_good_as_none(served: FakeHub, tmp_path: Path) -> None:
    found = fetch(tmp_path / "cache")
    served.fail_with = 503
    assert fetch(tmp_path / "cache") == found
    assert "answers 503" in refused(tmp_path / "other", repository(), ExitCode.HUB_UNREACHABLE)


def test_a_hub_that_is_silent_is_given_up_in_time(
    served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: release.wait(30))
    assert "no answer within" in refused(tmp_path, repository(), ExitCode.HUB_UNREACHABLE)
    release.set()


def test_a_full_cache_is_told(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_module, "snapshot_download", full)
    assert "the cache volume is full" in refused(tmp_path, repository(), ExitCode.VOLUME_FULL)


def test_a_file_of_a_data_set(served: FakeHub, tmp_path: Path) -> None:
    assert fetch_files(rows(), "data/test.jsonl", "train", tmp_path)[0].read_text() == "rows of data/test.jsonl"
    assert fetch_files(rows(), "", "train", tmp_path)[0].read_text() == "rows of data/train.jsonl"


def test_a_file_of_a_data_set_without_a_hub(served: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = fetch_files(rows(), "data/test.jsonl", "train", tmp_path)
    use(f"http://127.0.0.1:{closed_port()}", monkeypatch)
    assert fetch_files(rows(), "data/test.jsonl", "train", tmp_path) == found
    with pytest.raises(TrainerError, match=r"the cache's copy has no data/train\.jsonl") as failure:
        fetch_files(rows(), "data/train.jsonl", "train", tmp_path)
    assert failure.value.exit_code is ExitCode.HUB_UNREACHABLE


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("acme/none", ExitCode.DATASET_NOT_FOUND, "there is no data set acme/none"),
        (ROWS, ExitCode.DATASET_NOT_FOUND, r"has no a\.jsonl\. It has: README\.md, data/test\.jsonl"),
        ("acme/gated", ExitCode.DATASET_ACCESS_DENIED, r"spec\.dataset\.sources\[0\]\.secretRef"),
    ],
)
def test_a_data_set_that_cannot_be_had(
    served: FakeHub, tmp_path: Path, name: str, code: ExitCode, message: str
) -> None:
    gated = served.root / "datasets" / "acme/gated" / "a.jsonl"
    gated.parent.mkdir(parents=True)
    gated.write_text("rows")
    served.gated = {"acme/gated"}
    with pytest.raises(TrainerError, match=message) as failure:
        fetch_files(rows(name), "a.jsonl", "train", tmp_path)
    assert failure.value.exit_code is code
    assert "spec.dataset.sources[0].uri" in str(failure.value)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["only.json"], ["only.json"]),
        (["only.parquet", "README.md"], ["only.parquet"]),
        (["data/train-00000.jsonl", "data/test.jsonl"], ["data/train-00000.jsonl"]),
        (["train.json", "training_notes.md", "validation.json", "dataset_infos.json"], ["train.json"]),
        (["a/train-00000-of-00002.parquet", "a/train-00001-of-00002.parquet", "a/test-00000-of-00001.parquet"],
         ["a/train-00000-of-00002.parquet", "a/train-00001-of-00002.parquet"]),
        (["a/train-00000-of-00001.parquet", "b/train-00000-of-00001.parquet"], None),
        (["a.jsonl", "b.jsonl"], None),
        (["train.txt"], None),
    ],
)  # fmt: skip
def test_the_files_of_a_split(names: list[str], expected: list[str] | None) -> None:
    if expected is not None:
        assert choose_rows(names, "train", rows()) == expected
        return
    with pytest.raises(TrainerError, match=r"has no one file of rows .* name it in the uri"):
        choose_rows(names, "train", rows())
