"""The progress endpoint over HTTP: who may say what about which job."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from finetune_operator.core import names
from finetune_operator.progress import MAX_BODY, Authenticator, ProgressEndpoint
from finetune_operator.reconciler import Known
from finetune_operator.relay import Relay
from operator_bodies import UID
from progress_posts import BODY, PATH, ApiServer, Sink, jwt

Post = Callable[..., Awaitable[int]]
NOWHERE = Relay(address=lambda: None, authority=lambda: None, host="localhost")


@pytest.fixture
def server() -> ApiServer:
    return ApiServer()


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
async def post(server: ApiServer, sink: Sink) -> AsyncIterator[Post]:
    application = ProgressEndpoint(Authenticator(server), sink, NOWHERE, leads=lambda: True).application()
    async with TestClient(TestServer(application)) as client:
        token = jwt()

        async def send(body: Any = BODY, *, path: str = PATH, authorization: str | None = f"Bearer {token}") -> int:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {} if authorization is None else {"Authorization": authorization}
            async with client.post(path, data=data, headers=headers) as answer:
                if answer.content_type == "application/json":
                    assert (await answer.json())["message"]
                return answer.status

        yield send


async def test_a_report_of_the_present_attempt_is_taken(post: Post, sink: Sink) -> None:
    assert await post() == 200
    ((key, report),) = sink.taken
    assert (key, report.attempt, report.progress.step) == (("team", "tune"), 2, 1)
    assert 'finetune_progress_posts_total{code="200"} 1.0' in sink.metrics.exposition().decode()


async def test_the_body_of_transformers_own_callback_is_taken(post: Post, sink: Sink) -> None:
    status = {"progressPercentage": 10, "metrics": [{"name": "total_steps", "value": "50"}]}
    assert await post({"trainerStatus": status}) == 200
    assert (sink.taken[0][1].attempt, sink.taken[0][1].progress.step) == (2, 5)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer  ", "Basic dXNlcg=="])
async def test_no_token_is_refused_before_anything_is_asked(
    post: Post, server: ApiServer, authorization: str | None
) -> None:
    assert await post(authorization=authorization) == 401
    assert server.reviews == 0


@pytest.mark.parametrize(
    "review",
    [{}, {"authenticated": False, "error": "expired"}, {"authenticated": True, "audiences": ["https://kubernetes"]}],
    ids=["empty", "not authenticated", "another audience"],
)
async def test_a_token_that_is_not_good_for_us_is_refused(
    post: Post, server: ApiServer, sink: Sink, review: dict[str, Any]
) -> None:
    server.review = review
    assert await post() == 401
    assert sink.taken == []


async def test_a_token_that_is_bound_to_no_pod_is_refused(post: Post, server: ApiServer) -> None:
    server.review["user"]["extra"] = {}
    assert await post() == 403


async def test_a_users_token_is_refused(post: Post, server: ApiServer) -> None:
    server.review["user"]["username"] = "alice"
    assert await post() == 403


async def test_the_token_of_a_pod_that_is_gone_or_was_replaced_is_refused(post: Post, server: ApiServer) -> None:
    assert server.pod_body is not None
    server.pod_body["metadata"]["uid"] = "of-its-successor"
    assert await post() == 403
    server.pod_body = None
    assert await post() == 403


@pytest.mark.parametrize("label", [names.JOB_LABEL, names.COMPONENT_LABEL, names.ATTEMPT_LABEL])
async def test_a_pod_that_is_no_training_pod_is_refused(post: Post, server: ApiServer, label: str) -> None:
    assert server.pod_body is not None
    del server.pod_body["metadata"]["labels"][label]
    server.pod_body["metadata"]["annotations"].pop(names.NAME_ANNOTATION)
    assert await post() == 403


async def test_a_prepare_pod_is_refused(post: Post, server: ApiServer) -> None:
    assert server.pod_body is not None
    server.pod_body["metadata"]["labels"][names.COMPONENT_LABEL] = names.PREPARE
    assert await post() == 403


async def test_a_pod_speaks_for_its_own_job_alone(post: Post, sink: Sink) -> None:
    sink.jobs["team", "other"] = Known("u", "Running", 2)
    assert await post(path="/v1/namespaces/team/finetunejobs/other/progress") == 403
    assert await post(path="/v1/namespaces/elsewhere/finetunejobs/tune/progress") == 403
    assert sink.taken == []


@pytest.mark.parametrize(
    "known",
    [Known(UID, "Running", 3), Known("another", "Running", 2), Known(UID, "Succeeded", 2), Known(UID, "Failed", 2)],
    ids=["a newer attempt", "a new job of that name", "succeeded", "failed"],
)
async def test_an_attempt_that_is_over_is_refused(post: Post, sink: Sink, known: Known) -> None:
    sink.jobs["team", "tune"] = known
    assert await post() == 403
    assert sink.taken == []


async def test_a_pod_may_be_ahead_of_what_is_known(post: Post, sink: Sink) -> None:
    sink.jobs["team", "tune"] = Known(UID, "Pending", 1)
    assert await post() == 200


async def test_a_job_that_is_gone_is_not_found(post: Post, sink: Sink) -> None:
    sink.jobs.clear()
    assert await post() == 404


async def test_a_body_that_is_too_large_is_refused(post: Post, sink: Sink) -> None:
    assert await post(b" " * (MAX_BODY + 1)) == 413
    assert await post(json.dumps(BODY).encode().ljust(MAX_BODY)) == 200
    assert len(sink.taken) == 1


@pytest.mark.parametrize("body", [b"{", {"attempt": 2}, {"trainerStatus": {}}, BODY | {"attempt": 1}])
async def test_a_body_of_no_known_form_is_refused(post: Post, sink: Sink, body: Any) -> None:
    assert await post(body) == 422
    assert sink.taken == []


async def test_an_api_server_that_is_down_means_come_again(post: Post, server: ApiServer) -> None:
    server.down = True
    assert await post() == 503
    server.down = False
    assert await post() == 200


async def test_a_good_token_is_reviewed_once_and_a_bad_one_every_time(post: Post, server: ApiServer) -> None:
    good = server.review
    server.review = {}
    assert [await post(), await post()] == [401, 401]
    assert server.reviews == 2
    server.review = good
    assert [await post(), await post()] == [200, 200]
    assert server.reviews == 3


async def test_a_token_is_not_remembered_beyond_its_end(server: ApiServer) -> None:
    authenticator = Authenticator(server)
    for token in (jwt(time.time() - 1), "no.jwt", "opaque"):
        before = server.reviews
        await authenticator.identify(token)
        await authenticator.identify(token)
        assert server.reviews == before + 2


async def test_other_paths_and_methods_are_not_served(post: Post) -> None:
    assert await post(path="/v1/namespaces/team/finetunejobs/tune") == 404
