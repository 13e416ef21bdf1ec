"""A real kube-apiserver and etcd, started for the tier and stopped after it, with our CRDs applied."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config, watch

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "hack/cluster/cluster"
GROUP, VERSION = "finetune.dev", "v1alpha1"


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Path of an administrator's kubeconfig. FINETUNE_API_KUBECONFIG names a server that already runs."""
    if running := os.environ.get("FINETUNE_API_KUBECONFIG"):
        yield Path(running)
        return
    directory = tmp_path_factory.mktemp("control-plane")
    try:
        _cluster("up", "--control-plane-only", "--dir", str(directory))
        yield directory / "kubeconfig"
    finally:
        _cluster("down", "--dir", str(directory))


def _cluster(*arguments: str) -> None:
    result = subprocess.run([str(CLUSTER), *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"cluster {' '.join(arguments)}:\n{result.stdout}\n{result.stderr}"


@pytest.fixture(scope="session")
def api(kubeconfig: Path) -> Iterator[client.ApiClient]:
    """A client of the server, CRDs established."""
    with config.new_client_from_config(str(kubeconfig)) as api_client:
        _apply_crds(api_client)
        yield api_client


def _apply_crds(api_client: client.ApiClient) -> None:
    extensions = client.ApiextensionsV1Api(api_client)
    names = set()
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        names.add(crd["metadata"]["name"])
        extensions.patch_custom_resource_definition(
            crd["metadata"]["name"],
            crd,
            field_manager="test",
            force=True,
            _content_type="application/apply-patch+yaml",
        )
    watcher = watch.Watch()
    for event in watcher.stream(extensions.list_custom_resource_definition, timeout_seconds=60):
        crd = api_client.sanitize_for_serialization(event["object"])
        conditions = crd.get("status", {}).get("conditions", [])
        if any(c["type"] == "Established" and c["status"] == "True" for c in conditions):
            names.discard(crd["metadata"]["name"])
        if not names:
            watcher.stop()
    assert not names, f"not established: {names}"


@pytest.fixture(scope="session")
def custom(api: client.ApiClient) -> client.CustomObjectsApi:
    """Client of our kinds."""
    return client.CustomObjectsApi(api)


class Server:
    """Creates and reads objects of our kinds; refusals come back as text."""

    def __init__(self, custom: client.CustomObjectsApi) -> None:
        self._custom = custom

    def create(self, body: dict[str, Any], plural: str = "finetunejobs", *, dry_run: bool = False) -> dict[str, Any]:
        """Create ``body`` as kubectl does: unknown fields are errors."""
        options: dict[str, Any] = {"field_validation": "Strict"} | ({"dry_run": "All"} if dry_run else {})
        return self._custom.create_namespaced_custom_object(GROUP, VERSION, "default", plural, body, **options)

    def refusal(self, body: dict[str, Any], plural: str = "finetunejobs") -> str | None:
        """What the server says against ``body``; None where it would take it."""
        try:
            self.create(body, plural, dry_run=True)
        except client.ApiException as error:
            if error.status not in (400, 422):
                raise
            return str(yaml.safe_load(error.body)["message"])
        return None

    def patch(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """Merge-patch."""
        return self._custom.patch_namespaced_custom_object(GROUP, VERSION, "default", "finetunejobs", name, body)

    def patch_status(self, name: str, status: dict[str, Any]) -> dict[str, Any]:
        """Merge-patch of the status subresource."""
        return self._custom.patch_namespaced_custom_object_status(
            GROUP, VERSION, "default", "finetunejobs", name, {"status": status}
        )

    def delete(self, name: str) -> None:
        """Delete."""
        self._custom.delete_namespaced_custom_object(GROUP, VERSION, "default", "finetunejobs", name)


@pytest.fixture(scope="session")
def server(custom: client.CustomObjectsApi) -> Server:
    """The server, as the tests talk to it."""
    return Server(custom)
