"""Dynamic volumes for one node: a directory a claim, or a tmpfs of the claim's size where its class limits it.

Local volumes rather than hostPath: the kubelet applies a pod's fsGroup to them, as it does on real storage.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from kubernetes import client, config, watch

from embedded.layout import NODE_NAME, Layout

PROVISIONER = "finetune.dev/local"
CLASSES: dict[str, dict[str, str]] = {"standard": {}, "finetune-limited": {"limited": "true"}}
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
        "metadata": {"name": f"pvc-{metadata['uid']}", "labels": {_OURS: "true"}},
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
        """For ever: claims first, then volumes that were released; each watch ends by itself and is made anew."""
        while True:
            for claim in self._changes(self._core.list_persistent_volume_claim_for_all_namespaces):
                if claim["spec"].get("storageClassName") in CLASSES and claim["status"].get("phase") == "Pending":
                    self._provision(claim)
            for volume in self._changes(self._core.list_persistent_volume, label_selector=f"{_OURS}=true"):
                if volume["status"].get("phase") == "Released":
                    self._remove(volume)

    def _changes(self, listing: Any, **options: Any) -> Any:
        for event in watch.Watch().stream(listing, timeout_seconds=1, **options):
            if event["type"] != "DELETED":
                yield self._api.sanitize_for_serialization(event["object"])

    def _provision(self, claim: dict[str, Any]) -> None:
        directory = self._root / f"pvc-{claim['metadata']['uid']}"
        if directory.exists():
            return
        size = claim["spec"]["resources"]["requests"]["storage"]
        directory.mkdir(parents=True)
        if CLASSES[claim["spec"]["storageClassName"]].get("limited"):
            plain = size.replace("Ki", "k").replace("Mi", "m").replace("Gi", "g")
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={plain}", "finetune-volume", str(directory)], check=True
            )
        directory.chmod(0o755)
        self._core.create_persistent_volume(volume_for(claim, directory))
        print(f"made {directory.name} of {size}", flush=True)

    def _remove(self, volume: dict[str, Any]) -> None:
        directory = Path(volume["spec"]["local"]["path"])
        subprocess.run(["umount", str(directory)], capture_output=True, check=False)
        shutil.rmtree(directory, ignore_errors=True)
        self._core.delete_persistent_volume(volume["metadata"]["name"])
        print(f"removed {directory.name}", flush=True)


if __name__ == "__main__":
    Provisioner(Layout(Path(sys.argv[1]))).serve()
