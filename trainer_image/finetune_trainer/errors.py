"""Failures that the trainer understands, each with the exit code that the operator reads."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_api.failures import ExitCode

_NEARLY_NOTHING = 64 * 2**20
"""Bytes free below which a write that failed without a reason failed for want of space."""


_MUTE_FAILURES = ("file write failed", "PytorchStreamWriter", "iostream error")
"""Words of a library whose write failed and that does not say why."""


class TrainerError(Exception):
    """A failure with a cause that a person can mend. The message says what is wrong, where, and what to do."""

    def __init__(self, exit_code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[TrainerError], tuple[Any, ...]]:
        """For processes that hand it over."""
        return type(self), (self.exit_code, str(self))


def volume_error(error: OSError, path: Path | str, volume: str) -> TrainerError | None:
    """The failure that ``error`` on a volume stands for; None where it is no matter of the volume.

    Args:
        error: what the system said.
        path: what was written.
        volume: the volume's name for the user, such as ``output``.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TrainerError(
            ExitCode.VOLUME_FULL,
            f"the {volume} volume is full: {path} could not be written. Enlarge the claim or free space; "
            "checkpoints and results already written are kept",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return TrainerError(
            ExitCode.VOLUME_NOT_WRITABLE,
            f"the {volume} volume cannot be written: {path}: {error.strerror}. "
            "Make it writable for the pod's user and group (fsGroup), and not read-only",
        )
    return None


@contextmanager
def writing_to(path: Path | str, volume: str) -> Iterator[None]:
    """Turn a full or unwritable volume into a :class:`TrainerError`.

    Libraries wrap the system's error in their own, safetensors in one without an errno; both are looked through.
    """
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            known = volume_error(cause, path, volume) if isinstance(cause, OSError) else None
            if known is None and (_says_full(cause) or _failed_on_full(cause, Path(path))):
                known = volume_error(OSError(errno.ENOSPC, "No space left on device"), path, volume)
            if known is not None:
                raise known from error
            cause = cause.__cause__ or cause.__context__
        raise


def _says_full(error: BaseException) -> bool:
    return "No space left on device" in str(error) or "Disk quota exceeded" in str(error)


def _failed_on_full(error: BaseException, path: Path) -> bool:
    """torch.save tells of a failed write and keeps the system's reason to itself: look at the volume."""
    if not any(words in str(error) for words in _MUTE_FAILURES):
        return False
    place = next((parent for parent in (path, *path.parents) if parent.exists()), None)
    return place is not None and shutil.disk_usage(place).free < _NEARLY_NOTHING
