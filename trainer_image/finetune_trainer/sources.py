"""The job's model and data sets, wherever they are, as paths on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.failures import ExitCode
from finetune_api.trainer_config import ResolvedModel, ResolvedSource, TrainerConfig
from finetune_api.uris import Uri, parse_uri

from finetune_trainer import hub
from finetune_trainer.base_model import digest_of_files
from finetune_trainer.downloads import UnreachableError, check_sha256, download
from finetune_trainer.errors import TrainerError
from finetune_trainer.hub_streams import stream_files
from finetune_trainer.log import log
from finetune_trainer.object_store import find_bucket
from finetune_trainer.row_files import SUFFIXES, RawRow, raw_rows
from finetune_trainer.streams import StreamedFile
from finetune_trainer.web import WebFile

_UNTOLD = 2**30
"""Bytes that a file counts as whose server does not say its size."""


@dataclass(frozen=True)
class FoundModel:
    """``digest``: commit on the hub, or hash of the files."""

    directory: Path
    digest: str


@dataclass(frozen=True)
class FoundSource:
    """A data set's files, in the order in which they are read."""

    source: ResolvedSource
    field: str
    files: tuple[Path | StreamedFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files; much where a server does not say it."""
        return sum(_size(file) for file in self.files)

    def rows(self) -> Iterator[RawRow]:
        """Stream its rows, unread, and no more of them than the job takes.

        Raises:
            TrainerError: DATASET_INVALID where a file cannot be read further, naming the source as the user wrote it;
                of a file that is read as it comes, all that :class:`~finetune_trainer.streams.StreamedFile` raises.
        """
        most = self.source.max_samples
        for number, row in enumerate(self._every()):
            if most is None or number < most:
                yield row
            elif self.source.sha256 is None or isinstance(self.files[0], Path):  # else it is hashed to its end
                return

    def _every(self) -> Iterator[RawRow]:
        for file in self.files:
            try:
                yield from raw_rows(file)
            except TrainerError as error:
                if str(error).startswith("spec."):  # it names the source already
                    raise
                raise TrainerError(error.exit_code, f"{self.field} ({self.source.uri}): {error}") from error
            except OSError as error:
                raise TrainerError(
                    ExitCode.DATASET_NOT_FOUND,
                    f"{self.field} ({self.source.uri}): {file} cannot be read: {error.strerror}",
                ) from error


def _size(file: Path | StreamedFile) -> int:
    if isinstance(file, Path):
        return file.stat().st_size
    return _UNTOLD if file.size is None else file.size


def find_sources(config: TrainerConfig) -> list[FoundSource]:
    """All data sets. Those that are elsewhere are fetched, and each is what its checksum says; or, where the job
    streams, they are found, and read and checked as they come.

    Raises:
        TrainerError: DATASET_NOT_FOUND, DATASET_ACCESS_DENIED, DATASET_UNREACHABLE, HUB_UNREACHABLE, VOLUME_FULL;
            DATASET_INVALID where a checksum is another.
    """
    found = []
    for index, source in enumerate(config.sources):
        field = f"spec.dataset.sources[{index}].uri"
        files = _find_files(source, field, Path(config.paths.cache), streaming=config.streaming)
        if source.sha256 is not None:
            if len(files) > 1:
                raise TrainerError(
                    ExitCode.CONFIG_INVALID,
                    f"spec.dataset.sources[{index}].sha256: {source.uri} is {len(files)} files; name one of them",
                )
            if isinstance(files[0], Path):
                check_sha256(files[0], source.sha256, field, source.uri)
        found.append(FoundSource(source, field, tuple(files)))
    return found


def _find_files(source: ResolvedSource, field: str, cache: Path, *, streaming: bool) -> Sequence[Path | StreamedFile]:
    if source.path is not None:
        return _files(Path(source.path), source, field)
    uri = _parsed(source.uri, field)
    token = os.environ.get(source.token_env) if source.token_env else None
    if uri.scheme in ("http", "https"):
        remote = WebFile(source.uri, token=token, field=field)
        if streaming:
            return [StreamedFile(remote, source.uri, sha256=source.sha256, field=field)]
        return [download(remote, source.uri, cache, sha256=source.sha256, field=field)]
    if uri.scheme == "s3":
        return _from_bucket(source, uri, field, cache, streaming=streaming)
    _require_hub(uri, field)
    repository = hub.Repository("dataset", uri.name, "main", field, source.token_env)
    if streaming:
        return stream_files(repository, uri.path, source.split, sha256=source.sha256)
    return hub.fetch_files(repository, uri.path, source.split, cache)


def _from_bucket(
    source: ResolvedSource, uri: Uri, field: str, cache: Path, *, streaming: bool
) -> Sequence[Path | StreamedFile]:
    bucket = find_bucket(uri, field, prefix=source.credentials_env)
    try:
        paths = bucket.files(SUFFIXES)
    except UnreachableError as error:
        raise TrainerError(
            ExitCode.DATASET_UNREACHABLE,
            f"{field}: {uri} cannot be reached: {error}. Check the pod's network and AWS_ENDPOINT_URL",
        ) from error
    sha256 = source.sha256 if len(paths) == 1 else None
    if streaming:
        return [StreamedFile(bucket.remote(path), f"s3://{path}", sha256=sha256, field=field) for path in paths]
    return [download(bucket.remote(path), f"s3://{path}", cache, sha256=sha256, field=field) for path in paths]


def find_model(model: ResolvedModel, cache: Path) -> FoundModel:
    """The base model, fetched where it is on the hub.

    Raises:
        TrainerError: MODEL_NOT_FOUND, MODEL_ACCESS_DENIED, HUB_UNREACHABLE, VOLUME_FULL.
    """
    field = "spec.model.source"
    if model.path is None:
        uri = _parsed(model.uri, field)
        _require_hub(uri, field)
        if uri.path:
            raise TrainerError(
                ExitCode.MODEL_NOT_FOUND,
                f"{field}: {model.uri}: a model is hf://organisation/name, without {uri.path!r}",
            )
        repository = hub.Repository("model", uri.name, model.revision, field, model.token_env)
        directory, commit = hub.fetch_model(
            repository, cache, allow_pickle=model.allow_pickle, code=model.trust_remote_code
        )
        return FoundModel(directory, commit)
    directory = Path(model.path)
    try:
        if not directory.is_dir() or not any(directory.iterdir()):
            state = "is empty" if directory.is_dir() else "is a file" if directory.exists() else "does not exist"
            raise TrainerError(
                ExitCode.MODEL_NOT_FOUND,
                f"{field}: {model.uri}: the directory {directory} {state}; it must hold config.json, the tokenizer's "
                "files and the weights as safetensors",
            )
        log.info("hashing the model in %s", directory)
        digest = digest_of_files(directory, allow_pickle=model.allow_pickle, code=model.trust_remote_code)
    except OSError as error:
        raise TrainerError(
            ExitCode.MODEL_NOT_FOUND, f"{field}: {model.uri}: {error.filename} cannot be read: {error.strerror}"
        ) from error
    return FoundModel(directory, digest)


def find_tokenizer(model: ResolvedModel, cache: Path) -> Path:
    """Directory of the base model's tokenizer, fetched without the weights where it is on the hub.

    Raises:
        TrainerError: MODEL_NOT_FOUND, MODEL_ACCESS_DENIED, HUB_UNREACHABLE.
    """
    field = "spec.model.source"
    if model.path is not None:
        directory = Path(model.path)
        if not directory.is_dir():
            raise TrainerError(ExitCode.MODEL_NOT_FOUND, f"{field}: {model.uri}: there is no directory {directory}")
        return directory
    uri = _parsed(model.uri, field)
    _require_hub(uri, field)
    return hub.fetch_tokenizer(hub.Repository("model", uri.name, model.revision, field, model.token_env), cache)


def _files(path: Path, source: ResolvedSource, field: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise TrainerError(ExitCode.DATASET_NOT_FOUND, f"{field}: {source.uri}: there is no file {path}")
    rows = sorted(
        file for file in path.iterdir() if file.suffix in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not rows:
        raise TrainerError(
            ExitCode.DATASET_NOT_FOUND,
            f"{field}: {source.uri}: the directory {path} has no file of rows ({', '.join(SUFFIXES)})",
        )
    return rows


def _parsed(text: str, field: str) -> Uri:
    try:
        return parse_uri(text)
    except ValueError as error:
        raise TrainerError(ExitCode.CONFIG_INVALID, f"{field}: {error}") from error


def _require_hub(uri: Uri, field: str) -> None:
    if uri.scheme != "hf":
        raise TrainerError(ExitCode.CONFIG_INVALID, f"{field}: {uri}: {uri.scheme}:// is not supported yet")
