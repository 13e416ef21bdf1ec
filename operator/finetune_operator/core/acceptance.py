"""Whether a job is taken up, and under which profile."""

from __future__ import annotations

from typing import Any

from finetune_api.base import API_VERSION, ApiModel
from finetune_api.chat_template import ChatTemplateSpec
from finetune_api.failures import FailureReason
from finetune_api.job import FineTuneJob
from finetune_api.profile import TrainingProfileSpec
from finetune_api.status import FineTuneJobStatus
from finetune_api.validation import validate_manifest
from pydantic import ValidationError

from finetune_operator.core.plan import Refused
from finetune_operator.core.settings import CoreSettings

SNAPSHOT_CHARACTERS = 16384
"""What ``status.profile`` and ``status.chatTemplate`` hold."""


def parse_job(body: dict[str, Any], *, rules: bool) -> FineTuneJob:
    """The FineTuneJob in ``body``, without its status.

    Args:
        body: as the API server sent it.
        rules: try the rules between fields too. They bind when a job is taken up, not when an operator with more
            rules finds it half done.

    Raises:
        Refused: SpecInvalid, with each field and what is wrong with it.
    """
    document: dict[str, Any] = {key: body[key] for key in ("apiVersion", "kind", "metadata", "spec") if key in body}
    if rules and (findings := validate_manifest(document)):
        raise Refused(FailureReason.SPEC_INVALID, "; ".join(str(finding) for finding in findings))
    try:
        return FineTuneJob.from_dict(document)
    except ValidationError as error:
        told = "; ".join(str(finding) for finding in validate_manifest(document))
        raise Refused(FailureReason.SPEC_INVALID, told or str(error)) from error


def profile_of(
    job: FineTuneJob, status: FineTuneJobStatus, found: TrainingProfileSpec | None, settings: CoreSettings
) -> TrainingProfileSpec:
    """The profile as it was when the job was taken up; then, as it is now, with its image filled in.

    Raises:
        Refused: ProfileNotFound. ``default`` is never missing: it then means the operator's own defaults.
            AccelerationUnavailable where the job wants Unsloth and nobody has named an image with it.
    """
    if status.profile:
        return TrainingProfileSpec.model_validate_json(status.profile)
    name = job.spec.scheduling.profile
    if found is None and name != "default":
        raise Refused(
            FailureReason.PROFILE_NOT_FOUND,
            f"spec.scheduling.profile: there is no TrainingProfile {name!r}; create it, or leave the field out.",
        )
    profile = found or TrainingProfileSpec()
    image = profile.image.model_copy(update={"repository": profile.image.repository or _image_of(job, settings)})
    return profile.model_copy(update={"image": image})


def _image_of(job: FineTuneJob, settings: CoreSettings) -> str:
    if not job.spec.acceleration.unsloth:
        return settings.trainer_image
    if not settings.unsloth_image:
        raise Refused(
            FailureReason.ACCELERATION_UNAVAILABLE,
            "spec.acceleration.unsloth: this operator knows no image with Unsloth, which the default one leaves out "
            "for its licence. Build trainer-unsloth and name it in the chart's trainer.unslothImage "
            "(FINETUNE_UNSLOTH_IMAGE) or in a TrainingProfile's image (docs/unsloth.md), or leave unsloth false.",
        )
    return settings.unsloth_image


def template_of(job: FineTuneJob, status: FineTuneJobStatus, found: dict[str, Any] | None) -> ChatTemplateSpec | None:
    """The ChatTemplate that the job names, as it was when the job was taken up; None where it names none.

    Raises:
        Refused: ChatTemplateNotFound, TemplateInvalid.
    """
    name = job.spec.template.ref
    if name is None:
        return None
    if status.chat_template:
        return ChatTemplateSpec.model_validate_json(status.chat_template)
    if found is None:
        raise Refused(
            FailureReason.CHAT_TEMPLATE_NOT_FOUND,
            f"spec.template.ref: there is no ChatTemplate {name!r} in the namespace "
            f"{job.metadata.namespace or 'default'!r}; create it, or name a built-in template in template.name.",
        )
    document = {"apiVersion": API_VERSION, "kind": "ChatTemplate", "metadata": {"name": name}, "spec": found["spec"]}
    if findings := validate_manifest(document):
        told = "; ".join(str(finding) for finding in findings)
        raise Refused(FailureReason.TEMPLATE_INVALID, f"spec.template.ref: ChatTemplate {name!r}: {told}.")
    return ChatTemplateSpec.model_validate(found["spec"])


def template_snapshot(job: FineTuneJob, template: ChatTemplateSpec | None) -> str | None:
    """``template`` as ``status.chatTemplate`` keeps it.

    Raises:
        Refused: it does not fit into a status.
    """
    if template is None:
        return None
    return _snapshot(template, f"spec.template.ref: ChatTemplate {job.spec.template.ref!r}")


def snapshot_of(job: FineTuneJob, profile: TrainingProfileSpec) -> str:
    """``profile`` as ``status.profile`` keeps it: whole, so that defaults of a later operator change nothing.

    Raises:
        Refused: it does not fit into a status.
    """
    return _snapshot(profile, f"TrainingProfile {job.spec.scheduling.profile}: it")


def _snapshot(spec: ApiModel, what: str) -> str:
    text = spec.model_dump_json(by_alias=True, exclude_none=True)
    if len(text) > SNAPSHOT_CHARACTERS:
        raise Refused(
            FailureReason.NOT_ALLOWED,
            f"{what} has {len(text)} characters as JSON, and at most {SNAPSHOT_CHARACTERS} fit into a job's status; "
            "shorten it.",
        )
    return text
