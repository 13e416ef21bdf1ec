"""Models and data from the Hugging Face hub into the cache; and what every way of failing there means.

The hub is ``HF_ENDPOINT``, which huggingface_hub reads at import. Where it cannot be reached, what the cache has of
the revision is used, and the log says so.
"""

from __future__ import annotations

import os
import queue
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finetune_api.failures import ExitCode
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_trainer.base_model import wanted_files
from finetune_trainer.errors import TrainerError, writing_to
from finetune_trainer.log import log
from finetune_trainer.row_files import SUFFIXES
from finetune_trainer.volumes import check_room

Found = TypeVar("Found")
ANSWER_SECONDS = 20.0
"""The hub must have answered the first question within this: a name server that is silent takes far longer."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A repository as the job names it."""

    kind: str
    """`model` or `dataset`."""
    name: str
    revision: str
    field: str
    """Field of the spec that names it."""
    token_env: str | None
    """Variable that holds the token, if the job names one."""

    @property
    def token(self) -> str | bool:
        """The token; False sends none, whatever a login on this machine has left."""
        return (os.environ.get(self.token_env) or False) if self.token_env else False

    @property
    def title(self) -> str:
        """For messages."""
        at = "" if self.revision == "main" else f" at {self.revision}"
        return f"{self.kind if self.kind == 'model' else 'data set'} {self.name}{at}"


class UnreachableError(Exception):
    """The hub does not answer, or answers that it cannot now."""


def fetch_model(repository: Repository, cache: Path, *, allow_pickle: bool, code: bool) -> tuple[Path, str]:
    """Directory and commit of a model, with what training needs of it.

    Raises:
        TrainerError: MODEL_NOT_FOUND, MODEL_ACCESS_DENIED, HUB_UNREACHABLE, VOLUME_FULL.
    """
    hub = cache / "hub"
    try:
        info = _ask(repository)
        files = wanted_files(sorted(info), allow_pickle=allow_pickle, code=code)
        missing = _size_of_missing(repository, hub, info, files)
        if missing:
            with writing_to(hub, "cache"):
                hub.mkdir(parents=True, exist_ok=True)
            check_room(hub, "cache", needed=missing, purpose=f"the {repository.title}")
            log.info("fetching %s: %s files, %.0f MiB", repository.title, len(files), missing / 2**20)
        with _told(repository), writing_to(hub, "cache"):
            directory = Path(
                snapshot_download(
                    repository.name,
                    revision=repository.revision,
                    cache_dir=hub,
                    token=repository.token,
                    allow_patterns=[_literally(name) for name in files],
                    endpoint=constants.ENDPOINT,
                )
            )
    except UnreachableError as error:
        directory = _from_cache(repository, hub, error)
        if not (directory / "config.json").exists():
            raise unreachable(repository, error, "the cache's copy is not complete") from error
    return directory, directory.name


_OF_A_TOKENIZER = re.compile(
    r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|sentencepiece|spiece|config\.json"
    r"|preprocessor_config|processor_config|video_preprocessor_config).*"
    r"|additional_chat_templates/.*|.*\.model"
)


def fetch_tokenizer(repository: Repository, cache: Path) -> Path:
    """Directory of a model's tokenizer alone, beside the cache of whole models, which it must not look like.

    Raises:
        TrainerError: as :func:`fetch_model`.
    """
    hub = cache / "tokenizers"
    try:
        files = [name for name in sorted(_ask(repository)) if _OF_A_TOKENIZER.fullmatch(name)]
        with _told(repository), writing_to(hub, "cache"):
            return Path(
                snapshot_download(
                    repository.name,
                    revision=repository.revision,
                    cache_dir=hub,
                    token=repository.token,
                    allow_patterns=[_literally(name) for name in files],
                    endpoint=constants.ENDPOINT,
                )
            )
    except UnreachableError as error:
        kept = _cached(repository, hub)
        return kept if kept is not None else _from_cache(repository, cache / "hub", error)


def fetch_files(repository: Repository, path: str, split: str, cache: Path) -> list[Path]:
    """A data set's file ``path``, or the file of rows that the repository has for ``split``, with all its shards.

    Raises:
        TrainerError: DATASET_NOT_FOUND, DATASET_ACCESS_DENIED, HUB_UNREACHABLE, VOLUME_FULL.
    """
    hub = cache / "hub"
    try:
        names = sorted(_ask(repository))
        wanted = [path] if path else choose_rows(names, split, repository)
        if path and path not in names:
            raise no_such_file(repository, path, names)
        with _told(repository), writing_to(hub, "cache"):
            return [
                Path(
                    hf_hub_download(
                        repository.name,
                        name,
                        repo_type=repository.kind,
                        revision=repository.revision,
                        cache_dir=hub,
                        token=repository.token,
                        endpoint=constants.ENDPOINT,
                    )
                )
                for name in wanted
            ]
    except UnreachableError as error:
        snapshot = _from_cache(repository, hub, error)
        names = sorted(file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file())
        wanted = [path] if path else choose_rows(names, split, repository)
        if gone := [*(set(wanted) - set(names)), *_missing_shards(wanted)]:
            raise unreachable(repository, error, f"the cache's copy has no {gone[0]}") from error
        return [snapshot / name for name in wanted]


_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.[a-z]+)")


def choose_rows(names: list[str], split: str, repository: Repository) -> list[str]:
    """The one file of rows that a URI without a file can mean, or the shards of it.

    Raises:
        TrainerError: DATASET_NOT_FOUND; it can mean none, or several.
    """
    rows = [name for name in names if name.endswith(SUFFIXES) and not name.endswith("dataset_infos.json")]
    of_split = [name for name in rows if split in re.split(r"[^a-z0-9]+", name.lower())]
    chosen = of_split or rows
    shards = [_SHARD.fullmatch(name) for name in chosen]
    one_file = len({(shard[1], shard[3], shard[4]) for shard in shards if shard}) == 1 and all(shards)
    if len(chosen) == 1 or one_file:
        return chosen
    raise no_such_file(repository, "", names)


def _missing_shards(names: list[str]) -> list[str]:
    """Shards that belong to those of ``names`` and are not among them."""
    first = _SHARD.fullmatch(names[0])
    if first is None:
        return []
    every = (f"{first[1]}-{number:05d}-of-{first[3]}{first[4]}" for number in range(int(first[3])))
    return [name for name in every if name not in names]


def no_such_file(repository: Repository, path: str, names: list[str]) -> TrainerError:
    listed = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
    problem = (
        f"has no {path}"
        if path
        else f"has no one file of rows for the split ({', '.join(SUFFIXES)}); name it in the uri"
    )
    return TrainerError(
        ExitCode.DATASET_NOT_FOUND,
        f"{repository.field}: the {repository.title} {problem}. It has: {listed or 'nothing'}",
    )


def _ask(repository: Repository) -> dict[str, int]:
    """The revision's files and their sizes."""
    return {file.rfilename: file.size or 0 for file in info(repository).siblings or []}


def info(repository: Repository) -> Any:
    """The revision, as huggingface_hub tells of it: the first question, by which the hub is found to answer or not.

    Raises:
        UnreachableError: it does not.
        TrainerError: as :func:`fetch_files`.
    """
    api = HfApi(endpoint=constants.ENDPOINT, token=repository.token)
    timeout = float(constants.HF_HUB_ETAG_TIMEOUT)

    def ask() -> Any:
        return api.repo_info(
            repository.name,
            repo_type=repository.kind,
            revision=repository.revision,
            timeout=timeout,
            files_metadata=True,
        )

    with _told(repository):
        return _within(ANSWER_SECONDS, ask)


def _within(seconds: float, call: Callable[[], Found]) -> Found:
    """The result of ``call``. Neither looking up a name nor a proxy knows a time limit of its own."""
    results: queue.Queue[tuple[Found | None, BaseException | None]] = queue.Queue()

    def run() -> None:
        try:
            results.put((call(), None))
        except BaseException as error:  # noqa: BLE001 - handed over to the waiting thread
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value] # None only where there is an error


@contextmanager
def _told(repository: Repository) -> Iterator[None]:
    """Turn what huggingface_hub raises into what it means for the job."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        meaning = _meaning(error, repository)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: Exception, repository: Repository) -> Exception | None:
    """What ``error`` stands for; None where it is no matter of the hub. The order tells the subclasses apart."""
    at_hub = f"at {constants.ENDPOINT}"
    model = repository.kind == "model"
    not_found = ExitCode.MODEL_NOT_FOUND if model else ExitCode.DATASET_NOT_FOUND
    denied = ExitCode.MODEL_ACCESS_DENIED if model else ExitCode.DATASET_ACCESS_DENIED
    secret = "spec.model.secretRef" if model else f"{repository.field.removesuffix('.uri')}.secretRef"
    with_token = (
        f"the token of {secret} was given, but does not grant access: ask for access on the hub with its account, or "
        "name another token"
        if repository.token
        else f"no token was given: accept the licence on the hub and name a Secret with a token in {secret}"
    )
    for cause in _causes(error):
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if isinstance(cause, GatedRepoError):
            problem = f"{repository.field}: the {repository.title} is gated {at_hub}, and {with_token}"
            return TrainerError(denied, problem)
        if isinstance(cause, RevisionNotFoundError):
            field = "spec.model.revision" if model else repository.field
            problem = f"{field}: {repository.name} has no revision {repository.revision!r} {at_hub}"
            return TrainerError(not_found, problem)
        if isinstance(cause, RepositoryNotFoundError) and _says(cause, "RepoNotFound"):
            hidden = "" if repository.token else f"; if it is private, name a Secret with a token in {secret}"
            problem = f"{repository.field}: there is no {repository.title} {at_hub}; check the spelling{hidden}"
            return TrainerError(not_found, problem)
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return TrainerError(not_found, f"{repository.field}: a file of the {repository.title} is gone {at_hub}")
        if isinstance(cause, HFValidationError):
            return TrainerError(
                not_found, f"{repository.field}: {repository.name!r} is no name of a repository: {cause}"
            )
        if status in (401, 403):
            problem = (
                f"{repository.field}: the hub refuses the {repository.title} {at_hub} ({status}), and {with_token}"
            )
            return TrainerError(denied, problem)
        if status == 404:
            return TrainerError(not_found, f"{repository.field}: there is no {repository.title} {at_hub}")
        if status == 429 or (status or 0) >= 500:
            return UnreachableError(f"{constants.ENDPOINT} answers {status}")
    if _is_of_the_network(error):
        last = list(_causes(error))[-1]
        return UnreachableError(f"{constants.ENDPOINT} cannot be reached: {str(last) or type(last).__name__}")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _says(error: HfHubHTTPError, code: str) -> bool:
    return error.response.headers.get("X-Error-Code") == code


def _is_of_the_network(error: Exception) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError, LocalEntryNotFoundError)):
        return True
    # The HTTP client's own errors, whichever of its releases huggingface_hub uses.
    return any(base.__module__.split(".")[0] in ("httpx", "httpx2") for base in type(error).__mro__)


def _from_cache(repository: Repository, hub: Path, error: UnreachableError) -> Path:
    """The cache's snapshot of the revision.

    Raises:
        TrainerError: HUB_UNREACHABLE.
    """
    snapshot = _cached(repository, hub)
    if snapshot is None:
        raise unreachable(repository, error, "the cache has no copy") from error
    log.warning("%s; using the cache's copy of the %s, commit %s", error, repository.title, snapshot.name[:12])
    return snapshot


def _cached(repository: Repository, hub: Path) -> Path | None:
    folder = hub / f"{repository.kind}s--{repository.name.replace('/', '--')}"
    commit: str | None = repository.revision
    if not _COMMIT.fullmatch(repository.revision):
        try:
            commit = (folder / "refs" / repository.revision).read_text().strip()
        except OSError:
            return None
    snapshot = folder / "snapshots" / str(commit)
    return snapshot if snapshot.is_dir() else None


def unreachable(repository: Repository, error: UnreachableError, cache: str) -> TrainerError:
    return TrainerError(
        ExitCode.HUB_UNREACHABLE,
        f"{repository.field}: {error}, and {cache} of the {repository.title}. Check the pod's network, or set "
        "HF_ENDPOINT to a mirror in the profile's environment, or put the files on a claim and name that",
    )


def _size_of_missing(repository: Repository, hub: Path, sizes: dict[str, int], files: list[str]) -> int:
    snapshot = _cached(repository, hub)
    return sum(sizes[name] for name in files if snapshot is None or not (snapshot / name).exists())


def _literally(name: str) -> str:
    """``name`` as a pattern that matches it alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)
