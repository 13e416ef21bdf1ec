"""A short-lived pod that holds one claim, so that files can be streamed out of it or into it by tar.

It meets the restricted Pod Security standard, needs no right on the API, ends by itself, and is always deleted.
"""

from __future__ import annotations

import contextlib
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.base import GROUP

from finetune_cli.errors import CliError
from finetune_cli.kubectl import Kubectl, KubectlError

MOUNT = "/volume"
CONTAINER = "files"
LIFETIME_SECONDS = 3600
READY_SECONDS = 180
USER = 65532


@dataclass(frozen=True)
class PodPlan:
    """What the pod needs of where it runs."""

    claim: str
    image: str
    user: int = USER
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[dict[str, Any], ...] = ()
    read_only: bool = True


def pod_body(plan: PodPlan, name: str) -> dict[str, Any]:
    """The pod."""
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # It has nothing to finish, and ends by itself should we be killed.
        "terminationGracePeriodSeconds": 0,
        "activeDeadlineSeconds": LIFETIME_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": plan.user,
            "runAsGroup": plan.user,
            "fsGroup": plan.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": plan.image,
                "imagePullPolicy": plan.pull_policy,
                "command": ["sleep", str(LIFETIME_SECONDS)],
                "resources": {
                    "requests": {"cpu": "50m", "memory": "64Mi"},
                    "limits": {"cpu": "1", "memory": "512Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "claim", "mountPath": MOUNT, "readOnly": plan.read_only}],
            }
        ],
        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": plan.claim}}],
    }
    optional = {
        "imagePullSecrets": [{"name": secret} for secret in plan.pull_secrets],
        "nodeSelector": plan.node_selector,
        "tolerations": list(plan.tolerations),
    }
    spec |= {key: value for key, value in optional.items() if value}
    labels = {"app.kubernetes.io/managed-by": "finetune", f"{GROUP}/component": "files"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}


@dataclass(frozen=True)
class VolumePod:
    """A running pod of this kind."""

    kubectl: Kubectl
    name: str

    def run(self, *command: str) -> str:
        """Standard output of a command in the pod.

        Raises:
            KubectlError: it failed.
        """
        return self.kubectl.run("exec", self.name, "--container", CONTAINER, "--", *command)

    def fetch(self, directory: str, target: Path, *, exclude: tuple[str, ...] = ()) -> None:
        """Copy what is in ``directory`` of the claim into ``target``.

        Raises:
            CliError: the directory is not there, or the stream broke.
        """
        left_out = [f"--exclude=./{name}" for name in exclude]
        tar = ["tar", "-C", f"{MOUNT}/{directory}", *left_out, "-cf", "-", "."]
        process = subprocess.Popen(self._exec(*tar), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None  # noqa: S101 - as Popen was called
        broken: Exception | None = None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                # `data` keeps every name below target and takes no device, owner or mode that could surprise.
                archive.extractall(target, filter="data")
        except (tarfile.TarError, EOFError) as error:
            broken = error
        _, stderr = process.communicate()
        if process.returncode or broken:
            raise CliError(f"{directory} could not be copied: {stderr.decode().strip() or broken}")

    def send(self, source: Path, directory: str) -> None:
        """Copy what is in ``source``, symbolic links as they are, into ``directory`` of the claim; the group may
        write it.

        Raises:
            CliError: the stream broke, or the claim is full or not writable.
        """
        self.run("mkdir", "-p", f"{MOUNT}/{directory}")
        tar = ["tar", "-C", f"{MOUNT}/{directory}", "--no-same-owner", "--no-same-permissions", "-xf", "-"]
        process = subprocess.Popen(self._exec("--stdin", *tar), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None  # noqa: S101 - as Popen was called
        # A broken pipe: tar says why, below.
        with contextlib.suppress(BrokenPipeError), tarfile.open(fileobj=process.stdin, mode="w|") as archive:
            archive.add(source, arcname=".", filter=_group_writable)
        _, stderr = process.communicate()
        if process.returncode:
            raise CliError(f"{source} could not be copied to the claim: {stderr.decode().strip()}")
        self.run("chmod", "-R", "g+rwX", f"{MOUNT}/{directory}")

    def _exec(self, *command: str) -> list[str]:
        stdin = ["--stdin"] if command[0] == "--stdin" else []
        return self.kubectl.command("exec", *stdin, self.name, "--container", CONTAINER, "--", *command[len(stdin) :])


@contextlib.contextmanager
def volume_pod(kubectl: Kubectl, plan: PodPlan) -> Iterator[VolumePod]:
    """Run a pod for the length of the block.

    Raises:
        CliError: it cannot be made, or is not ready in time; the message says what its events say.
    """
    name = f"finetune-files-{uuid.uuid4().hex[:8]}"
    try:
        kubectl.apply(pod_body(plan, name))
        _await_ready(kubectl, name)
        yield VolumePod(kubectl, name)
    finally:
        kubectl.run("delete", "pod", name, "--ignore-not-found", "--wait=false")


def _await_ready(kubectl: Kubectl, name: str) -> None:
    try:
        kubectl.run("wait", "--for=condition=Ready", f"pod/{name}", f"--timeout={READY_SECONDS}s")
    except KubectlError as error:
        events = kubectl.items("events", "--field-selector", f"involvedObject.name={name}")
        told = [event.get("message", "") for event in events if event.get("type") == "Warning"]
        raise CliError(f"pod {name}, which reads the claim, did not start: {'; '.join(told) or error}") from error


def _group_writable(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = USER
    member.uname = member.gname = ""
    return member
