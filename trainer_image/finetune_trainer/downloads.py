"""Files of data from elsewhere, into the cache: kept by what they are, gone on with where a download broke off.

``<cache>/data/<hash of the URL>/`` holds ``about.json``, which says what the newest copy is, and each copy in a
directory by its content. A server that cannot be reached is done without where there is a copy, and the log says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError, writing_to
from finetune_trainer.files import fsync_path, read_json, sha256_file, write_json
from finetune_trainer.log import log
from finetune_trainer.volumes import check_room, megabytes

ATTEMPTS = 5
"""In a row without a byte between them."""
WAIT_SECONDS = 1.0
"""Before the second attempt; twice as long before each further one."""
_MARGIN = 2**20


class UnreachableError(Exception):
    """The server does not answer, or answers that it cannot now: worth another attempt."""


class Patience:
    """Counts attempts that brought nothing, and waits between them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures = 0

    def progress(self) -> None:
        """A byte has come."""
        self._failures = 0

    def failed(self, error: UnreachableError, at: int) -> None:
        """Wait for the next attempt, from byte ``at``.

        Raises:
            UnreachableError: the same, where there were enough.
        """
        self._failures += 1
        if self._failures >= ATTEMPTS:
            raise error
        pause = WAIT_SECONDS * 2 ** (self._failures - 1)
        log.warning("%s: %s; again in %.0f s, from byte %s", self._url, error, pause, at)
        time.sleep(pause)


@dataclass
class Answer:
    """What a server has for a file."""

    validator: str | None
    """Changes when the file does; None where the server does not say."""
    size: int | None = None
    """Bytes of the whole file."""
    start: int = 0
    """Place in the file of the first of ``chunks``."""
    chunks: Iterator[bytes] = field(default_factory=lambda: iter(()))
    unchanged: bool = False
    """True where the file is the one that was known; there are no chunks then."""
    close: Callable[[], None] = lambda: None
    """Ends the connection, whether all chunks were read or not."""


class Remote(Protocol):
    """A file elsewhere."""

    def open(self, *, offset: int, validator: str | None, known: str | None, length: int | None = None) -> Answer:
        """Ask for the file.

        Args:
            offset: where to begin, as long as the file is still that of ``validator``.
            validator: of a part that is here.
            known: validator of a whole copy that is here.
            length: bytes that are wanted; more may come. All unless given.

        Raises:
            UnreachableError: also while ``chunks`` are read.
            TrainerError: DATASET_NOT_FOUND, DATASET_ACCESS_DENIED.
        """
        ...


def download(remote: Remote, url: str, cache: Path, *, sha256: str | None, field: str) -> Path:
    """The file at ``url``, in the cache.

    Args:
        remote: where it comes from.
        url: names it.
        cache: directory of the cache.
        sha256: what it must hash to, if the job says.
        field: of the spec, for a person.

    Raises:
        TrainerError: DATASET_UNREACHABLE, DATASET_NOT_FOUND, DATASET_ACCESS_DENIED, DATASET_INVALID where the hash is
            another, VOLUME_FULL.
    """
    place = cache / "data" / hashlib.sha256(url.encode()).hexdigest()[:24]
    with writing_to(place, "cache"):
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place):
            return _Download(remote, url, place, sha256, field).run()


def check_sha256(file: Path, wanted: str, field: str, uri: str) -> None:
    """Refuse a file that is not the one that the job means.

    Raises:
        TrainerError: DATASET_INVALID, naming both hashes.
    """
    found = sha256_file(file)
    if found != wanted:
        raise differs(found, wanted, field, uri)


def differs(found: str, wanted: str, field: str, uri: str) -> TrainerError:
    """The refusal of a file that hashes to ``found``."""
    return TrainerError(
        ExitCode.DATASET_INVALID,
        f"{field}: {uri} has the SHA-256 {found}, where spec says {wanted}: the file has changed or is damaged. "
        "Put the right file there, or correct sha256",
    )


def file_name(url: str) -> str:
    """Name of the file behind ``url``, by which its kind is known and its rows are named."""
    return PurePosixPath(unquote(urlsplit(url).path)).name or "rows"


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Two jobs want the same file at once: the second waits, and finds it."""
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class _Download:
    def __init__(self, remote: Remote, url: str, place: Path, sha256: str | None, field: str) -> None:
        self._remote = remote
        self._url = url
        self._place = place
        self._sha256 = sha256
        self._field = field
        self._name = file_name(url)
        self._part = place / "part"
        self._about_part = place / "part.json"

    def run(self) -> Path:
        kept = self._kept()
        if kept is not None and self._sha256 is not None and kept["sha256"] == self._sha256:
            return self._file(kept["sha256"])  # whatever the server has now, this is what is wanted
        known = kept["validator"] if kept is not None else None
        try:
            validator = self._fetch(known)
        except UnreachableError as error:
            if kept is None or self._sha256 is not None:
                raise TrainerError(
                    ExitCode.DATASET_UNREACHABLE,
                    f"{self._field}: {self._url} cannot be reached: {error}. Check the pod's network and the address",
                ) from error
            log.warning("%s: %s; using the copy in the cache", self._url, error)
            return self._file(kept["sha256"])
        if validator is None and kept is not None:  # nothing was fetched: the copy is still right
            if self._sha256 is not None:
                check_sha256(self._file(kept["sha256"]), self._sha256, self._field, self._url)
            return self._file(kept["sha256"])
        return self._keep(validator)

    def _kept(self) -> dict[str, Any] | None:
        try:
            about = read_json(self._place / "about.json")
        except ValueError:
            return None
        return about if isinstance(about, dict) and self._file(about["sha256"]).exists() else None

    def _file(self, digest: str) -> Path:
        return self._place / digest[:16] / self._name

    def _fetch(self, known: str | None) -> str | None:
        """Bring the whole file into the part; its validator, or "" where it has none. None: the known copy is right."""
        patience = Patience(self._url)
        while True:
            before = self._size()
            try:
                answer = self._remote.open(offset=before, validator=self._part_validator(), known=known)
                if answer.unchanged:
                    return None
                self._write(answer)
            except UnreachableError as error:
                if self._size() > before:
                    patience.progress()
                patience.failed(error, self._size())
            else:
                return answer.validator or ""

    def _size(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _part_validator(self) -> str | None:
        if not self._part.exists():
            return None
        try:
            return (read_json(self._about_part) or {}).get("validator")
        except ValueError:
            return None

    def _write(self, answer: Answer) -> None:
        missing = None if answer.size is None else answer.size - answer.start
        if missing is not None:
            check_room(self._place, "cache", needed=missing + _MARGIN, purpose=f"the file {self._url}")
        if answer.start == 0:
            self._part.unlink(missing_ok=True)
            log.info("fetching %s%s", self._url, "" if missing is None else f", {megabytes(missing)}")
        write_json(self._about_part, {"validator": answer.validator})
        with self._part.open("r+b" if answer.start else "wb") as file:
            file.seek(answer.start)
            file.truncate()
            for chunk in answer.chunks:
                file.write(chunk)
        if answer.size is not None and self._size() != answer.size:
            raise UnreachableError(f"broke off at byte {self._size()} of {answer.size}")

    def _keep(self, validator: str | None) -> Path:
        if self._sha256 is not None:
            try:
                check_sha256(self._part, self._sha256, self._field, self._url)
            except TrainerError:
                self._part.unlink()
                raise
        digest = self._sha256 or sha256_file(self._part)
        file = self._file(digest)
        file.parent.mkdir(exist_ok=True)
        fsync_path(self._part)
        self._part.replace(file)
        fsync_path(file.parent)
        write_json(self._place / "about.json", {"url": self._url, "validator": validator or None, "sha256": digest})
        self._about_part.unlink(missing_ok=True)
        return file
