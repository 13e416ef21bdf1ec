"""Files elsewhere, read as they come: nothing of them ever lies on a disk.

A stream goes on where a connection broke off, hashes what it gives, and at its end is what the job means or an error.
A table whose directory is at its end (Parquet) is read by range requests, all of them for the same file.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import Any, NoReturn

from finetune_api.failures import ExitCode

from finetune_trainer.downloads import Answer, Patience, Remote, UnreachableError, differs, file_name
from finetune_trainer.errors import TrainerError

BUFFER_BYTES = 2**20
"""Read ahead of each stream, and of each column of a Parquet file: what is asked for in one request."""


class StreamedFile:
    """A file elsewhere. Its first bytes are asked for when it is first looked at."""

    def __init__(
        self,
        remote: Remote,
        url: str,
        *,
        sha256: str | None,
        field: str,
        published: str | None = None,
        unreachable: ExitCode = ExitCode.DATASET_UNREACHABLE,
    ) -> None:
        """Name the file; nothing is asked yet.

        Args:
            remote: where it comes from.
            url: names it.
            sha256: what it must hash to, if the job says.
            field: of the spec, for a person.
            published: hash that the server publishes of it, if it does.
            unreachable: how the step ends where the server is away.
        """
        self.name = file_name(url)
        self.sha256 = sha256
        self._remote, self._url, self._field = remote, url, field
        self._published = published
        self._unreachable = unreachable
        self._known: Answer | None = None

    @property
    def size(self) -> int | None:
        """Bytes; None where the server does not say.

        Raises:
            TrainerError: as :meth:`identity`.
        """
        return self._looked_at().size

    @property
    def identity(self) -> str | list[Any]:
        """Changes when the content does: its SHA-256 where that is known beforehand, else the server's word for it
        (``ETag`` or ``Last-Modified``). Where the server has none the file is read once for its hash.

        Raises:
            TrainerError: DATASET_UNREACHABLE, DATASET_NOT_FOUND, DATASET_ACCESS_DENIED, HUB_UNREACHABLE.
        """
        known = self.sha256 or self._published
        if known is not None:
            return known
        answer = self._looked_at()
        if answer.validator is None:
            stream = _Stream(self)
            stream.drain()
            self.sha256 = stream.digest
            return self.sha256
        return [self._url, answer.validator, answer.size]

    def open(self, mode: str = "rb") -> io.BufferedReader:
        """The content from its start, as :meth:`pathlib.Path.open` gives it; it cannot be sought in.

        Raises:
            TrainerError: while it is read: DATASET_UNREACHABLE, HUB_UNREACHABLE; DATASET_INVALID at the end, where the
                hash is another.
        """
        if mode != "rb":
            raise ValueError(mode)
        return io.BufferedReader(_Stream(self), BUFFER_BYTES)

    def random(self) -> io.RawIOBase:
        """The content, to be sought in. Where the job says its hash, it is read once before for that.

        Raises:
            TrainerError: CONFIG_INVALID where the server has no ranges, or no word for a file that has changed;
                DATASET_INVALID; while it is read as :meth:`open`.
        """
        answer = self._looked_at()
        if answer.validator is None or answer.size is None:
            raise self._no_parts("does not say whether a file has changed (by ETag or Last-Modified) or how long it is")
        if self.sha256 is not None:
            _Stream(self).drain()
        return _Parts(self, answer.size)

    def _looked_at(self) -> Answer:
        if self._known is None:
            patience = Patience(self._url)
            while self._known is None:
                try:
                    answer = self._remote.open(offset=0, validator=None, known=None, length=1)
                    answer.close()
                    self._known = answer
                except UnreachableError as error:
                    self._tried(patience, error, 0)
        return self._known

    def at(self, offset: int, length: int | None = None) -> Answer:
        """The content from ``offset`` on, or from its start where the server gives no parts.

        Raises:
            UnreachableError: also while it is read.
            TrainerError: DATASET_UNREACHABLE where it has changed.
        """
        known = self._looked_at().validator
        answer = self._remote.open(offset=offset, validator=known, known=None, length=length)
        if answer.validator != known:
            answer.close()
            self.changed()
        return answer

    def failed(self, patience: Patience, error: UnreachableError, at: int) -> None:
        """Wait for another attempt.

        Raises:
            TrainerError: there were enough.
        """
        self._tried(patience, error, at)

    def _tried(self, patience: Patience, error: UnreachableError, at: int) -> None:
        try:
            patience.failed(error, at)
        except UnreachableError:
            raise TrainerError(
                self._unreachable,
                f"{self._field}: {self._url} cannot be reached: {error}. Check the pod's network and the address",
            ) from error

    def changed(self) -> NoReturn:
        """Refuse what is no longer the file that was begun."""
        raise TrainerError(
            self._unreachable,
            f"{self._field}: {self._url} has changed while it was read; nothing that was prepared of it is kept. "
            "Create the job again, and name its SHA-256 or a URL whose content stays",
        )

    def check(self, digest: str) -> None:
        """Refuse content that is not what the job means, or what the server itself publishes.

        Raises:
            TrainerError: DATASET_INVALID.
        """
        if self.sha256 is not None and digest != self.sha256:
            raise differs(digest, self.sha256, self._field, self._url)
        if self._published is not None and digest != self._published:
            raise TrainerError(
                ExitCode.DATASET_INVALID,
                f"{self._field}: {self._url} has the SHA-256 {digest}, where its server publishes {self._published}: "
                "it was damaged on its way, or is at its source",
            )

    def _no_parts(self, problem: str) -> TrainerError:
        return TrainerError(
            ExitCode.CONFIG_INVALID,
            f"spec.dataset.streaming: {self._url} is Parquet, which is read by parts, and the server {problem}; set "
            "streaming to false, or name JSON lines, CSV or an Arrow stream",
        )

    def no_ranges(self) -> TrainerError:
        """For a server that sends all of a file where a part was asked for."""
        return self._no_parts("has no range requests")


class _Stream(io.RawIOBase):
    """The content from its start to its end."""

    def __init__(self, file: StreamedFile) -> None:
        super().__init__()
        self._file = file
        self._patience = Patience(file.name)
        self._hash = hashlib.sha256()
        self._at = 0
        self._answer: Answer | None = None
        self._chunk = memoryview(b"")
        self._ended = False

    @property
    def digest(self) -> str:
        """SHA-256 of what was given, in hex."""
        return self._hash.hexdigest()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """All that the buffer holds, or what is left."""
        place = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(place):
            if not self._chunk and not self._more():
                break
            part = self._chunk[: len(place) - filled]
            place[filled : filled + len(part)] = part
            self._chunk = self._chunk[len(part) :]
            filled += len(part)
        return filled

    def drain(self) -> None:
        """Read to the end, for its hash."""
        with self:
            while self._more():
                self._chunk = memoryview(b"")

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        super().close()

    def _more(self) -> bool:
        while not self._ended:
            try:
                if self._answer is None:
                    self._answer = self._opened()
                chunk = next(self._answer.chunks, b"")
                if chunk:
                    self._hash.update(chunk)
                    self._at += len(chunk)
                    self._chunk = memoryview(chunk)
                    self._patience.progress()
                    return True
                _expect(self._at, self._answer.size)
                self._file.check(self.digest)
                self._ended = True
            except UnreachableError as error:
                if self._answer is not None:
                    self._answer.close()
                    self._answer = None
                self._file.failed(self._patience, error, self._at)
        return False

    def _opened(self) -> Answer:
        answer = self._file.at(self._at)
        if answer.start == self._at:
            return answer
        # A server that gives no parts: what was read already must come again.
        again, left = hashlib.sha256(), self._at
        rest = b""
        while left > 0:
            rest = next(answer.chunks, b"")
            if not rest:
                answer.close()
                raise UnreachableError(f"broke off before byte {self._at}")
            again.update(rest[:left])
            rest, left = rest[left:], max(0, left - len(rest))
        if again.digest() != self._hash.digest():
            answer.close()
            self._file.changed()
        if rest:
            answer.chunks = _behind(rest, answer.chunks)
        return answer


def _expect(at: int, end: int | None) -> None:
    if end is not None and at < end:
        raise UnreachableError(f"broke off at byte {at} of {end}")


def _behind(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from chunks


class _Parts(io.RawIOBase):
    """The content in any order, a request for each read."""

    def __init__(self, file: StreamedFile, size: int) -> None:
        super().__init__()
        self._file = file
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        place = memoryview(buffer).cast("B")
        wanted = max(0, min(len(place), self._size - self._at))
        filled = 0
        patience = Patience(self._file.name)
        while filled < wanted:
            try:
                for chunk in self._chunks(self._at + filled, wanted - filled):
                    part = chunk[: wanted - filled]
                    place[filled : filled + len(part)] = part
                    filled += len(part)
                    patience.progress()
                _expect(self._at + filled, self._at + wanted)
            except UnreachableError as error:
                self._file.failed(patience, error, self._at + filled)
        self._at += wanted
        return wanted

    def _chunks(self, start: int, length: int) -> Iterator[bytes]:
        answer = self._file.at(start, length)
        try:
            if answer.start != start:
                raise self._file.no_ranges()
            left = length
            while left > 0 and (chunk := next(answer.chunks, b"")):
                left -= len(chunk)
                yield chunk
        finally:
            answer.close()
