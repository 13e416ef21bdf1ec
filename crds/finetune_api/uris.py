"""Where models and data come from: one small grammar for all URIs of the API.

========================  =====================================================================================
``hf://org/name``         a repository of the Hugging Face hub (``hf://datasets/…`` is not needed: the field says
                          which kind it is). After a data set's name comes the file: ``hf://org/name/train.jsonl``.
``pvc://claim/path``      a path on a PersistentVolumeClaim of the job's namespace
``configmap://name/key``  one key of a ConfigMap of the job's namespace: small data sets that live in Git
``s3://bucket/key``       an object store
``oci://registry/repo``   an OCI artifact
``https://host/path``     a plain download
``file:///path``          this machine's disk, for ``finetune run`` alone
========================  =====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

MODEL_SCHEMES = ("hf", "pvc", "s3", "oci", "file")
DATASET_SCHEMES = ("hf", "pvc", "configmap", "s3", "https", "http", "file")
OBJECT_STORE_SCHEMES = ("s3", "oci", "hf")


def scheme_pattern(schemes: tuple[str, ...]) -> str:
    """The regular expression of a URI with one of ``schemes`` and something behind it."""
    return rf"^({'|'.join(schemes)})://[^\s]+$"


@dataclass(frozen=True)
class Uri:
    """A parsed URI. ``name`` is the repository, claim, ConfigMap or bucket; ``path`` what follows it."""

    scheme: str
    name: str
    path: str

    def __str__(self) -> str:
        tail = f"/{self.path}" if self.path else ""
        return f"{self.scheme}://{self.name}{tail}"


def parse_uri(text: str) -> Uri:
    """Split ``text`` by the grammar above.

    Raises:
        ValueError: the scheme is unknown or a part that the scheme needs is missing; the message says which.
    """
    scheme, sep, rest = text.partition("://")
    if not sep or scheme not in {*MODEL_SCHEMES, *DATASET_SCHEMES, *OBJECT_STORE_SCHEMES}:
        known = ", ".join(f"{s}://" for s in dict.fromkeys((*MODEL_SCHEMES, *DATASET_SCHEMES)))
        raise ValueError(f"{text!r} is no URI we know; it must start with one of {known}")
    if scheme == "file":
        return Uri(scheme, "", rest)
    if scheme == "hf":
        parts = rest.split("/", 2)
        if len(parts) < 2 or not all(parts[:2]):
            raise ValueError(f"{text!r} must name a repository: hf://organisation/name")
        return Uri(scheme, "/".join(parts[:2]), parts[2] if len(parts) > 2 else "")
    name, _, path = rest.partition("/")
    if scheme == "configmap" and not path:
        raise ValueError(f"{text!r} must name a key: configmap://name/key")
    if not name:
        raise ValueError(f"{text!r} has nothing behind {scheme}://")
    return Uri(scheme, name, path)
