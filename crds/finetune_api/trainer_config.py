"""TrainerConfig: the resolved, versioned hand-over from plan to trainer.

The operator (or ``finetune run``) makes it from a spec; the trainer reads nothing else of the job. Everything in it
is decided: methods are resolved, URIs that Kubernetes serves (claims, ConfigMaps) have become paths of the
container. Its hash names the ConfigMap, so it holds nothing that changes between attempts.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from finetune_api.base import ApiModel
from finetune_api.chat_template import ChatTemplateSpec
from finetune_api.job import FineTuneJobSpec
from finetune_api.running import CheckpointSpec, DistributedSpec, EvaluationSpec, MergeSpec
from finetune_api.training import (
    AccelerationSpec,
    DatasetFormat,
    DatasetSpec,
    HyperparametersSpec,
    MethodSpec,
    MultimodalSpec,
    Precision,
    PreferenceSpec,
    QuantizationSpec,
    Stage,
    TemplateSpec,
    ValidationSpec,
)

ATTEMPT_ENV = "FINETUNE_ATTEMPT"
PROGRESS_URL_ENV = "FINETUNE_PROGRESS_URL"
PROGRESS_TOKEN_FILE_ENV = "FINETUNE_PROGRESS_TOKEN_FILE"  # noqa: S105 - a variable's name
PROGRESS_CA_FILE_ENV = "FINETUNE_PROGRESS_CA_FILE"
NODE_RANK_ENV = "FINETUNE_NODE_RANK"
"""Number of this node among `distributed.nodes`, from 0. Needed where there is more than one."""
COORDINATOR_ENV = "FINETUNE_COORDINATOR"
"""`host:port` on node 0, where the processes of all nodes meet. Needed where there is more than one node."""
REQUIRED_STORE_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
"""Keys that the Secret of an object store's source must have."""
STORE_KEYS = (*REQUIRED_STORE_KEYS, "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_ENDPOINT_URL")
"""All keys that are taken from it."""


class JobIdentity(ApiModel):
    """Who this is for; only ever printed and written into the model card."""

    name: str
    """Name of the FineTuneJob."""
    namespace: str = "default"
    """Its namespace."""


class ResolvedModel(ApiModel):
    """The base model as the trainer loads it."""

    uri: str
    """As the user wrote it."""
    path: str | None = None
    """Directory in the container, for claims and files; None: fetch `uri` from the hub."""
    revision: str = "main"
    """Revision on the hub."""
    trust_remote_code: bool = False
    """As granted by spec and profile together."""
    token_env: str | None = None
    """Environment variable that holds the token."""
    allow_pickle: bool = False
    """As granted by the profile."""


class ResolvedSource(ApiModel):
    """One data set as the trainer reads it."""

    uri: str
    """As the user wrote it: errors name it."""
    path: str | None = None
    """File or directory in the container; None: fetch `uri`."""
    root: str | None = None
    """Directory of the volume that `path` is in: files that rows name lie below it, and it is the root of absolute
    ones. None: they lie beside the rows."""
    format: DatasetFormat = "alpaca"
    """Shape of a row."""
    columns: dict[str, str] = {}
    """Column names of the set by ours."""
    split: str = "train"
    """Split."""
    weight: float | None = None
    """Share."""
    max_samples: int | None = None
    """Rows to take, the first ones."""
    sha256: str | None = None
    """What the one file must hash to."""
    token_env: str | None = None
    """Environment variable that holds the token."""
    credentials_env: str | None = None
    """Prefix of the environment variables that hold an object store's credentials, such as `X_` of
    `X_AWS_ACCESS_KEY_ID`. None: those of the environment itself, or none."""


class Paths(ApiModel):
    """Directories, writable but for the sources."""

    cache: str = "/finetune/cache"
    """Models (`hub/`) and prepared data (`prepared/`), shared by jobs."""
    output: str = "/finetune/output"
    """This job's own directory: `checkpoints/`, `adapter/` or `model/`, `progress.jsonl`."""


class TrainerConfig(ApiModel):
    """All that ``finetune-train`` knows."""

    version: Literal[1] = 1
    job: JobIdentity
    stage: Stage = "sft"
    preference: PreferenceSpec | None = None
    model: ResolvedModel
    sources: list[ResolvedSource]
    max_length: int = 2048
    packing: bool = False
    validation: ValidationSpec = ValidationSpec()
    streaming: bool = False
    on_error: Literal["fail", "skip"] = "fail"
    multimodal: MultimodalSpec = MultimodalSpec()
    method: MethodSpec
    quantization: QuantizationSpec | None = None
    precision: Precision = "bf16"
    template: TemplateSpec = TemplateSpec()
    chat_template: ChatTemplateSpec | None = None
    """What `template.ref` names, or `template.inline` says."""
    acceleration: AccelerationSpec = AccelerationSpec()
    hyperparameters: HyperparametersSpec = HyperparametersSpec()
    distributed: DistributedSpec = DistributedSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    merge: MergeSpec | None = None
    evaluation: EvaluationSpec = EvaluationSpec()
    paths: Paths = Paths()

    def to_json(self) -> str:
        """Canonical JSON: same config, same bytes."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2) + "\n"

    def spread(self, **fields: Any) -> TrainerConfig:
        """The same job with other ``fields`` of ``distributed``, by their names in Python."""
        return self.model_copy(update={"distributed": self.distributed.model_copy(update=fields)})

    def as_spec(self) -> dict[str, Any]:
        """The part of a spec that this came from, as rules look at it: camelCase, unset fields left out. Of claims,
        Secrets, pushes and trackers it knows nothing."""
        data = self.to_dict()
        fields = {field.alias for field in DatasetSpec.model_fields.values()}
        return data | {
            "model": data["model"] | {"source": self.model.uri},
            "dataset": {name: value for name, value in data.items() if name in fields},
            "output": {name: data[name] for name in ("checkpoint", "merge") if name in data},
        }

    def digest(self) -> str:
        """First 10 hex digits of the SHA-256 of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:10]


def resolve_config(
    spec: FineTuneJobSpec,
    *,
    job: JobIdentity,
    model: ResolvedModel,
    sources: list[ResolvedSource],
    paths: Paths,
    chat_template: ChatTemplateSpec | None = None,
    created: str | None = None,
) -> TrainerConfig:
    """Make the trainer's configuration from a valid ``spec``.

    The caller, the operator's plan or ``finetune run``, says what only it can know: where the model, the data and
    the directories are, what ``template.ref`` names, and when the job was ``created`` (RFC 3339).
    """
    template = spec.template
    if template.date is None and created is not None:
        template = template.model_copy(update={"date": created[:10]})
    return TrainerConfig(
        job=job,
        stage=spec.stage,
        preference=spec.resolved_preference,
        model=model,
        sources=sources,
        max_length=spec.dataset.max_length,
        packing=spec.dataset.packing,
        validation=spec.dataset.validation,
        streaming=spec.dataset.streaming,
        on_error=spec.dataset.on_error,
        multimodal=spec.multimodal,
        method=spec.resolved_method,
        quantization=spec.quantization,
        precision=spec.precision,
        template=template,
        chat_template=chat_template or spec.template.inline,
        acceleration=spec.acceleration,
        hyperparameters=spec.hyperparameters,
        distributed=spec.distributed,
        checkpoint=spec.output.checkpoint,
        merge=spec.output.merge,
        evaluation=spec.evaluation,
        paths=paths,
    )
