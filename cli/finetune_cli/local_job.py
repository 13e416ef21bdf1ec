"""A FineTuneJob for this machine: the manifest's job, and the trainer's configuration with paths of this disk.

What a cluster would mount is laid into the run's own directory: ConfigMaps of the same files become files there.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from finetune_api.chat_template import ChatTemplate, ChatTemplateSpec
from finetune_api.job import FineTuneJob
from finetune_api.trainer_config import (
    REQUIRED_STORE_KEYS,
    JobIdentity,
    Paths,
    ResolvedModel,
    ResolvedSource,
    TrainerConfig,
    resolve_config,
)
from finetune_api.training import SecretKeyRef
from finetune_api.uris import Uri, parse_uri

from finetune_cli.documents import Document
from finetune_cli.errors import CliError
from finetune_cli.validate import report

TOKEN_ENV = "HF_TOKEN"  # noqa: S105 - a variable's name
_UNITS = {"m": Decimal("0.001"), "": Decimal(1), "k": Decimal(1000)}


def cache_directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where models and prepared data are kept unless told otherwise: where hack/seed_model.py lays one, too."""
    base = environment.get("FINETUNE_CACHE")
    if not base:
        base = f"{environment.get('XDG_CACHE_HOME') or '~/.cache'}/finetune-operator"
    return Path(base).expanduser() / "model"


def find_job(documents: list[Document], name: str | None) -> tuple[Document, FineTuneJob]:
    """The one job to run, judged as ``finetune validate --local`` judges.

    Raises:
        CliError: there is none or more than one, or it is not valid; findings are printed.
    """
    jobs = [document for document in documents if document.kind == "FineTuneJob"]
    chosen = [document for document in jobs if name in (None, document.name)]
    known = ", ".join(document.name for document in jobs)
    if not chosen:
        raise CliError(f"no FineTuneJob {name!r} in these files; there is: {known}" if jobs else "no FineTuneJob in it")
    if len(chosen) > 1:
        raise CliError(f"several FineTuneJobs in these files: {known}; name one with --job")
    document = chosen[0]
    if report(document, local=True, quiet=True):
        raise CliError(f"{document.file} would be refused for what is said above; correct it first")
    return document, FineTuneJob.from_dict(document.body)


@dataclass
class LocalPlan:
    """What a run needs: made by :func:`plan`, and nothing is written before :meth:`lay_out`."""

    config: TrainerConfig
    files: dict[Path, bytes] = field(default_factory=dict)
    """Contents of ConfigMaps by the path that the configuration names."""
    notes: list[str] = field(default_factory=list)
    """Where this machine stands in for the cluster."""

    def lay_out(self) -> None:
        """Write the files."""
        for path, content in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def plan(
    job: FineTuneJob,
    documents: list[Document],
    *,
    output: Path,
    cache: Path,
    work: Path,
    environment: Mapping[str, str] = os.environ,
) -> LocalPlan:
    """Resolve ``job`` for this machine.

    Args:
        job: a valid job.
        documents: all that was in the files: its ConfigMaps are among them.
        output: directory of checkpoints and result.
        cache: directory of models and prepared data.
        work: directory for what a cluster would mount.
        environment: this process's.

    Raises:
        CliError: it names what only a cluster has.
    """
    spec = job.spec
    if spec.distributed.nodes > 1:
        raise CliError(f"spec.distributed.nodes is {spec.distributed.nodes}, and this is one machine; set it to 1")
    files: dict[Path, bytes] = {}
    notes: list[str] = []

    def token(ref: SecretKeyRef | None, place: str) -> str | None:
        if ref is None:
            return None
        if not environment.get(TOKEN_ENV):
            raise CliError(f"{place} names a Secret, and there is no cluster to read it from: export {TOKEN_ENV} with "
                           "the token, or remove the reference")  # fmt: skip
        notes.append(f"{place}: the token is taken from {TOKEN_ENV}")
        return TOKEN_ENV

    def credentials(ref: SecretKeyRef | None, place: str) -> str | None:
        if ref is None:
            return None
        if missing := [name for name in REQUIRED_STORE_KEYS if not environment.get(name)]:
            raise CliError(f"{place} names a Secret, and there is no cluster to read it from: export "
                           f"{' and '.join(missing)}, or remove the reference")  # fmt: skip
        notes.append(f"{place}: the credentials are taken from {' and '.join(REQUIRED_STORE_KEYS)}")
        return ""

    sources = []
    for index, source in enumerate(spec.dataset.sources):
        place = f"spec.dataset.sources[{index}]"
        uri = _parsed(source.uri)
        path = _local_path(uri, f"{place}.uri")
        if uri.scheme == "configmap":
            # The key as the file's name, as in a pod: errors in the data name it.
            path = work / "sources" / str(index) / uri.path
            files[path] = _config_map_value(job, documents, uri, f"{place}.uri")
        sources.append(
            ResolvedSource(
                uri=source.uri,
                path=str(path) if path else None,
                root="/" if uri.scheme == "file" else None,
                format=source.format,
                columns=source.columns,
                split=source.split,
                weight=source.weight,
                max_samples=source.max_samples,
                sha256=source.sha256,
                token_env=None if uri.scheme == "s3" else token(source.secret_ref, f"{place}.secretRef"),
                credentials_env=credentials(source.secret_ref, f"{place}.secretRef") if uri.scheme == "s3" else None,
            )
        )
    model_path = _local_path(_parsed(spec.model.source), "spec.model.source")
    if spec.model.trust_remote_code:
        notes.append("spec.model.trustRemoteCode: code of the model's repository will run as you")
    return LocalPlan(
        config=resolve_config(
            spec,
            job=JobIdentity(name=job.metadata.name, namespace=job.metadata.namespace or "default"),
            model=ResolvedModel(
                uri=spec.model.source,
                path=str(model_path) if model_path else None,
                revision=spec.model.revision,
                trust_remote_code=spec.model.trust_remote_code,
                token_env=token(spec.model.secret_ref, "spec.model.secretRef"),
            ),
            sources=sources,
            paths=Paths(cache=str(cache.absolute()), output=str(output.absolute())),
            chat_template=_chat_template(job, documents),
            created=job.metadata.creation_timestamp or datetime.now(UTC).isoformat(),
        ),
        files=files,
        notes=notes,
    )


def threads(cpu: str) -> int:
    """Threads for a CPU quantity, as a pod that asks for it gets: results depend on how sums are split."""
    digits = cpu.rstrip("mk")
    unit = cpu[len(digits) :]
    if not digits.replace(".", "", 1).isdigit() or unit not in _UNITS:
        raise CliError(f'spec.resources.cpu: {cpu!r} is no number of CPUs, such as "2" or "500m"')
    return max(1, math.ceil(Decimal(digits) * _UNITS[unit]))


def _parsed(text: str) -> Uri:
    try:
        return parse_uri(text)
    except ValueError as error:
        raise CliError(str(error)) from error


def _local_path(uri: Uri, place: str) -> Path | None:
    if uri.scheme == "pvc":
        raise CliError(f"{place}: {uri} is a claim of a cluster; give file:///path here, or apply the manifest to "
                       "the cluster")  # fmt: skip
    if uri.scheme != "file":
        return None
    path = Path(uri.path)
    if not path.is_absolute():
        raise CliError(f"{place}: {uri} must be absolute: file://{path.absolute()}")
    return path


def _chat_template(job: FineTuneJob, documents: list[Document]) -> ChatTemplateSpec | None:
    """The ChatTemplate that ``job`` names, from the files beside it."""
    name = job.spec.template.ref
    if name is None:
        return None
    for document in documents:
        if document.kind != "ChatTemplate" or document.name != name or not _same_namespace(job, document):
            continue
        if report(document, local=True, quiet=True):
            raise CliError(f"{document.file} would be refused for what is said above; correct it first")
        return ChatTemplate.model_validate(document.body).spec
    raise CliError(
        f"spec.template.ref: ChatTemplate {name!r} is in none of these files; give its file with a further -f"
    )


def _config_map_value(job: FineTuneJob, documents: list[Document], uri: Uri, place: str) -> bytes:
    """The value of the key that ``uri`` names, from the ConfigMaps beside ``job``."""
    if "/" in uri.path:
        raise CliError(f"{place}: {uri} must be configmap://name/key; a ConfigMap's keys have no '/'")
    for document in documents:
        if document.kind != "ConfigMap" or document.name != uri.name or not _same_namespace(job, document):
            continue
        where = f"{document.file}:{document.line}: ConfigMap {uri.name}"
        data, binary = (_map(document.body.get(key), f"{where}: {key}") for key in ("data", "binaryData"))
        if uri.path in data:
            if not isinstance(data[uri.path], str):
                raise CliError(f"{where}: {uri.path} must be text")
            return str(data[uri.path]).encode()
        if uri.path in binary:
            try:
                return base64.b64decode(str(binary[uri.path]), validate=True)
            except binascii.Error as error:
                raise CliError(f"{where}: binaryData.{uri.path} is not base64: {error}") from error
        raise CliError(f"{where} has no key {uri.path!r}, which {place} names; it has: {', '.join([*data, *binary])}")
    raise CliError(f"{place}: {uri} is in none of these files; give its ConfigMap's file with a further -f")


def _same_namespace(job: FineTuneJob, document: Document) -> bool:
    there = document.body.get("metadata", {}).get("namespace")
    return None in (there, job.metadata.namespace) or there == job.metadata.namespace


def _map(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CliError(f"{where} must be a map")
    return value
