"""Plan: what a spec and a profile mean, decided once, before anything runs.

The result holds the trainer's configuration, whose digest names its ConfigMap, and what of Kubernetes the pods need
so that the paths in that configuration exist.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.chat_template import ChatTemplateSpec
from finetune_api.failures import FailureReason
from finetune_api.job import FineTuneJob
from finetune_api.profile import TrainingProfileSpec
from finetune_api.trainer_config import (
    REQUIRED_STORE_KEYS,
    STORE_KEYS,
    JobIdentity,
    Paths,
    ResolvedModel,
    ResolvedSource,
    TrainerConfig,
    resolve_config,
)
from finetune_api.training import SecretKeyRef
from finetune_api.uris import Uri, parse_uri

from finetune_operator.core import names

CONFIG_MOUNT = "/finetune/config"
CONFIG_FILE = "config.json"
CACHE_MOUNT = "/finetune/cache"
VOLUME_MOUNT = "/finetune/volume"
SOURCES_MOUNT = "/finetune/sources"
MODEL_MOUNT = "/finetune/model"
MODEL_TOKEN_ENV = "FINETUNE_MODEL_TOKEN"  # noqa: S105 - a variable's name


class Refused(Exception):  # noqa: N818 - it is an answer, not a malfunction
    """The job cannot be taken up, for a reason that its author or an administrator can mend."""

    def __init__(self, reason: FailureReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class ClaimMount:
    """A claim of the job's namespace, mounted read-only."""

    claim: str
    mount: str


@dataclass(frozen=True)
class ConfigMapMount:
    """One key of a ConfigMap, as a file below ``mount``."""

    config_map: str
    key: str
    mount: str


@dataclass(frozen=True)
class SecretVariable:
    """An environment variable whose value the kubelet takes from a Secret; the operator never reads it."""

    variable: str
    secret: str
    key: str
    field: str
    """Field of the spec that names the Secret: errors say it."""
    optional: bool = False
    """Whether the Secret may lack the key."""


@dataclass(frozen=True)
class Plan:
    """All that builders need to know of one job."""

    job: FineTuneJob
    profile: TrainingProfileSpec
    config: TrainerConfig
    claims: tuple[ClaimMount, ...]
    config_maps: tuple[ConfigMapMount, ...]
    secrets: tuple[SecretVariable, ...]

    @property
    def name(self) -> str:
        """Name of the FineTuneJob."""
        return self.job.metadata.name

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return self.job.metadata.namespace or "default"

    @property
    def uid(self) -> str:
        """Its uid."""
        return self.job.metadata.uid or ""

    @property
    def output_claim(self) -> str:
        """Claim that the result is written to."""
        return self.job.spec.output.claim.name or names.output_claim(self.name)

    @property
    def output_directory(self) -> str:
        """Directory of this job in that claim."""
        return names.output_directory(self.name, self.uid)


def make_plan(job: FineTuneJob, profile: TrainingProfileSpec, chat_template: ChatTemplateSpec | None = None) -> Plan:
    """Resolve ``job`` under ``profile``, with the ChatTemplate that it names.

    Raises:
        Refused: the profile forbids what the job asks for, or a URI cannot be mounted.
    """
    spec = job.spec
    if spec.model.trust_remote_code and not profile.security.allow_trust_remote_code:
        raise Refused(
            FailureReason.NOT_ALLOWED,
            f"spec.model.trustRemoteCode: the TrainingProfile {spec.scheduling.profile!r} does not allow it; set it to "
            "false, or ask the profile's administrator for security.allowTrustRemoteCode.",
        )
    claims: list[ClaimMount] = []
    config_maps: list[ConfigMapMount] = []
    secrets: list[SecretVariable] = []

    def token(ref: SecretKeyRef | None, variable: str, field: str) -> str | None:
        if ref is None:
            return None
        secrets.append(SecretVariable(variable, ref.name, ref.key, field))
        return variable

    def credentials(ref: SecretKeyRef | None, prefix: str, field: str) -> str | None:
        if ref is None:
            return None
        for name in STORE_KEYS:
            optional = name not in REQUIRED_STORE_KEYS
            secrets.append(SecretVariable(f"{prefix}{name}", ref.name, name, field, optional))
        return prefix

    def mounted(uri: Uri, mount: str, field: str) -> str | None:
        if uri.scheme == "pvc":
            if ".." in uri.path.split("/"):
                raise Refused(FailureReason.SPEC_INVALID, f"{field}: {uri} must not lead out of its claim by '..'.")
            claims.append(ClaimMount(uri.name, mount))
            return f"{mount}/{uri.path}".rstrip("/")
        if uri.scheme == "configmap":
            if "/" in uri.path:
                raise Refused(
                    FailureReason.SPEC_INVALID,
                    f"{field}: {uri} must be configmap://name/key; a ConfigMap's keys have no '/'.",
                )
            config_maps.append(ConfigMapMount(uri.name, uri.path, mount))
            return f"{mount}/{uri.path}"
        return None

    model = ResolvedModel(
        uri=spec.model.source,
        path=mounted(parse_uri(spec.model.source), MODEL_MOUNT, "spec.model.source"),
        revision=spec.model.revision,
        trust_remote_code=spec.model.trust_remote_code,
        token_env=token(spec.model.secret_ref, MODEL_TOKEN_ENV, "spec.model.secretRef"),
        allow_pickle=profile.security.allow_pickle,
    )
    sources = []
    for index, source in enumerate(spec.dataset.sources):
        field = f"spec.dataset.sources[{index}]"
        variable, in_store = f"FINETUNE_SOURCE_{index}_", parse_uri(source.uri).scheme == "s3"
        mount = f"{SOURCES_MOUNT}/{index}"
        path = mounted(parse_uri(source.uri), mount, f"{field}.uri")
        sources.append(
            ResolvedSource(
                uri=source.uri,
                path=path,
                root=mount if path else None,
                format=source.format,
                columns=source.columns,
                split=source.split,
                weight=source.weight,
                max_samples=source.max_samples,
                sha256=source.sha256,
                token_env=None if in_store else token(source.secret_ref, f"{variable}TOKEN", f"{field}.secretRef"),
                credentials_env=credentials(source.secret_ref, variable, f"{field}.secretRef") if in_store else None,
            )
        )
    directory = names.output_directory(job.metadata.name, job.metadata.uid or "")
    config = resolve_config(
        spec,
        job=JobIdentity(name=job.metadata.name, namespace=job.metadata.namespace or "default"),
        model=model,
        sources=sources,
        paths=Paths(cache=CACHE_MOUNT, output=f"{VOLUME_MOUNT}/{directory}"),
        chat_template=chat_template,
        created=job.metadata.creation_timestamp,
    )
    return Plan(job, profile, config, tuple(claims), tuple(config_maps), tuple(secrets))
