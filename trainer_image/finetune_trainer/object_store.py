"""Files in object stores that speak S3, by pyarrow's client.

Credentials are those of the source's Secret, else what the environment has (keys, a role, a web identity), else none.
``AWS_ENDPOINT_URL`` names a store that is not Amazon's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.uris import Uri
from pyarrow import fs

from finetune_trainer.downloads import Answer, UnreachableError
from finetune_trainer.errors import TrainerError

CONNECT_SECONDS, SILENT_SECONDS = 20.0, 60.0
DEFAULT_REGION = "us-east-1"
_CHUNK = 2**20
_OF_THE_ENVIRONMENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
)
_DENIED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_CLIENT_TOKEN_ID",
           "UNRECOGNIZED_CLIENT", "EXPIRED_TOKEN", "HTTP status 403", "HTTP status 401")  # fmt: skip
_GONE = ("NO_SUCH_BUCKET", "NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "HTTP status 404", "HTTP status 301")


@dataclass(frozen=True)
class Bucket:
    """A store, and what messages call the source that is in it."""

    system: Any
    uri: Uri
    field: str
    signed: bool
    """Whether requests carry credentials."""

    def files(self, suffixes: tuple[str, ...]) -> list[str]:
        """Paths of the object that the URI names, or of the files of rows right below it, by name.

        Raises:
            TrainerError: DATASET_NOT_FOUND, DATASET_ACCESS_DENIED.
            UnreachableError: the store does not answer.
        """
        path = f"{self.uri.name}/{self.uri.path}".rstrip("/")
        found = self._asked(lambda: self.system.get_file_info(path))
        if found.type == fs.FileType.File:
            return [path]
        if found.type == fs.FileType.NotFound:
            raise TrainerError(
                ExitCode.DATASET_NOT_FOUND, f"{self.field}: there is no object {self.uri}; check bucket and key"
            )
        below = self._asked(lambda: self.system.get_file_info(fs.FileSelector(path)))
        rows = sorted(one.path for one in below if one.type == fs.FileType.File and one.path.endswith(suffixes))
        if not rows:
            raise TrainerError(
                ExitCode.DATASET_NOT_FOUND,
                f"{self.field}: below {self.uri} there is no file of rows ({', '.join(suffixes)})",
            )
        return rows

    def remote(self, path: str) -> ObjectFile:
        """The object at ``path``."""
        return ObjectFile(self, path)

    def _asked(self, call: Any) -> Any:
        try:
            return call()
        except OSError as error:
            raise self.meaning(error) from error

    def meaning(self, error: OSError) -> Exception:
        """What pyarrow's error stands for: it says so in words alone."""
        told = str(error)
        secret = f"{self.field.removesuffix('.uri')}.secretRef"
        if any(mark in told for mark in _DENIED):
            advice = (
                "the credentials were given, but do not grant access"
                if self.signed
                else f"no credentials were given: name a Secret with them in {secret}"
            )
            return TrainerError(
                ExitCode.DATASET_ACCESS_DENIED, f"{self.field}: the store refuses {self.uri}; {advice}: {told}"
            )
        if isinstance(error, FileNotFoundError) or any(mark in told for mark in _GONE):
            return TrainerError(ExitCode.DATASET_NOT_FOUND, f"{self.field}: there is no {self.uri}: {told}")
        return UnreachableError(told)


class ObjectFile:
    """An object."""

    def __init__(self, bucket: Bucket, path: str) -> None:
        self._bucket = bucket
        self._path = path

    def open(self, *, offset: int, validator: str | None, known: str | None, length: int | None = None) -> Answer:
        """As :meth:`finetune_trainer.downloads.Remote.open`."""
        try:
            file = self._bucket.system.open_input_file(self._path)
            tag = _tag(file)
            if known is not None and tag == known:
                file.close()
                return Answer(validator=known, unchanged=True)
            start = offset if offset and tag == validator and tag else 0
            chunks = self._chunks(file, start, _CHUNK if length is None else min(length, _CHUNK))
            return Answer(tag, file.size(), start, chunks, close=file.close)
        except OSError as error:
            raise self._bucket.meaning(error) from error

    def _chunks(self, file: Any, start: int, size: int) -> Iterator[bytes]:
        with file:
            try:
                file.seek(start)
                while chunk := file.read(size):
                    yield chunk
            except OSError as error:
                raise self._bucket.meaning(error) from error


def _tag(file: Any) -> str | None:
    tag = (file.metadata() or {}).get("ETag")
    return tag.decode() if isinstance(tag, bytes) else tag


def find_bucket(uri: Uri, field: str, *, prefix: str | None, environment: Mapping[str, str] = os.environ) -> Bucket:
    """The store of ``uri``.

    Args:
        uri: ``s3://bucket/key``.
        field: of the spec, for a person.
        prefix: of the variables that hold the source's own credentials; None where it has none.
        environment: this process's.

    Raises:
        TrainerError: DATASET_ACCESS_DENIED; a variable that a Secret must fill is empty.
    """

    def said(name: str) -> str | None:
        own = environment.get(f"{prefix}{name}") if prefix is not None else None
        return own or environment.get(name) or None

    options: dict[str, Any] = {
        "region": said("AWS_REGION") or said("AWS_DEFAULT_REGION") or DEFAULT_REGION,
        "connect_timeout": CONNECT_SECONDS,
        "request_timeout": SILENT_SECONDS,
        "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=2),  # downloads.py counts the rest
    }
    if prefix is not None:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            if not environment.get(f"{prefix}{name}"):
                secret = f"{field.removesuffix('.uri')}.secretRef"
                raise TrainerError(
                    ExitCode.DATASET_ACCESS_DENIED, f"{secret}: the Secret has no {name}, or an empty one"
                )
        options |= {
            "access_key": environment[f"{prefix}AWS_ACCESS_KEY_ID"],
            "secret_key": environment[f"{prefix}AWS_SECRET_ACCESS_KEY"],
            "session_token": environment.get(f"{prefix}AWS_SESSION_TOKEN") or None,
        }
    elif not any(environment.get(name) for name in _OF_THE_ENVIRONMENT):
        options["anonymous"] = True
    if endpoint := said("AWS_ENDPOINT_URL_S3") or said("AWS_ENDPOINT_URL"):
        scheme, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
    return Bucket(fs.S3FileSystem(**options), uri, field, signed=not options.get("anonymous", False))
