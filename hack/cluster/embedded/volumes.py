"""Dynamic volumes for one node: a directory a claim, or a tmpfs of the claim's size where its class limits it.

Local volumes rather than hostPath: the kubelet applies a pod's fsGroup to them, as it does on real storage.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from kubernetes import client, config, watch
from kubernetes.utils.quantity import parse_quantity
from urllib3.exceptions import HTTPError

from embedded.layout import NODE_NAME, Layout

PROVISIONER = "finetune.dev/local"
CLASSES: dict[str, dict[str, str]] = {"standard": {}, "finetune-limited": {"sizeLimit": "true"}}
_OURS = "finetune.dev/embedded-volume"


def apply_classes(kubeconfig: Path) -> None:
    """Create the storage classes; ``standard`` is the default."""
    with config.new_client_from_config(str(kubeconfig)) as api:
        storage = client.StorageV1Api(api)
        for name, parameters in CLASSES.items():
            default = str(name == "standard").lower()
            body = {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": default}},
                "provisioner": PROVISIONER,
                "parameters": parameters,
                "reclaimPolicy": "Delete",
            }
            storage.patch_storage_class(
                name, body, field_manager="embedded", force=True, _content_type="application/apply-patch+yaml"
            )


def volume_for(claim: dict[str, Any], directory: Path) -> dict[str, Any]:
    """The PersistentVolume that serves ``claim`` from ``directory``."""
    metadata, spec = claim["metadata"], claim["spec"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": f"pvc-{metadata['uid']}",
            "labels": {_OURS: "true"},
            # Tells kube-controller-manager that the removal is ours: without it, it marks a released volume Failed.
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "storageClassName": spec["storageClassName"],
            "persistentVolumeReclaimPolicy": "Delete",
            "local": {"path": str(directory)},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}
                            ]
                        }
                    ]
                }
            },
        },
    }


class Provisioner:
    """Makes and removes volumes as claims come and go."""

    def __init__(self, layout: Layout) -> None:
        self._root = layout.volumes
        self._api = config.new_client_from_config(str(layout.kubeconfig))
        self._core = client.CoreV1Api(self._api)

    def serve(self) -> None:
        """For ever: claims in one thread, volumes that were released in another."""
        volumes = threading.Thread(
            target=self._follow,
            args=(self._core.list_persistent_volume, self._remove),
            kwargs={"label_selector": f"{_OURS}=true"},
            daemon=True,
        )
        volumes.start()
        self._follow(self._core.list_persistent_volume_claim_for_all_namespaces, self._provision)

    def _follow(self, listing: Any, handle: Callable[[dict[str, Any]], None], **options: Any) -> None:
        """Hand every change to ``handle``. A watch that ends is made anew, so each object comes by again."""
        while True:
            try:
                for event in watch.Watch().stream(listing, timeout_seconds=30, **options):
                    if event["type"] != "DELETED":
                        handle(self._api.sanitize_for_serialization(event["object"]))
            except (client.ApiException, HTTPError, OSError, subprocess.CalledProcessError) as error:
                print(f"trying again: {error}", flush=True)
                time.sleep(1)  # the API server may be gone for long; there is nothing to await

    def _provision(self, claim: dict[str, Any]) -> None:
        limits = CLASSES.get(claim["spec"].get("storageClassName", ""))
        if limits is None or claim["status"].get("phase") != "Pending" or claim["metadata"].get("deletionTimestamp"):
            return
        volume = volume_for(claim, self._root / f"pvc-{claim['metadata']['uid']}")
        size = volume["spec"]["capacity"]["storage"]
        directory = Path(volume["spec"]["local"]["path"])
        directory.mkdir(parents=True, exist_ok=True)
        if limits.get("sizeLimit") == "true" and not directory.is_mount():
            option = f"size={int(parse_quantity(size))}"
            subprocess.run(["mount", "-t", "tmpfs", "-o", option, "finetune-volume", str(directory)], check=True)
        try:
            self._core.create_persistent_volume(volume)
        except client.ApiException as error:
            if error.status != HTTPStatus.CONFLICT:
                raise
            return  # made already; the claim is not bound yet
        print(f"made {directory.name} of {size}", flush=True)

    def _remove(self, volume: dict[str, Any]) -> None:
        if volume["status"].get("phase") not in ("Released", "Failed") or volume["metadata"].get("deletionTimestamp"):
            return
        directory = Path(volume["spec"]["local"]["path"])
        if directory.is_mount():
            subprocess.run(["umount", "--lazy", str(directory)], check=True)
        shutil.rmtree(directory, ignore_errors=True)
        self._core.delete_persistent_volume(volume["metadata"]["name"])
        print(f"removed {directory.name}", flush=True)


if __name__ == "__main__":
    Provisioner(Layout.load(Path(sys.argv[1]))).serve()
