"""One client of the API server. The only module that imports ``kubernetes``.

It speaks REST by path rather than through the generated classes: those validate what they read against one version
of Kubernetes and drop the fields of a newer one. Authentication, TLS and connections are the library's.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from kubernetes.aio import client, config

from finetune_operator.cluster.errors import GATEWAY_TIMEOUT, ApiError

Body = dict[str, Any]
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
REQUEST_SECONDS = 20.0
PAGE = 100
"""Objects that are listed at a time: to parse more holds up all else, the Lease too."""
CACHE_TRIES = 2
"""How often the API server's cache is given three seconds to come up with what it is asked for."""
logger = logging.getLogger(__name__)
_config: Any = config
"""The library's loaders carry no types."""

_PATHS = {
    ("v1", "ConfigMap"): ("api/v1", "configmaps"),
    ("v1", "PersistentVolumeClaim"): ("api/v1", "persistentvolumeclaims"),
    ("v1", "Service"): ("api/v1", "services"),
    ("v1", "Secret"): ("api/v1", "secrets"),
    ("batch/v1", "Job"): ("apis/batch/v1", "jobs"),
    ("coordination.k8s.io/v1", "Lease"): ("apis/coordination.k8s.io/v1", "leases"),
}


def path_of(group: str, plural: str, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
    """``/apis/batch/v1/namespaces/default/jobs/name/status`` and the like."""
    parts = [group, *(["namespaces", namespace] if namespace else []), plural, *([name] if name else [])]
    return "/" + "/".join(quote(part, safe="/") for part in parts) + (f"/{sub}" if sub else "")


def object_path(body: Body, *, collection: bool = False) -> str:
    """Path of ``body``, or of the collection it belongs to."""
    group, plural = _PATHS[body["apiVersion"], body["kind"]]
    meta = body["metadata"]
    return path_of(group, plural, meta["namespace"], None if collection else meta["name"])


class ApiClient:
    """Requests with time-outs, when the API server last answered, and what time it is by its clock."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.last_contact = time.monotonic()
        self._clock = ServerClock()

    def now(self) -> datetime:
        """The time by the API server's clock: times within objects are its own, and ours may be wrong."""
        return self._clock.now()

    @classmethod
    async def connect(cls) -> Self:
        """Connect with the pod's service account, or with the kubeconfig where there is none.

        Raises:
            ApiError: neither is there, or the kubeconfig is broken.
        """
        settings = client.Configuration()
        try:
            if (SERVICE_ACCOUNT / "token").exists():
                _config.load_incluster_config(client_configuration=settings)
            else:
                # Said by name, since the library looks at KUBECONFIG only once, when it is imported.
                await _config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
        except config.ConfigException as error:
            raise ApiError(0, str(error), what="no credentials for an API server") from error
        settings.connection_pool_maxsize = 64
        # Else aiohttp looks for a proxy and a netrc file in threads, before each request; kopf does not look either.
        settings.client_session_kwargs = {"trust_env": False}
        return cls(client.ApiClient(configuration=settings))

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
        timeout: float = REQUEST_SECONDS,  # noqa: ASYNC109 - the HTTP library's own, which also covers connecting
    ) -> Body:
        """One call.

        Raises:
            ApiError: an answer of 400 and above, or none within ``timeout`` seconds.
        """
        what = f"{method} {path}"
        headers = {"Accept": "application/json", "Content-Type": content_type}
        parameters = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        asked = datetime.now(UTC)
        try:
            response = await self._api.call_api(*parameters, _request_timeout=timeout)
            data = await response.read()
        except client.ApiException as error:
            self.last_contact = time.monotonic()
            raise ApiError(error.status, _message(error.body, str(error.reason)), what=what) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ApiError(0, f"no answer: {error!r}", what=what) from error
        self.last_contact = time.monotonic()
        self._clock.heard(response.headers.get("Date"), asked, datetime.now(UTC))
        if response.status >= 400:
            raise ApiError(response.status, _message(data, response.reason), what=what)
        parsed: Body = json.loads(data) if data else {}
        return parsed

    async def list_all(self, path: str, query: dict[str, Any] | None = None) -> list[Body]:
        """All items of a collection."""
        return [item async for page in self.pages(path, query) for item in page]

    async def pages(self, path: str, query: dict[str, Any] | None = None) -> AsyncIterator[list[Body]]:
        """The items of a collection, page by page."""
        following: dict[str, Any] = {"limit": PAGE}
        while True:
            page = await self.request("GET", path, query={**(query or {}), **following})
            yield page.get("items") or []
            token = page.get("metadata", {}).get("continue")
            if not token:
                return
            following["continue"] = token

    async def list_cached(self, path: str, query: dict[str, Any], name: str) -> list[Body]:
        """The few items of a namespace's collection that ``query`` selects, as they are at the time of this call or
        later, from the API server's cache.

        A plain list says the same, but where the cache is more than three seconds behind it has the API server read
        the whole collection from etcd, which puts the cache further behind. So it is asked first how far the
        collection is, by a list of the one object ``name`` (there or not, that is one key of etcd), and then for what
        is not older than that. See https://kubernetes.io/docs/reference/using-api/api-concepts/, on resource versions.
        """
        one = await self.request("GET", path, query={"fieldSelector": f"metadata.name={name}"})
        version = one["metadata"]["resourceVersion"]
        # All at once: a page of a limit is read from etcd by some releases.
        newer = {**query, "resourceVersion": version, "resourceVersionMatch": "NotOlderThan"}
        for _ in range(CACHE_TRIES):
            try:
                page = await self.request("GET", path, query=newer)
            except ApiError as error:
                if error.status != GATEWAY_TIMEOUT:
                    raise
                late = error
            else:
                found: list[Body] = page.get("items") or []
                return found
        logger.warning("the API server's cache is behind, and all is read from etcd: %s", late)
        return await self.list_all(path, query)


class Fenced(ApiClient):
    """An :class:`ApiClient` that reads as before and asks ``check`` before it writes; what that raises goes through."""

    def __init__(self, whole: ApiClient, check: Callable[[], None]) -> None:
        self._whole, self._check = whole, check

    def now(self) -> datetime:
        """As of the whole client."""
        return self._whole.now()

    async def request(self, method: str, path: str, **options: Any) -> Body:
        """As of the whole client, where it may."""
        if method != "GET":
            self._check()
        return await self._whole.request(method, path, **options)


class ServerClock:
    """The API server's clock, as far as the ``Date`` of its answers tells (whole seconds)."""

    slack = timedelta(seconds=2)
    """Differences that are rounding, or the time that an answer takes."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        """The time there."""
        return datetime.now(UTC) + self._ahead

    def heard(self, date: str | None, asked: datetime, answered: datetime) -> None:
        """An answer of the server's ``date`` came at ``answered`` to what was asked at ``asked``, by our clock."""
        try:
            told = parsedate_to_datetime(date or "")
        except ValueError:
            return
        # Written between the two, and cut to the second.
        earliest, latest = told - answered, told + timedelta(seconds=1) - asked
        if not earliest - self.slack <= self._ahead <= latest + self.slack:
            self._ahead = (earliest + latest) / 2
            if abs(self._ahead) <= self.slack:
                self._ahead = timedelta(0)
            logger.warning("this clock is %+.0f s off the API server's, which counts", -self._ahead.total_seconds())


def _message(data: bytes | str | None, reason: str | None) -> str:
    try:
        told = json.loads(data or "{}").get("message")
    except (ValueError, AttributeError):
        told = None
    return str(told or reason or "refused")
