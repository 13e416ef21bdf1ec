"""What Kueue does to a Job of a LocalQueue, done by a test: it says why the Job waits, admits it, and takes it back.

Kueue reads and writes the same: the Job's label and its ``suspend``, and a Workload with conditions. tests/faults has
the same life under Kueue itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kubernetes import client, watch

Body = dict[str, Any]
GROUP, VERSION, PLURAL = "kueue.x-k8s.io", "v1beta2", "workloads"
MERGE = {"_content_type": "application/merge-patch+json"}
_CRD: Body = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": f"{PLURAL}.{GROUP}",
        # The group is one of Kubernetes' own, which asks for a word on where the API was approved.
        "annotations": {"api-approved.kubernetes.io": "unapproved, a stand-in for tests"},
    },
    "spec": {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {"plural": PLURAL, "singular": "workload", "kind": "Workload", "listKind": "WorkloadList"},
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        ],
    },
}


class QueueStandIn:
    """A LocalQueue's keeper in one namespace."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._batch, self._custom = client.BatchV1Api(api), client.CustomObjectsApi(api)
        self._namespace = namespace

    def job(self, name: str, seconds: int = 240) -> Any:
        """The Job ``name``, once it is there."""
        listing, selector = self._batch.list_namespaced_job, f"metadata.name={name}"
        stream = watch.Watch().stream(listing, self._namespace, field_selector=selector, timeout_seconds=seconds)
        for event in stream:
            return event["object"]
        raise AssertionError(f"no Job {name} in {self._namespace} after {seconds} s")

    def says(self, name: str, kind: str, status: str, message: str) -> None:
        """Give the Job's Workload one condition."""
        condition = {"type": kind, "status": status, "reason": "Pending", "message": message}
        condition["lastTransitionTime"] = "2026-01-01T00:00:00Z"
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Workload",
            "metadata": {"name": f"job-{name}", "labels": {"kueue.x-k8s.io/job-uid": self.job(name).metadata.uid}},
            "status": {"conditions": [condition]},
        }
        apply = {"field_manager": "tests", "force": True, "_content_type": "application/apply-patch+yaml"}
        self._custom.patch_namespaced_custom_object(
            GROUP, VERSION, self._namespace, PLURAL, f"job-{name}", body, **apply
        )

    def admits(self, name: str) -> None:
        """Let the Job run."""
        self._batch.patch_namespaced_job(name, self._namespace, {"spec": {"suspend": False}}, **MERGE)

    def takes_back(self, name: str, why: str) -> None:
        """Suspend the Job for another one's sake."""
        self._batch.patch_namespaced_job(name, self._namespace, {"spec": {"suspend": True}}, **MERGE)
        self.says(name, "Evicted", "True", why)


@contextmanager
def workloads_served(api: client.ApiClient) -> Iterator[None]:
    """Have the API server know Workloads, as where Kueue is installed."""
    extensions = client.ApiextensionsV1Api(api)
    extensions.create_custom_resource_definition(_CRD)
    try:
        name = f"metadata.name={_CRD['metadata']['name']}"
        stream = watch.Watch().stream(
            extensions.list_custom_resource_definition, field_selector=name, timeout_seconds=60
        )
        if not any(_is_established(event["object"]) for event in stream):
            raise AssertionError(f"{_CRD['metadata']['name']} is not served after 60 s")
        yield
    finally:
        extensions.delete_custom_resource_definition(_CRD["metadata"]["name"])


def _is_established(crd: Any) -> bool:
    conditions = (crd.status and crd.status.conditions) or ()
    return any(one.type == "Established" and one.status == "True" for one in conditions)
