"""A replica that stands by hands what training pods post on to the one that acts, by TLS, and takes nothing itself."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from finetune_operator.core.certificates import KeyPair, ServerIdentity, renewed
from finetune_operator.progress import MAX_BODY, Authenticator, ProgressEndpoint
from finetune_operator.relay import RELAYED, Relay
from progress_posts import BODY, PATH, ApiServer, Sink, jwt

HOST = "finetune-operator.system.svc"


@dataclass
class Replica:
    """One operator's progress endpoint, served by TLS."""

    identity: ServerIdentity
    context: ssl.SSLContext
    leads: bool
    leaders_address: str | None = None
    api: ApiServer = field(default_factory=ApiServer)
    sink: Sink = field(default_factory=Sink)
    server: TestServer = field(init=False)

    def __post_init__(self) -> None:
        relay = Relay(
            address=lambda: self.leaders_address,
            authority=lambda: self.identity.authority.certificate,
            host=HOST,
        )
        endpoint = ProgressEndpoint(Authenticator(self.api), self.sink, relay, leads=lambda: self.leads)
        self.server = TestServer(endpoint.application(), scheme="https")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    async def post(self, body: Any = BODY, **headers: str) -> tuple[int, str]:
        """As a training pod does."""
        trusting = ssl.create_default_context(cadata=self.identity.authority.certificate)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"https://{self.address}{PATH}", data=data, headers=headers, ssl=trusting, server_hostname=HOST
            ) as answer,
        ):
            return answer.status, (await answer.json())["message"]


@pytest.fixture(scope="module")
def identity() -> ServerIdentity:
    return renewed(None, [HOST], datetime.now(UTC))


def serving(pair: KeyPair, directory: Path) -> ssl.SSLContext:
    certificate, key = directory / "tls.crt", directory / "tls.key"
    certificate.write_text(pair.certificate)
    key.write_text(pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.fixture
async def pair(identity: ServerIdentity, tmp_path: Path) -> AsyncIterator[tuple[Replica, Replica]]:
    """One that stands by, and the one that acts."""
    context = serving(identity.server, tmp_path)
    standing, acting = (Replica(identity, context, leads) for leads in (False, True))
    for replica in (standing, acting):
        await replica.server.start_server(ssl=context)
    standing.leaders_address = acting.address
    yield standing, acting
    for replica in (standing, acting):
        await replica.server.close()


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {jwt()}"}


async def test_a_report_reaches_the_one_that_acts_alone(pair: tuple[Replica, Replica]) -> None:
    standing, acting = pair
    assert await standing.post(**bearer()) == (200, "taken")
    ((_, report),) = acting.sink.taken
    assert (report.attempt, report.progress.step) == (2, 1)
    assert standing.sink.taken == []
    assert standing.api.reviews == 0, "who it comes from is for the one that acts to ask"
    assert 'finetune_progress_posts_total{code="200"} 1.0' in standing.sink.metrics.exposition().decode()


async def test_a_refusal_is_handed_back(pair: tuple[Replica, Replica]) -> None:
    standing, acting = pair
    assert (await standing.post())[0] == 401
    status, told = await standing.post({"attempt": 2}, **bearer())
    assert status == 422
    assert told == (await acting.post({"attempt": 2}, **bearer()))[1]


async def test_a_body_that_is_too_large_is_not_handed_on(pair: tuple[Replica, Replica]) -> None:
    standing, acting = pair
    assert (await standing.post(b" " * (MAX_BODY + 1), **bearer()))[0] == 413
    assert acting.api.reviews == 0


async def test_while_nobody_acts_it_is_to_come_again(pair: tuple[Replica, Replica]) -> None:
    standing, acting = pair
    standing.leaders_address = None
    assert await standing.post(**bearer()) == (503, "no replica acts just now")
    standing.leaders_address = gone = acting.address
    await acting.server.close()
    status, told = await standing.post(**bearer())
    assert status == 503
    assert f"does not answer at {gone}" in told


async def test_a_post_is_handed_on_once(pair: tuple[Replica, Replica]) -> None:
    """Two that each take the other for the one that acts, as in the midst of a change, are no circle."""
    standing, acting = pair
    acting.leads, acting.leaders_address = False, standing.address
    assert await standing.post(**bearer()) == (503, "no replica acts just now")
    assert (await acting.post(**bearer(), **{RELAYED: "1"}))[0] == 503


async def test_a_token_is_handed_to_nobody_whom_the_authority_does_not_vouch_for(
    pair: tuple[Replica, Replica], tmp_path: Path
) -> None:
    standing, acting = pair
    stranger = renewed(None, [HOST], datetime.now(UTC))
    await acting.server.close()
    elsewhere = Replica(stranger, serving(stranger.server, tmp_path), leads=True)
    await elsewhere.server.start_server(ssl=elsewhere.context)
    standing.leaders_address = elsewhere.address
    status, told = await standing.post(**bearer())
    assert (status, elsewhere.sink.taken, elsewhere.api.reviews) == (503, [], 0)
    assert "certificate" in told.lower()
    await elsewhere.server.close()
