"""Build the operator's and the trainer's image from their Dockerfiles with buildah, and push them.

A tag is a hash of all that the image is made from, so an image that is there already is neither built nor pushed
again, and ``imagePullPolicy: IfNotPresent`` is right. The base is made by debootstrap from the machine's own apt
settings where no public registry can be reached.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from embedded.layout import REGISTRY, ROOT, cache_dir

SOURCES: dict[str, tuple[str, tuple[str, ...]]] = {
    "operator": (
        "operator/Dockerfile",
        ("operator/Dockerfile", "operator/requirements.txt", "hack/uv.txt", "crds/finetune_api",
         "operator/finetune_operator"),
    ),
    "trainer": (
        "trainer_image/Dockerfile",
        ("trainer_image/Dockerfile", "trainer_image/requirements.txt", "trainer_image/finetune-train", "hack/uv.txt",
         "crds/finetune_api", "trainer_image/finetune_trainer"),
    ),
    # Only ever built by its name: parts of Unsloth are under the AGPL (docs/unsloth.md).
    "trainer-unsloth": (
        "trainer_image/Dockerfile",
        ("trainer_image/Dockerfile", "trainer_image/requirements-unsloth.txt", "trainer_image/finetune-train",
         "hack/uv.txt", "crds/finetune_api", "trainer_image/finetune_trainer"),
    ),
}  # fmt: skip
ARGUMENTS: dict[str, tuple[str, ...]] = {"trainer-unsloth": ("REQUIREMENTS=requirements-unsloth.txt",)}
"""What a Dockerfile that makes several images is told."""
BASE_PACKAGES = {
    "operator": "python3,python3-venv,ca-certificates",
    # Triton and torch.compile build small C and C++ files at run time, against Python's headers.
    "trainer": "python3,python3-venv,python3-dev,ca-certificates,g++",
    "trainer-unsloth": "python3,python3-venv,python3-dev,ca-certificates,g++",
}
DEBOOTSTRAP = "debootstrap"
_ASIDE = ".debootstrap-"


def main() -> int:
    parser = argparse.ArgumentParser(prog="build", description=__doc__)
    parser.add_argument("image", choices=sorted(SOURCES))
    parser.add_argument("--base-only", action="store_true", help="make the debootstrap base alone and print its name")
    parser.add_argument("--registry", default=REGISTRY, help="push here instead of to the embedded cluster's registry")
    parser.add_argument(
        "--base",
        help=f"base image, or {DEBOOTSTRAP!r} for one made on this machine; default: that one for the embedded "
        "cluster, the Dockerfile's own for another registry",
    )
    parser.add_argument("--no-push", action="store_true", help="leave the image in the builder's storage")
    arguments = parser.parse_args()
    local = arguments.registry == REGISTRY
    base = arguments.base or (DEBOOTSTRAP if local else "")
    if arguments.base_only:
        with _locked():
            print(base_image(arguments.image))
        return 0
    reference = f"{arguments.registry}/finetune-{arguments.image}:{tag(arguments.image, base)}"
    if local and not arguments.no_push and _in_registry(reference):
        print(reference)
        return 0
    if not shutil.which("buildah"):
        _build_by_docker(arguments.image, reference, base, push=not arguments.no_push)
    else:
        with _locked():
            build(arguments.image, reference, base_image(arguments.image) if base == DEBOOTSTRAP else base)
            if not arguments.no_push:
                _say(f"pushing {reference}")
                buildah("push", *(["--tls-verify=false"] if local else []), reference)
            _forget_older(reference)
    print(reference)
    return 0


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """One build at a time; what an interrupted one left, gigabytes perhaps, goes first."""
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / ".images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        buildah("rm", "--all")
        for left in cache_dir().glob(f"{_ASIDE}*"):
            shutil.rmtree(left)
        yield


def _build_by_docker(image: str, reference: str, base: str, *, push: bool) -> None:
    """For a registry of the user's on a machine that has Docker instead of buildah."""
    if not shutil.which("docker"):
        raise SystemExit("images: neither buildah nor docker is installed. On Debian or Ubuntu, "
                         "hack/cluster/cluster build installs buildah; elsewhere install Docker")  # fmt: skip
    if base == DEBOOTSTRAP:
        raise SystemExit("images: a base made by debootstrap needs buildah: hack/cluster/cluster build installs it")
    _say(f"building {reference} by docker")
    told = [*([f"BASE={base}"] if base else []), *ARGUMENTS.get(image, ())]
    arguments = [part for argument in told for part in ("--build-arg", argument)]
    _run(["docker", "build", *arguments, f"--file={ROOT / SOURCES[image][0]}", f"--tag={reference}", str(ROOT)])
    if push:
        _say(f"pushing {reference}")
        _run(["docker", "push", reference])


def _forget_older(reference: str) -> None:
    """Older builds of the same image leave buildah's storage; the layers they share with this one stay."""
    repository = reference.rpartition(":")[0]
    for name in buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        if name.rpartition(":")[0] == repository and name != reference:
            buildah("rmi", name)


def tag(image: str, base: str) -> str:
    """Hash of everything that goes into the image."""
    made_of = BASE_PACKAGES[image] if base == DEBOOTSTRAP else base
    digest = hashlib.sha256(made_of.encode())
    for source in SOURCES[image][1]:
        path = ROOT / source
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def build(image: str, reference: str, base: str) -> None:
    """Build ``image`` as ``reference``; unchanged layers are taken from the last build."""
    _say(f"building {reference}")
    uv_cache = cache_dir() / "uv"
    uv_cache.mkdir(parents=True, exist_ok=True)
    mounts = [f"{uv_cache}:/var/cache/uv"]
    arguments = [*([f"BASE={base}"] if base else []), "UV_CACHE_DIR=/var/cache/uv", *ARGUMENTS.get(image, ())]
    certificates = Path("/etc/ssl/certs/ca-certificates.crt")
    if certificates.exists():  # this machine may trust authorities that a bare image does not
        mounts.append(f"{certificates}:/etc/ssl/certs/ca-certificates.crt:ro")
        arguments += [f"{name}={certificates}" for name in ("SSL_CERT_FILE", "PIP_CERT")]
    mounts += [f"{setting}:{setting}:ro" for setting in ("/etc/pip.conf", "/etc/uv") if Path(setting).exists()]
    settings = ("PIP_INDEX_URL", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
    arguments += [f"{name}={os.environ[name]}" for name in settings if name in os.environ]
    buildah(
        "build",
        "--layers",
        "--isolation=chroot",
        "--format=oci",
        *[f"--volume={mount}" for mount in mounts],
        *[part for argument in arguments for part in ("--build-arg", argument)],
        f"--file={ROOT / SOURCES[image][0]}",
        f"--tag={reference}",
        str(ROOT),
    )


def base_image(image: str) -> str:
    """A minimal Debian or Ubuntu as this machine's own release has it, made once, with what ``image`` starts from."""
    codename, packages = _os_release()["VERSION_CODENAME"], BASE_PACKAGES[image]
    name = f"localhost/finetune-base:{codename}-{hashlib.sha256(packages.encode()).hexdigest()[:8]}"
    if name in buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        return name
    _say(f"making {name} by debootstrap")
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix=_ASIDE) as directory:
        _run(["debootstrap", "--variant=minbase", f"--include={packages}", codename, directory, _mirror(codename)])
        for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(Path(directory) / waste, ignore_errors=True)
        container = buildah("from", "scratch")
        try:
            buildah("add", "--quiet", container, directory, "/")
            buildah("config", "--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
            buildah("commit", "--quiet", "--format=oci", container, name)
        finally:
            buildah("rm", container)
    return name


def _mirror(codename: str) -> str:
    """Where the machine's own apt gets this release from."""
    listed = _run(["apt-get", "indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"])
    for line in listed.splitlines():
        release, _, uri = line.partition(" ")
        if release == codename:
            return uri
    raise SystemExit(f"apt knows no source of {codename}: run apt-get update, or give --base an image with Python 3.11")


def _os_release() -> dict[str, str]:
    lines = Path("/etc/os-release").read_text().splitlines()
    return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}


def _in_registry(reference: str) -> bool:
    host, _, rest = reference.partition("/")
    repository, _, version = rest.partition(":")
    request = urllib.request.Request(
        f"http://{host}/v2/{repository}/manifests/{version}",
        method="HEAD",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10):
            return True
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return False
        raise
    except urllib.error.URLError as error:
        raise SystemExit(f"the embedded registry at {host} does not answer ({error.reason}): "
                         "run hack/cluster/cluster up") from error  # fmt: skip


def buildah(*arguments: str) -> str:
    """buildah with storage of our own, so that nothing of the user's is touched."""
    storage = cache_dir() / "buildah"
    command = ["buildah", "--root", str(storage / "root"), "--runroot", str(storage / "run"),
               "--storage-driver", "overlay", *arguments]  # fmt: skip
    return _run(command)


def _run(command: list[str]) -> str:
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{' '.join(command[:8])} … failed:\n{result.stdout[-4000:]}")
    return result.stdout.strip()


def _say(text: str) -> None:
    print(f"images: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
