"""Data that is read as it comes: equal to what a download gives, never on the disk, and loud where it is not right."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from fake_hub import FakeHub
from file_server import FileServer
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedSource, TrainerConfig
from finetune_api.training import ValidationSpec
from finetune_trainer import downloads, row_files, streams
from finetune_trainer.errors import TrainerError
from finetune_trainer.files import sha256_file
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from finetune_trainer.row_files import raw_rows
from finetune_trainer.sources import find_sources
from finetune_trainer.streams import StreamedFile
from finetune_trainer.web import WebFile
from huggingface_hub import constants
from trainer_configs import local_model, local_source, make_config

pytestmark = pytest.mark.usefixtures("no_waiting")
ROWS = [
    {"instruction": f"What is {number} and one more?", "output": f"It is {number + 1}, " + "as ever, " * (number % 9)}
    for number in range(900)
]
KINDS = ("rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.arrow", "rows.feather")


def content_of(name: str, rows: list[dict[str, str]]) -> bytes:
    """``rows`` as what the name's ending says."""
    table, sink = pa.Table.from_pylist(rows), io.BytesIO()
    if name.endswith(".parquet"):
        # Groups in one ratio to the rows: the directory at the end, which is read whole, grows with their number.
        size = {"row_group_size": -(-len(rows) // 4), "data_page_size": 2**12, "use_dictionary": False}
        pyarrow.parquet.write_table(table, sink, **size)
    elif name.endswith((".arrow", ".feather")):
        new = pa.ipc.new_stream if name.endswith(".arrow") else pa.ipc.new_file
        with new(sink, table.schema) as written:
            written.write_table(table, max_chunksize=100)
    elif name.endswith(".csv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()
    elif name.endswith(".json"):
        return json.dumps(rows).encode()
    else:
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    return sink.getvalue()


CONTENT = {name: content_of(name, ROWS) for name in KINDS}
LINES = CONTENT["rows.jsonl"]
OTHER = "0" * 64


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def web() -> Iterator[FileServer]:
    with FileServer({f"/data/{name}": content for name, content in CONTENT.items()}) as server:
        yield server


def streamed(web: FileServer, name: str, digest: str | None = None) -> StreamedFile:
    url = f"{web.url}/data/{name}"
    return StreamedFile(WebFile(url, token=None, field="field"), url, sha256=digest, field="field")


def values(file: StreamedFile) -> list[Any]:
    return [row.value() for row in raw_rows(file)]


def refused(file: StreamedFile) -> TrainerError:
    with pytest.raises(TrainerError) as failure:
        values(file)
    return failure.value


@pytest.fixture
def job(web: FileServer, tiny: Path, tmp_path: Path) -> TrainerConfig:
    source = ResolvedSource(uri=f"{web.url}/data/rows.jsonl")
    return make_config(tmp_path, model=local_model(tiny), sources=[source], max_length=256, streaming=True)


def of(job: TrainerConfig, **fields: Any) -> TrainerConfig:
    return job.model_copy(update={"sources": [job.sources[0].model_copy(update=fields)]})


# Reading.


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("digest", [False, True])
def test_rows_of_every_kind_are_those_of_the_file(web: FileServer, name: str, digest: bool) -> None:
    assert values(streamed(web, name, sha256(CONTENT[name]) if digest else None)) == ROWS


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_is_cut_is_gone_on_with(
    web: FileServer, name: str, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "BUFFER_BYTES", 2**13)
    web.ranges = ranges or name.endswith(".parquet")
    file = streamed(web, name)
    assert file.size == len(CONTENT[name])
    web.requests.clear()
    web.break_off_after = [9000, 1, 5000]
    assert values(file) == ROWS
    if name == "rows.jsonl":
        places = [" bytes=9000-", " bytes=9001-", " bytes=14001-"] if ranges else [" bytes=9000-"] * 3
        assert web.requests == [f"GET /data/rows.jsonl{place}" for place in ("", *places)]


def test_servers_that_are_busy_are_asked_again_and_at_last_given_up(web: FileServer) -> None:
    web.fail_with = [503, 429, 500]
    assert values(streamed(web, "rows.jsonl")) == ROWS
    web.fail_with = [503] * 50
    error = refused(streamed(web, "rows.jsonl"))
    assert error.exit_code is ExitCode.DATASET_UNREACHABLE
    assert "field: http://127.0.0.1" in str(error)
    assert "cannot be reached: the server answers 503" in str(error)
    assert len(web.fail_with) == 50 - downloads.ATTEMPTS


@pytest.mark.parametrize("validators", [True, False])
def test_a_file_that_changes_while_it_is_read_is_refused(web: FileServer, validators: bool) -> None:
    web.validators = validators
    file = streamed(web, "rows.jsonl")
    web.break_off_after = [1, 9000]  # the first answer is the look at it
    rows = raw_rows(file)

    class Changing(list[str]):
        def append(self, item: str) -> None:
            if len(self) == 2:
                web.files["/data/rows.jsonl"] = LINES.replace(b"It is", b"That is")
            super().append(item)

    web.requests = Changing()
    with pytest.raises(TrainerError, match="has changed while it was read") as failure:
        list(rows)
    assert failure.value.exit_code is ExitCode.DATASET_UNREACHABLE


@pytest.mark.parametrize("name", KINDS)
def test_another_hash_is_refused(web: FileServer, name: str) -> None:
    error = refused(streamed(web, name, OTHER))
    assert error.exit_code is ExitCode.DATASET_INVALID
    assert f"has the SHA-256 {sha256(CONTENT[name])}, where spec says {OTHER}" in str(error)


@pytest.mark.parametrize("lacking", ["ranges", "validators"])
def test_parquet_from_a_server_that_gives_no_parts_is_refused_by_name(web: FileServer, lacking: str) -> None:
    setattr(web, lacking, False)
    error = refused(streamed(web, "rows.parquet"))
    assert error.exit_code is ExitCode.CONFIG_INVALID
    assert str(error).startswith("spec.dataset.streaming: ")


@pytest.mark.parametrize("name", KINDS)
def test_memory_does_not_grow_with_the_source(web: FileServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times the rows take no more at the peak."""
    for module in (streams, row_files):
        monkeypatch.setattr(module, "BUFFER_BYTES", 2**14)
    peaks = []
    for times in (3, 9):
        numbers = random.Random(times)  # noqa: S311 - that do not compress: else a page of a table holds ever more rows
        rows = [row | {"output": row["output"] + numbers.randbytes(20).hex()} for row in ROWS * times]
        web.files[f"/data/{name}"] = content_of(name, rows)
        del rows
        file = streamed(web, name)
        tracemalloc.start()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("finetune_trainer.web._CHUNK", 2**14)
            patch.setattr("finetune_trainer.json_array._CHUNK", 2**14)
            before = pa.total_allocated_bytes()
            most = 0
            for _ in raw_rows(file):
                most = max(most, pa.total_allocated_bytes() - before)
        peaks.append(tracemalloc.get_traced_memory()[1] + most)
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], peaks


# Preparing.


def test_what_is_prepared_is_what_a_download_gives_and_no_file_of_it_is_ever_there(
    job: TrainerConfig, web: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = watch_files(Path(job.paths.cache), monkeypatch)
    report = prepare(of(job, sha256=sha256(LINES)))
    assert report.dataset is not None
    assert report.dataset.samples == len(ROWS)
    assert not (Path(job.paths.cache) / "data").exists()
    assert len(kept) > 10
    assert set(kept) == {0}
    again = prepare(job.model_copy(update={"streaming": False})).dataset
    assert again is not None
    assert again == report.dataset.model_copy(update={"reused": True})


def watch_files(directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of all files below ``directory`` that are not of what is prepared, at each chunk that comes."""
    sizes: list[int] = []

    def size() -> int:
        return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file() and "prepared" not in f.parts)

    real = WebFile.open

    def open_(self: WebFile, **options: Any) -> Any:
        answer = real(self, **options)
        chunks = answer.chunks

        def watched() -> Iterator[bytes]:
            for chunk in chunks:
                sizes.append(size())
                yield chunk

        answer.chunks = watched()
        return answer

    monkeypatch.setattr("finetune_trainer.web._CHUNK", 2**13)
    monkeypatch.setattr(streams, "BUFFER_BYTES", 2**13)
    monkeypatch.setattr("finetune_trainer.row_batches.BATCH_BYTES", 2**13)
    monkeypatch.setattr(WebFile, "open", open_)
    return sizes


def test_equal_data_is_not_read_again(job: TrainerConfig, web: FileServer) -> None:
    prepare(job)
    web.requests.clear()
    again = prepare(job).dataset
    assert again is not None
    assert again.reused
    assert web.requests == ["GET /data/rows.jsonl bytes=0-0"]
    web.requests.clear()
    known = of(job, sha256=sha256(LINES))
    prepare(known)
    web.requests.clear()
    web.fail_with = [503] * 50
    reused = prepare(known).dataset  # its hash says what it is, with nobody asked
    assert reused is not None
    assert reused.reused
    web.fail_with = []
    web.files["/data/rows.jsonl"] = LINES.replace(b"It is", b"That is")
    changed = prepare(job).dataset
    assert changed is not None
    assert not changed.reused


def test_where_the_server_has_no_word_for_a_change_the_content_is_hashed(job: TrainerConfig, web: FileServer) -> None:
    web.validators = False
    first, second = prepare(job).dataset, prepare(job).dataset
    assert first is not None
    assert second is not None
    assert second == first.model_copy(update={"reused": True})
    web.files["/data/rows.jsonl"] = LINES.replace(b"It is", b"That is")
    third = prepare(job).dataset
    assert third is not None
    assert not third.reused


@pytest.mark.parametrize("fault", ["hash", "cut", "row"])
def test_nothing_is_kept_of_what_is_not_right(job: TrainerConfig, web: FileServer, fault: str) -> None:
    if fault == "hash":
        job = of(job, sha256=OTHER)
    elif fault == "row":
        web.files["/data/rows.jsonl"] = LINES + b"{broken\n"
    else:
        web.break_off_after = [1, 50_000] + [0] * 50
    with pytest.raises(TrainerError) as failure:
        prepare(job)
    code, said = {
        "hash": (ExitCode.DATASET_INVALID, f"spec.dataset.sources[0].uri: {web.url}/data/rows.jsonl has the SHA-256"),
        "row": (ExitCode.DATASET_INVALID, "rows.jsonl:901: is not JSON"),
        "cut": (ExitCode.DATASET_UNREACHABLE, "spec.dataset.sources[0].uri: "),
    }[fault]
    assert failure.value.exit_code is code
    assert said in str(failure.value)
    assert not list((Path(job.paths.cache) / "prepared").iterdir())
    assert not (Path(job.paths.output) / "prepare.json").exists()


def test_shares_held_out_rows_and_a_limit_are_those_of_files(
    job: TrainerConfig, web: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINES)
    (tmp_path / "rows.parquet").write_bytes(CONTENT["rows.parquet"])
    digests = []
    for make in (
        lambda name, **fields: local_source(tmp_path / name, **fields),
        lambda name, **fields: ResolvedSource(uri=f"{web.url}/data/{name}", sha256=sha256(CONTENT[name]), **fields),
    ):
        sources = [make("rows.jsonl", weight=1.0, max_samples=90), make("rows.parquet", weight=2.0)]
        made = job.model_copy(update={"sources": sources, "packing": True, "validation": ValidationSpec(fraction=0.1)})
        report = prepare(made).dataset
        assert report is not None
        assert [(one.rows, one.samples) for one in report.sources] == [(90, 297), (900, 594)]
        assert report.validation_samples == 99
        digests.append((report.digest, report.reused))
        found = load_prepared(made)
        digests.append(sha256_file(found.directory / "tokens.bin"))
    assert digests[0][0] == digests[2][0]
    assert digests[2][1]  # one is the other, so that it is not made again


def test_a_limit_ends_the_reading(job: TrainerConfig, web: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_trainer.web._CHUNK", 2**12)
    monkeypatch.setattr(streams, "BUFFER_BYTES", 2**12)
    taken = 0
    real = streams.StreamedFile.at

    def counted(self: StreamedFile, offset: int, length: int | None = None) -> Any:
        answer = real(self, offset, length)
        chunks = answer.chunks

        def count() -> Iterator[bytes]:
            nonlocal taken
            for chunk in chunks:
                taken += len(chunk)
                yield chunk

        answer.chunks = count()
        return answer

    monkeypatch.setattr(streams.StreamedFile, "at", counted)
    report = prepare(of(job, max_samples=10)).dataset
    assert report is not None
    assert report.samples == 10
    assert 0 < taken <= 2**13
    with pytest.raises(TrainerError, match="has the SHA-256"):  # which only all of it has
        prepare(of(job, max_samples=10, sha256=OTHER))


def test_sets_of_the_hub_and_of_buckets(job: TrainerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "hub/datasets/acme/rows"
    rows.mkdir(parents=True)
    for number in range(2):
        (rows / f"train-0000{number}-of-00002.parquet").write_bytes(
            content_of("a.parquet", ROWS[number * 450 : (number + 1) * 450])
        )
    with FakeHub(tmp_path / "hub", gated=["acme/rows"], token="SECRET") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        gated = job.model_copy(update={"sources": [ResolvedSource(uri="hf://acme/rows")]})
        with pytest.raises(TrainerError) as failure:
            prepare(gated)
        assert failure.value.exit_code is ExitCode.DATASET_ACCESS_DENIED
        monkeypatch.setenv("TOKEN", "SECRET")
        report = prepare(
            gated.model_copy(update={"sources": [ResolvedSource(uri="hf://acme/rows", token_env="TOKEN")]})
        )
        assert report.dataset is not None
        assert report.dataset.samples == len(ROWS)
    assert not list((Path(job.paths.cache)).rglob("*.parquet"))
    buckets = {"/bucket/data/a.jsonl": LINES, "/bucket/data/b.parquet": CONTENT["rows.parquet"]}
    with FileServer(buckets, s3=True, access_key="KEY") as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("X_AWS_ACCESS_KEY_ID", "KEY")
        monkeypatch.setenv("X_AWS_SECRET_ACCESS_KEY", "SECRET")
        source = ResolvedSource(uri="s3://bucket/data/", credentials_env="X_")
        of_bucket = job.model_copy(update={"sources": [source]})
        (found,) = find_sources(of_bucket)
        assert [row.value() for row in found.rows()] == ROWS * 2
        store.break_off_after = [1000] * 3
        assert prepare(of_bucket).dataset.samples == 2 * len(ROWS)  # type: ignore[union-attr] # see above
