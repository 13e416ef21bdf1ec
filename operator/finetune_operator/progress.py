"""The endpoint that training pods report to: who may, what they may say, and what they are answered.

A pod proves who it is by a projected service account token, bound to the pod and to our audience. The API server
confirms it (TokenReview) and names the pod; the pod's labels say which job and attempt it belongs to. So a pod can
speak for its own job and no other, and holds no right on the API.

====  ==========================================================================================
200   taken
401   no token, or not one that the API server confirms for our audience
403   the token's pod is not a training pod of this job's present attempt
404   there is no such FineTuneJob
413   the body is too large
422   the body is neither a ProgressReport nor what transformers' KubeflowCallback posts
503   the API server does not answer, or no replica acts just now; come again
====  ==========================================================================================
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web
from finetune_api.reports import ProgressReport

from finetune_operator.cluster.errors import ApiError
from finetune_operator.core import names
from finetune_operator.core.bodies import BadBody, parse_progress
from finetune_operator.core.children import labels
from finetune_operator.core.lifecycle import FINAL
from finetune_operator.metrics import Metrics
from finetune_operator.reconciler import Key, Known
from finetune_operator.relay import Relay, RelayError

MAX_BODY = 64 * 1024
CACHE_SECONDS = 300.0
CACHE_SIZE = 4096
CONCURRENT_REVIEWS = 8
_EXTRA = "authentication.kubernetes.io/"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPod:
    """Whom a token belongs to."""

    namespace: str
    job: str
    job_uid: str
    attempt: int


class Reviewer(Protocol):
    """What of the cluster decides who a token's bearer is."""

    async def review_token(self, token: str) -> dict[str, Any]:
        """Status of a TokenReview."""

    async def pod(self, namespace: str, name: str) -> dict[str, Any] | None:
        """A pod."""


class Sink(Protocol):
    """Who takes the progress."""

    metrics: Metrics

    async def job_known(self, key: Key) -> Known | None:
        """What is known of a job."""

    def submit(self, key: Key, report: ProgressReport) -> None:
        """Take a report of the job's present attempt."""


class Denied(Exception):  # noqa: N818 - an answer
    """The request is refused with an HTTP status and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Authenticator:
    """Tokens to training pods, by TokenReview and the pod's labels, remembered for a while by the token's hash."""

    def __init__(self, reviewer: Reviewer) -> None:
        self._reviewer = reviewer
        self._cache: OrderedDict[bytes, tuple[float, TrainingPod]] = OrderedDict()
        self._slots = asyncio.Semaphore(CONCURRENT_REVIEWS)

    async def identify(self, token: str) -> TrainingPod:
        """The pod that ``token`` is bound to.

        Raises:
            Denied: 401 where the token is not good, 403 where its bearer is not a training pod.
            ApiError: the API server does not answer.
        """
        key = hashlib.sha256(token.encode()).digest()
        found = self._cache.get(key)
        if found is not None and found[0] > time.time():
            self._cache.move_to_end(key)
            return found[1]
        async with self._slots:
            pod = await self._ask(token)
        self._cache[key] = (min(_expiry(token), time.time() + CACHE_SECONDS), pod)
        while len(self._cache) > CACHE_SIZE:
            self._cache.popitem(last=False)
        return pod

    async def _ask(self, token: str) -> TrainingPod:
        status = await self._reviewer.review_token(token)
        if not status.get("authenticated") or names.MANAGER not in (status.get("audiences") or ()):
            raise Denied(401, f"the token is not valid for the audience {names.MANAGER}")
        user = status.get("user") or {}
        extra = user.get("extra") or {}
        parts = str(user.get("username", "")).split(":")
        name, uid = (next(iter(extra.get(f"{_EXTRA}{what}") or ()), None) for what in ("pod-name", "pod-uid"))
        if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"] or not name:
            raise Denied(403, "the token is not bound to a pod")
        pod = await self._reviewer.pod(parts[2], name)
        if pod is None or pod["metadata"].get("uid") != uid:
            raise Denied(403, f"pod {name} is gone")
        marks, owner = labels(pod), names.job_of(pod)
        attempt = marks.get(names.ATTEMPT_LABEL, "")
        if owner is None or marks.get(names.COMPONENT_LABEL) != names.TRAIN or not attempt.isdigit():
            raise Denied(403, f"pod {name} is not a training pod")
        return TrainingPod(parts[2], owner[1], marks.get(names.UID_LABEL, ""), int(attempt))


class ProgressEndpoint:
    """HTTP in front of a :class:`Sink`, or of the replica that acts."""

    def __init__(self, authenticator: Authenticator, sink: Sink, relay: Relay, *, leads: Callable[[], bool]) -> None:
        self._authenticator, self._sink = authenticator, sink
        self._relay, self._leads = relay, leads

    def application(self) -> web.Application:
        """The aiohttp application; TLS is the server's affair."""
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_post("/v1/namespaces/{namespace}/finetunejobs/{name}/progress", self.post)
        return app

    async def post(self, request: web.Request) -> web.Response:
        """Take one report, or hand it on to the replica that acts."""
        key = (request.match_info["namespace"], request.match_info["name"])
        try:
            if not self._leads():
                return await self._hand_on(request)
            await self._take(request, key)
        except Denied as denied:
            return self._answer(denied.status, str(denied))
        except ApiError as error:
            logger.warning("progress of %s/%s: %s", *key, error)
            return self._answer(503, "the API server does not answer")
        return self._answer(200, "taken")

    async def _take(self, request: web.Request, key: Key) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Denied(401, "an Authorization header with a Bearer token is needed")
        pod = await self._authenticator.identify(token.strip())
        if (pod.namespace, pod.job) != key:
            raise Denied(403, f"the pod belongs to {pod.namespace}/{pod.job}")
        known = await self._sink.job_known(key)
        if known is None:
            raise Denied(404, f"there is no FineTuneJob {key[1]} in {key[0]}")
        if known.uid != pod.job_uid or pod.attempt < known.attempt or known.phase in FINAL:
            raise Denied(403, "the pod's attempt is over")
        try:
            self._sink.submit(key, parse_progress(await _body(request), attempt=pod.attempt))
        except BadBody as error:
            raise Denied(422, str(error)) from error

    async def _hand_on(self, request: web.Request) -> web.Response:
        try:
            status, text = await self._relay.hand_on(request.path, request.headers, await _body(request))
        except RelayError as error:
            return self._answer(503, str(error))
        self._sink.metrics.progress_posts.labels(code=str(status)).inc()
        return web.Response(status=status, text=text, content_type="application/json")

    def _answer(self, status: int, message: str) -> web.Response:
        self._sink.metrics.progress_posts.labels(code=str(status)).inc()
        return web.json_response({"message": message}, status=status)


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise Denied(413, f"the body exceeds {MAX_BODY} bytes") from error


def _expiry(token: str) -> float:
    """When a JWT says that it ends (Unix time). The API server has confirmed it, so its word counts."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (IndexError, ValueError, KeyError, TypeError):
        return 0.0
