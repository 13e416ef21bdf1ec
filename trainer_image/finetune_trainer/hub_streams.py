"""Data sets on the hub, read as they come."""

from __future__ import annotations

from finetune_api.failures import ExitCode
from huggingface_hub import constants, hf_hub_url

from finetune_trainer import hub
from finetune_trainer.streams import StreamedFile
from finetune_trainer.web import WebFile


def stream_files(repository: hub.Repository, path: str, split: str, *, sha256: str | None) -> list[StreamedFile]:
    """The files of :func:`finetune_trainer.hub.fetch_files`, to be read as they come, at the hub's newest commit.

    Raises:
        TrainerError: DATASET_NOT_FOUND, DATASET_ACCESS_DENIED, HUB_UNREACHABLE.
    """
    try:
        found = hub.info(repository)
    except hub.UnreachableError as error:
        raise hub.unreachable(repository, error, "a set that is streamed has no copy in the cache") from error
    files = {file.rfilename: file for file in found.siblings or []}
    wanted = [path] if path else hub.choose_rows(sorted(files), split, repository)
    if path and path not in files:
        raise hub.no_such_file(repository, path, sorted(files))
    streams = []
    for name in wanted:
        url = hf_hub_url(
            repository.name, name, repo_type=repository.kind, revision=found.sha, endpoint=constants.ENDPOINT
        )
        remote = WebFile(url, token=repository.token or None, field=repository.field)
        published = files[name].lfs.sha256 if files[name].lfs else None
        streams.append(
            StreamedFile(
                remote,
                url,
                sha256=sha256,
                field=repository.field,
                published=published,
                unreachable=ExitCode.HUB_UNREACHABLE,
            )
        )
    return streams
