"""Data over HTTP and from object stores: fetched once, gone on with, checked, and every way of failing told apart."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub
from file_server import FileServer, etag
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedSource
from finetune_trainer import downloads, object_store
from finetune_trainer.errors import TrainerError
from finetune_trainer.prepare import prepare
from finetune_trainer.sources import find_sources
from huggingface_hub import constants
from trainer_configs import ROWS, local_model, make_config

pytestmark = pytest.mark.usefixtures("no_waiting")
CONTENT = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64
KEYS = {"X_AWS_ACCESS_KEY_ID": "KEY", "X_AWS_SECRET_ACCESS_KEY": "SECRET"}


@pytest.fixture
def web() -> Iterator[FileServer]:
    with FileServer({"/data/rows.jsonl": CONTENT}) as server:
        yield server


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    files = {"/bucket/data/b.jsonl": CONTENT, "/bucket/data/a.jsonl": CONTENT[:100], "/bucket/data/notes.txt": b"-",
             "/bucket/data/more/c.jsonl": b"{", "/bucket/empty/notes.txt": b"-"}  # fmt: skip
    with FileServer(files, s3=True, access_key="KEY") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        yield server


def find(directory: Path, uri: str, **fields: Any) -> list[Path]:
    source = ResolvedSource(uri=uri, **fields)
    config = make_config(directory, model=local_model(directory), sources=[source])
    (found,) = find_sources(config)
    return list(found.files)


def refused(directory: Path, code: ExitCode, uri: str, **fields: Any) -> str:
    with pytest.raises(TrainerError) as failure:
        find(directory, uri, **fields)
    assert failure.value.exit_code is code, failure.value
    assert str(failure.value).startswith("spec.dataset.sources[0]")
    return str(failure.value)


# HTTP.


def test_a_file_is_fetched_once_and_asked_after_by_its_tag(web: FileServer, tmp_path: Path) -> None:
    uri = f"{web.url}/data/rows.jsonl"
    (file,) = find(tmp_path, uri)
    assert (file.name, file.read_bytes()) == ("rows.jsonl", CONTENT)
    assert find(tmp_path, uri) == [file]
    assert web.requests == ["GET /data/rows.jsonl"] * 2
    web.files["/data/rows.jsonl"] = CONTENT[:200]
    (changed,) = find(tmp_path, uri)
    assert changed.read_bytes() == CONTENT[:200]
    assert file.read_bytes() == CONTENT  # another job may be reading it


def test_prepare_takes_rows_from_the_web(web: FileServer, tiny: Path, tmp_path: Path) -> None:
    source = ResolvedSource(uri=f"{web.url}/data/rows.jsonl?version=3", sha256=SHA256)
    report = prepare(make_config(tmp_path, model=local_model(tiny), sources=[source]))
    assert report.dataset is not None
    assert report.dataset.samples == len(ROWS)


def test_a_download_that_breaks_off_is_gone_on_with(web: FileServer, tmp_path: Path) -> None:
    web.break_off_after = [1000, 500]
    (file,) = find(tmp_path, f"{web.url}/data/rows.jsonl")
    assert file.read_bytes() == CONTENT
    assert web.requests == [f"GET /data/rows.jsonl{place}" for place in ("", " bytes=1000-", " bytes=1500-")]


def test_the_next_attempt_goes_on_where_the_last_one_gave_up(web: FileServer, tmp_path: Path) -> None:
    web.break_off_after = [1000]
    web.fail_with = []
    uri = f"{web.url}/data/rows.jsonl"
    real = downloads.ATTEMPTS
    downloads.ATTEMPTS = 1
    try:
        refused(tmp_path, ExitCode.DATASET_UNREACHABLE, uri)
    finally:
        downloads.ATTEMPTS = real
    (file,) = find(tmp_path, uri)
    assert file.read_bytes() == CONTENT
    assert web.requests[-1] == "GET /data/rows.jsonl bytes=1000-"


@pytest.mark.parametrize("reason", ["changed", "no ranges", "no tags"])
def test_a_part_that_does_not_fit_is_thrown_away(web: FileServer, tmp_path: Path, reason: str) -> None:
    web.ranges, web.validators = reason != "no ranges", reason != "no tags"
    web.break_off_after = [1000]
    wanted = CONTENT
    if reason == "changed":
        wanted = CONTENT.replace(b"It is", b"That is")

        class Changing(list[str]):
            def append(self, item: str) -> None:
                if self:
                    web.files["/data/rows.jsonl"] = wanted
                super().append(item)

        web.requests = Changing()
    (file,) = find(tmp_path, f"{web.url}/data/rows.jsonl")
    assert file.read_bytes() == wanted
    assert len(web.requests) == 2


def test_busy_servers_are_asked_again(web: FileServer, tmp_path: Path) -> None:
    web.fail_with = [503, 429, 500]
    assert find(tmp_path, f"{web.url}/data/rows.jsonl")[0].read_bytes() == CONTENT
    assert len(web.requests) == 4


def test_a_server_that_is_away_is_done_without_where_there_is_a_copy(
    web: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="finetune")
    uri = f"{web.url}/data/rows.jsonl"
    (file,) = find(tmp_path, uri)
    web.fail_with = [503] * 50
    assert find(tmp_path, uri) == [file]
    assert "using the copy in the cache" in caplog.text
    web.requests.clear()
    assert find(tmp_path, uri, sha256=SHA256) == [file]
    assert web.requests == []  # the hash says that it is the right one
    said = refused(tmp_path, ExitCode.DATASET_UNREACHABLE, uri, sha256=OTHER)
    assert "the server answers 503" in said
    assert len(web.requests) == downloads.ATTEMPTS


def test_no_server(tmp_path: Path) -> None:
    with FileServer({}) as gone:
        url = gone.url
    said = refused(tmp_path, ExitCode.DATASET_UNREACHABLE, f"{url}/rows.jsonl")
    assert "cannot be reached: " in said
    assert "Connection refused" in said


@pytest.mark.parametrize(
    ("status", "code", "problem"),
    [
        (404, ExitCode.DATASET_NOT_FOUND, "the server answers 404"),
        (410, ExitCode.DATASET_NOT_FOUND, "the server answers 410"),
        (401, ExitCode.DATASET_ACCESS_DENIED, "name a Secret with it in spec.dataset.sources[0].secretRef"),
    ],
)
def test_what_no_attempt_mends_is_told_at_once(
    web: FileServer, tmp_path: Path, status: int, code: ExitCode, problem: str
) -> None:
    web.fail_with = [status]
    assert problem in refused(tmp_path, code, f"{web.url}/data/rows.jsonl")
    assert len(web.requests) == 1


def test_a_token_is_sent_and_stays_with_its_host(
    web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_TOKEN", "t")
    uri, web.token = f"{web.url}/data/rows.jsonl", "t"
    assert find(tmp_path, uri, token_env="THE_TOKEN")
    with FileServer({"/rows.jsonl": CONTENT}) as other:
        web.redirects["/moved"] = f"{other.url}/rows.jsonl"
        assert find(tmp_path, f"{web.url}/moved", token_env="THE_TOKEN")
        assert web.authorizations[-1] == "Bearer t"
        assert other.authorizations == [""]
    web.token = "another"
    said = refused(tmp_path / "new", ExitCode.DATASET_ACCESS_DENIED, uri, token_env="THE_TOKEN")
    assert "the token of spec.dataset.sources[0].secretRef was given, but does not grant access" in said


def test_a_redirect_to_this_machines_files_is_refused(web: FileServer, tmp_path: Path) -> None:
    web.redirects["/moved"] = "ftp://127.0.0.1/rows.jsonl"
    said = refused(tmp_path, ExitCode.DATASET_NOT_FOUND, f"{web.url}/moved")
    assert "redirects to ftp, which is refused" in said


# Checksums.


def test_a_file_of_another_hash_is_refused_and_not_kept(web: FileServer, tmp_path: Path) -> None:
    uri = f"{web.url}/data/rows.jsonl"
    said = refused(tmp_path, ExitCode.DATASET_INVALID, uri, sha256=OTHER)
    assert f"{uri} has the SHA-256 {SHA256}, where spec says {OTHER}" in said
    assert not list((tmp_path / "cache").rglob("rows.jsonl"))
    assert find(tmp_path, uri, sha256=SHA256)[0].read_bytes() == CONTENT
    refused(tmp_path, ExitCode.DATASET_INVALID, uri, sha256=OTHER)  # also where the server says it is unchanged
    assert find(tmp_path, uri, sha256=SHA256)


def test_files_of_every_source_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(CONTENT)
    assert find(tmp_path, "pvc://a/rows.jsonl", path=str(file), sha256=SHA256) == [file]
    said = refused(tmp_path, ExitCode.DATASET_INVALID, "pvc://a/rows.jsonl", path=str(file), sha256=OTHER)
    assert SHA256 in said
    assert OTHER in said
    (tmp_path / "more.jsonl").write_bytes(CONTENT)
    assert "is 2 files" in refused(tmp_path, ExitCode.CONFIG_INVALID, "pvc://a", path=str(tmp_path), sha256=SHA256)
    rows = tmp_path / "hub/datasets/acme/rows/train.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_bytes(CONTENT)
    with FakeHub(tmp_path / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert find(tmp_path, "hf://acme/rows/train.jsonl", sha256=SHA256)
        refused(tmp_path, ExitCode.DATASET_INVALID, "hf://acme/rows/train.jsonl", sha256=OTHER)


# Object stores.


def test_an_object_is_fetched_once_with_signed_requests(store: FileServer, tmp_path: Path) -> None:
    (file,) = find(tmp_path, "s3://bucket/data/b.jsonl", credentials_env="X_")
    assert (file.name, file.read_bytes()) == ("b.jsonl", CONTENT)
    assert all(header.startswith("AWS4-HMAC-SHA256 Credential=KEY/") for header in store.authorizations)
    assert any(request.startswith("GET /bucket/data/b.jsonl") for request in store.requests)
    store.requests.clear()
    assert find(tmp_path, "s3://bucket/data/b.jsonl", credentials_env="X_") == [file]
    assert not [request for request in store.requests if request.startswith("GET /bucket/data/b.jsonl")]
    about = json.loads(next((tmp_path / "cache/data").rglob("about.json")).read_text())
    assert (about["validator"], about["sha256"]) == (etag(CONTENT), SHA256)


def test_a_folder_of_objects_is_read_by_name(store: FileServer, tmp_path: Path) -> None:
    files = find(tmp_path, "s3://bucket/data/", credentials_env="X_")
    assert [file.name for file in files] == ["a.jsonl", "b.jsonl"]


def test_an_object_that_breaks_off_is_gone_on_with(store: FileServer, tmp_path: Path) -> None:
    store.break_off_after = [1000] * 3  # the client itself asks again first
    (file,) = find(tmp_path, "s3://bucket/data/b.jsonl", credentials_env="X_", sha256=SHA256)
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("uri", "code", "problem"),
    [
        ("s3://bucket/data/none.jsonl", ExitCode.DATASET_NOT_FOUND, "there is no object s3://bucket/data/none.jsonl"),
        ("s3://none/rows.jsonl", ExitCode.DATASET_NOT_FOUND, "s3://none/rows.jsonl"),
        ("s3://bucket/empty", ExitCode.DATASET_NOT_FOUND, "there is no file of rows (.jsonl"),
    ],
)
def test_no_such_object(store: FileServer, tmp_path: Path, uri: str, code: ExitCode, problem: str) -> None:
    assert problem in refused(tmp_path, code, uri, credentials_env="X_")


def test_credentials_that_are_missing_or_wrong(
    store: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in object_store._OF_THE_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    uri = "s3://bucket/data/b.jsonl"
    said = refused(tmp_path, ExitCode.DATASET_ACCESS_DENIED, uri)
    assert "no credentials were given: name a Secret with them in spec.dataset.sources[0].secretRef" in said
    monkeypatch.setenv("X_AWS_ACCESS_KEY_ID", "WRONG")
    said = refused(tmp_path, ExitCode.DATASET_ACCESS_DENIED, uri, credentials_env="X_")
    assert "the credentials were given, but do not grant access" in said
    monkeypatch.setenv("X_AWS_SECRET_ACCESS_KEY", "")
    said = refused(tmp_path, ExitCode.DATASET_ACCESS_DENIED, uri, credentials_env="X_")
    assert "spec.dataset.sources[0].secretRef: the Secret has no AWS_SECRET_ACCESS_KEY" in said


def test_open_buckets_need_no_credentials(store: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in object_store._OF_THE_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    store.access_key = ""
    assert find(tmp_path, "s3://bucket/data/b.jsonl")[0].read_bytes() == CONTENT
    assert set(store.authorizations) == {""}


def test_a_secrets_own_endpoint_goes_before_the_environments(
    store: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("X_AWS_ENDPOINT_URL", store.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert find(tmp_path, "s3://bucket/data/b.jsonl", credentials_env="X_")


def test_a_store_that_is_away(store: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FileServer({}) as gone:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gone.url)
    said = refused(tmp_path, ExitCode.DATASET_UNREACHABLE, "s3://bucket/data/b.jsonl", credentials_env="X_")
    assert "Check the pod's network and AWS_ENDPOINT_URL" in said
