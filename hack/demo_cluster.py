"""Where the demo runs: a cluster of the user's or the embedded node, its programs and its images."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_cli.console import out
from finetune_cli.words import duration
from rich.status import Status
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "hack/cluster/cluster"
BUILD = ROOT / "hack/images/build"
TIERS = ROOT / "hack/tiers"
_LOADERS = {
    "kind-": ["kind", "load", "image-archive", "{archive}", "--name", "{name}"],
    "k3d-": ["k3d", "image", "import", "{archive}", "--cluster", "{name}"],
    "minikube": ["minikube", "image", "load", "{archive}"],
}
"""By the beginning of a context's name: how an image archive gets into the nodes."""
_TAIL = 15


class DemoError(Exception):
    """What is wrong and what to do."""


class Step:
    """One step: a line when it is done, and meanwhile the newest line of what it runs."""

    def __init__(self, name: str, status: Status | None) -> None:
        self._name, self._status = name, status
        self._note = ""

    def say(self, text: str) -> None:
        """What there is to say at the end instead of what was to be done."""
        self._note = text

    @property
    def note(self) -> str:
        return self._note

    def command(self, command: list[str]) -> str:
        """Standard output of a program.

        Raises:
            DemoError: it failed; with the end of what it said.
        """
        told: list[str] = []
        with (
            tempfile.TemporaryFile("w+") as stdout,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace"
            ) as process,
        ):
            assert process.stderr is not None
            for line in process.stderr:
                told.append(line.rstrip())
                self._show(line.strip().rpartition("\r")[2])
            process.wait()
            stdout.seek(0)
            output = stdout.read()
        if process.returncode != 0:
            end = "\n".join([*told, *output.splitlines()][-_TAIL:])
            raise DemoError(f"{' '.join(command[:4])} … failed:\n{end}")
        return output.strip()

    def _show(self, line: str) -> None:
        if self._status is not None:
            self._status.update(_title(self._name, line))
        elif line and "%|" not in line:  # a progress bar is nothing for a log
            out.print(_title(self._name, line), style="dim")


@contextlib.contextmanager
def step(name: str, what: str) -> Iterator[Step]:
    """Show a step and how long it took."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(out.status(_title(name, what))) if out.is_terminal else None
        current = Step(name, status)
        yield current
    took = Text(f"{duration(time.monotonic() - begun):>6}  ", style="green")
    out.print(took + _title(name, current.note or what))


def _title(name: str, text: str) -> Text:
    return Text.assemble((f"{name:<9}", "bold"), text)


@dataclass
class Target:
    """A cluster. KUBECONFIG is set in our own environment: every program that we start reads it there."""

    embedded: bool
    kubectl: str = ""
    helm: str = ""

    def start(self) -> None:
        """Bring it up, find its programs."""
        if self.embedded:
            with step("cluster", "the embedded Kubernetes: built from source once, then started") as done:
                done.command([str(CLUSTER), "build"])
                done.command([str(CLUSTER), "up"])
        self.find_programs()

    def find_programs(self) -> None:
        """kubectl and helm: the embedded cluster's own, or those on PATH."""
        if self.embedded:
            self.kubectl, self.helm = _built("kubectl"), _built("helm")
            return
        self.kubectl = shutil.which(os.environ.get("KUBECTL") or "kubectl") or ""
        self.helm = shutil.which("helm") or ""
        missing = [name for name, path in (("kubectl", self.kubectl), ("helm", self.helm)) if not path]
        if missing:
            raise DemoError(f"{' and '.join(missing)} must be on PATH to use the cluster of KUBECONFIG")

    def images(self) -> tuple[str, str]:
        """References of the operator's and the trainer's image, which the cluster can pull or has."""
        if self.embedded:
            return self._build("operator"), self._build("trainer")
        operator, trainer = os.environ.get("OPERATOR_IMAGE"), os.environ.get("TRAINER_IMAGE")
        if operator and trainer:
            return operator, trainer
        if registry := os.environ.get("IMAGE_REGISTRY"):
            return self._build("operator", "--registry", registry), self._build("trainer", "--registry", registry)
        context = self._context()
        prefix = next((prefix for prefix in _LOADERS if context.startswith(prefix)), None)
        if prefix is None:
            raise DemoError(
                f"the cluster of context {context!r} needs to get the images from somewhere: set IMAGE_REGISTRY to a "
                "registry that this machine pushes to and the cluster pulls from (they are built and pushed), or "
                "OPERATOR_IMAGE and TRAINER_IMAGE to images that are there already"
            )
        return self._load("operator", context, prefix), self._load("trainer", context, prefix)

    def _build(self, image: str, *options: str) -> str:
        with step(image, "image from its Dockerfile, unless it is there") as done:
            reference = done.command([str(BUILD), image, *options]).splitlines()[-1]
            done.say(f"image {reference}")
            return reference

    def _load(self, image: str, context: str, prefix: str) -> str:
        reference = self._build(image, "--registry", "localhost", "--no-push")
        with step(image, f"loading it into {context}") as done, tempfile.TemporaryDirectory() as directory:
            archive = f"{directory}/{image}.tar"
            if shutil.which("buildah"):
                done.command(_buildah("push", reference, f"docker-archive:{archive}:{reference}"))
            else:
                done.command(["docker", "save", "--output", archive, reference])
            values = {"archive": archive, "name": context.removeprefix(prefix)}
            done.command([part.format(**values) for part in _LOADERS[prefix]])
        return reference

    def _context(self) -> str:
        result = subprocess.run(
            [self.kubectl, "config", "current-context"], capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise DemoError(f"KUBECONFIG={os.environ['KUBECONFIG']} names no current context: {result.stderr.strip()}")
        return result.stdout.strip()


def find_target() -> Target | None:
    """The cluster to use; None where there is none for the demo."""
    wanted = os.environ.get("KUBECONFIG")
    if wanted and Path(wanted) != embedded_kubeconfig():
        target = Target(embedded=False)
        target.find_programs()
        return target
    reason = subprocess.run([str(TIERS), "why-not", "e2e"], capture_output=True, text=True, check=True).stdout.strip()
    if reason:
        return None
    os.environ["KUBECONFIG"] = str(embedded_kubeconfig())
    return Target(embedded=True)


def embedded_kubeconfig() -> Path:
    """The embedded cluster's, whether it is up or not."""
    result = subprocess.run([str(CLUSTER), "kubeconfig"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(result.stdout.strip())


def _built(program: str) -> str:
    result = subprocess.run([str(CLUSTER), "which", program], stdout=subprocess.PIPE, text=True, check=True)
    return result.stdout.strip()


def _buildah(*arguments: str) -> list[str]:
    """buildah with the storage that hack/images builds in."""
    base = (
        os.environ.get("FINETUNE_CACHE")
        or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/finetune-operator"
    )
    storage = Path(base) / "buildah"
    options = ["--root", str(storage / "root"), "--runroot", str(storage / "run"), "--storage-driver", "overlay"]
    return ["buildah", *options, *arguments]
