"""FineTuneJobs and their children on the API server: every call that the operator makes, with its RBAC verb."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

from finetune_api.base import API_VERSION, GROUP, VERSION

from finetune_operator.cluster.client import APPLY_PATCH, MERGE_PATCH, ApiClient, object_path, path_of
from finetune_operator.cluster.errors import CONFLICT, FORBIDDEN, NOT_FOUND, ApiError
from finetune_operator.core import names
from finetune_operator.core.decision import Note
from finetune_operator.core.queueing import JOB_UID_LABEL
from finetune_operator.core.times import stamp

Body = dict[str, Any]
OURS = f"apis/{GROUP}/{VERSION}"
KUEUE_VERSIONS = ("v1beta2", "v1beta1")
"""Versions of Kueue's API, newest first: which are served depends on its release."""
CREATE_ONLY = frozenset({"Job", "PersistentVolumeClaim"})
"""Kinds that are made once and never changed: most of a Job is immutable, and a claim may be another's."""


class Cluster:
    """What the reconciler and the progress endpoint ask of the API server."""

    def __init__(self, api: ApiClient, namespaces: tuple[str, ...] = ()) -> None:
        self.api = api
        self.namespaces = namespaces
        """Namespaces to serve; none means all."""

    async def finetunejob(self, namespace: str, name: str) -> Body | None:
        """One FineTuneJob; None where it is gone. (get)"""
        return await self._get(path_of(OURS, "finetunejobs", namespace, name))

    async def finetunejobs(self) -> AsyncIterator[Body]:
        """All FineTuneJobs that are served, never more than a page of them in memory. (list)"""
        for scope in self.namespaces or (None,):
            async for page in self.api.pages(path_of(OURS, "finetunejobs", scope)):
                for item in page:
                    yield item

    async def all_children(self) -> AsyncIterator[Body]:
        """All Jobs, and then all pods, that carry a FineTuneJob's label, page by page. (list)"""
        for kind, group, plural in (("Job", "apis/batch/v1", "jobs"), ("Pod", "api/v1", "pods")):
            for scope in self.namespaces or (None,):
                query = {"labelSelector": names.JOB_LABEL}
                async for page in self.api.pages(path_of(group, plural, scope), query):
                    for item in page:
                        yield {"kind": kind, **item}

    async def profile(self, name: str) -> Body | None:
        """A TrainingProfile. (get)"""
        return await self._get(path_of(OURS, "trainingprofiles", None, name))

    async def chat_template(self, namespace: str, name: str) -> Body | None:
        """A ChatTemplate. (get)"""
        return await self._get(path_of(OURS, "chattemplates", namespace, name))

    async def job(self, namespace: str, name: str) -> Body | None:
        """One Job. (get)"""
        return await self._get(path_of("apis/batch/v1", "jobs", namespace, name))

    async def pods(self, namespace: str, name: str) -> list[Body]:
        """Pods that carry the FineTuneJob's label, from the API server's cache: their names follow from nothing.
        (list)"""
        query = {"labelSelector": f"{names.JOB_LABEL}={names.label_value(name)}"}
        return await self.api.list_cached(path_of("api/v1", "pods", namespace), query, names.prepare_job(name))

    async def pod(self, namespace: str, name: str) -> Body | None:
        """One pod. (get)"""
        return await self._get(path_of("api/v1", "pods", namespace, name))

    async def warnings(self, namespace: str) -> AsyncIterator[Body]:
        """The namespace's events that warn, never more than a page of them in memory. (list)"""
        async for page in self.api.pages(path_of("api/v1", "events", namespace), {"fieldSelector": "type=Warning"}):
            for event in page:
                yield event

    async def workloads(self, namespace: str, job_uids: list[str]) -> list[Body] | None:
        """Kueue's Workloads of these Jobs; none where there is no Kueue, None where we may not read them. (list)"""
        selector = f"{JOB_UID_LABEL} in ({','.join(job_uids)})"
        for version in KUEUE_VERSIONS:
            try:
                path = path_of(f"apis/kueue.x-k8s.io/{version}", "workloads", namespace)
                return await self.api.list_all(path, {"labelSelector": selector})
            except ApiError as error:
                if error.status == FORBIDDEN:
                    return None
                if error.status != NOT_FOUND:
                    raise
        return []

    async def apply(self, body: Body) -> None:
        """Make ``body`` be there: created once (Jobs, claims), or applied server-side by our field manager.

        Raises:
            ApiError: refused; also where a Job of that name belongs to somebody else.
        """
        if body["kind"] not in CREATE_ONLY:
            query = {"fieldManager": names.MANAGER, "force": "true"}
            await self.api.request("PATCH", object_path(body), query=query, body=body, content_type=APPLY_PATCH)
            return
        # Shared by the jobs of a namespace, so that it is nearly always there: to ask costs less than to be refused.
        if body["kind"] == "PersistentVolumeClaim" and await self._get(object_path(body)) is not None:
            return
        try:
            path = object_path(body, collection=True)
            await self.api.request("POST", path, query={"fieldManager": names.MANAGER}, body=body)
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            await self._check_owner(body)

    async def _check_owner(self, body: Body) -> None:
        """A Job that is there already is as good as created, if it is ours and stays."""
        owners = body["metadata"].get("ownerReferences")
        if not owners:
            return
        name = body["metadata"]["name"]
        what = f"create {body['kind']} {name}"
        existing = await self._get(object_path(body))
        if existing is None or "deletionTimestamp" in existing["metadata"]:
            raise ApiError(CONFLICT, f"an earlier {body['kind']} {name} is just being deleted", what=what)
        uids = {owner["uid"] for owner in existing["metadata"].get("ownerReferences") or ()}
        if owners[0]["uid"] not in uids:
            told = f"{body['kind']} {name} exists and belongs to somebody else; delete or rename it"
            raise ApiError(CONFLICT, told, what=what)

    async def patch_status(self, body: Body, patch: Body) -> Body:
        """Merge ``patch`` into the status of the FineTuneJob ``body`` and give what it is now. (patch
        finetunejobs/status)

        Raises:
            ApiError: 409 where the job has changed since it was read: decide again.
        """
        meta = body["metadata"]
        return await self.api.request(
            "PATCH",
            path_of(OURS, "finetunejobs", meta["namespace"], meta["name"], "status"),
            query={"fieldManager": names.MANAGER},
            body={"metadata": {"resourceVersion": meta["resourceVersion"]}, "status": patch},
            content_type=MERGE_PATCH,
        )

    async def delete_job(self, namespace: str, name: str) -> None:
        """Delete a Job and its pods; one that is gone is deleted. (delete)"""
        try:
            await self.api.request(
                "DELETE",
                path_of("apis/batch/v1", "jobs", namespace, name),
                query={"propagationPolicy": "Background"},
            )
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    async def delete_finetunejob(self, body: Body) -> None:
        """Delete the FineTuneJob ``body`` as it was read, and by the garbage collector what it owns; one that is gone
        is deleted. (delete)

        Raises:
            ApiError: 409 where the job has changed since, or another one has its name.
        """
        meta = body["metadata"]
        path = path_of(OURS, "finetunejobs", meta["namespace"], meta["name"])
        same = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": same,
        }
        try:
            await self.api.request("DELETE", path, body=options)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise

    async def tell(self, body: Body, note: Note) -> None:
        """Post an event of the FineTuneJob ``body``. (create events)"""
        meta = body["metadata"]
        now = stamp(self.api.now())
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{meta['name'][:220].rstrip('-.')}.{uuid.uuid4().hex[:16]}",
                "namespace": meta["namespace"],
            },
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": "FineTuneJob",
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"],
            },
            "reason": note.reason,
            "message": note.message[:1024],
            "type": note.type,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": names.MANAGER},
            "reportingComponent": names.MANAGER,
        }
        await self.api.request("POST", path_of("api/v1", "events", meta["namespace"]), body=event)

    async def review_token(self, token: str) -> Body:
        """The status of a TokenReview for our audience. (create tokenreviews)"""
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.MANAGER]},
        }
        answer = await self.api.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", body=review)
        status: Body = answer.get("status") or {}
        return status

    async def secret(self, namespace: str, name: str) -> Body | None:
        """One Secret of the operator's own namespace. (get)"""
        return await self._get(path_of("api/v1", "secrets", namespace, name))

    async def lease(self, namespace: str, name: str) -> Body | None:
        """A Lease of the operator's own namespace. (get)"""
        return await self._get(path_of("apis/coordination.k8s.io/v1", "leases", namespace, name))

    async def create(self, body: Body) -> Body:
        """Create ``body``. (create)"""
        return await self.api.request("POST", object_path(body, collection=True), body=body)

    async def replace(self, body: Body) -> Body:
        """Replace ``body``, if its resourceVersion is still the same. (update)"""
        return await self.api.request("PUT", object_path(body), body=body)

    async def ping(self) -> None:
        """Ask for next to nothing: whether the API server answers and knows us. (list finetunejobs)"""
        scope = self.namespaces[0] if self.namespaces else None
        await self.api.request("GET", path_of(OURS, "finetunejobs", scope), query={"limit": 1})

    async def _get(self, path: str) -> Body | None:
        try:
            return await self.api.request("GET", path)
        except ApiError as error:
            if error.status == NOT_FOUND:
                return None
            raise
