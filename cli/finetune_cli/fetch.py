"""``finetune fetch``: bring a job's result from its claim to this machine."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from finetune_api.job import FineTuneJob
from finetune_api.profile import TrainingProfileSpec
from finetune_api.uris import parse_uri
from pydantic import ValidationError

from finetune_cli.errors import CliError
from finetune_cli.kubectl import JOB_UID_LABEL, Kubectl
from finetune_cli.volume_pod import PodPlan, volume_pod

CHECKPOINTS = "checkpoints"


def fetch(kubectl: Kubectl, name: str, target: Path, *, checkpoints: bool = False) -> tuple[FineTuneJob, Path]:
    """Copy the result of the job ``name`` into ``target``; the job, and the adapter's or model's directory.

    ``target`` must be new or empty, and comes to be with all its files or not at all.

    Raises:
        CliError: there is no result, ``target`` holds something, or the claim cannot be read.
    """
    job = kubectl.job(name)
    if job.status.output is None:
        phase = job.status.phase or "Pending"
        raise CliError(f"FineTuneJob {name} is {phase} and has no result yet; finetune watch {name} follows it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CliError(f"{target} is there already and not empty; name another directory with -o, or remove it")
    uri = parse_uri(job.status.output.uri)
    if uri.scheme != "pvc":
        raise CliError(f"the result is at {uri}, which no claim holds; fetch it from there")
    directory, _, inner = uri.path.partition("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        with volume_pod(kubectl, _plan(kubectl, job, uri.name)) as pod:
            pod.fetch(directory, aside, exclude=() if checkpoints else (CHECKPOINTS,))
        if target.exists():
            target.rmdir()
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return job, target / inner


def _plan(kubectl: Kubectl, job: FineTuneJob, claim: str) -> PodPlan:
    """Where the job's own pods could run, this one can: same image, user, nodes."""
    profile = TrainingProfileSpec()
    with contextlib.suppress(ValidationError):  # a newer operator's snapshot: the image is in the Job too
        profile = TrainingProfileSpec.model_validate_json(job.status.profile or "{}")
    scheduling = job.spec.scheduling
    return PodPlan(
        claim=claim,
        image=profile.image.repository or _image_of(kubectl, job),
        user=profile.security.run_as_user,
        pull_policy=profile.image.pull_policy,
        pull_secrets=tuple(profile.image.pull_secrets),
        node_selector={**profile.node_selector, **scheduling.node_selector},
        tolerations=tuple(t.to_dict() for t in (*profile.tolerations, *scheduling.tolerations)),
    )


def _image_of(kubectl: Kubectl, job: FineTuneJob) -> str:
    for body in kubectl.items("jobs.batch", "-l", f"{JOB_UID_LABEL}={job.metadata.uid}"):
        return str(body["spec"]["template"]["spec"]["containers"][0]["image"])
    raise CliError(f"FineTuneJob {job.metadata.name}: neither its status nor a Job of it says which image to use")
