"""The operator's certificates: what they vouch for and when they are made anew."""

from __future__ import annotations

import base64
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from finetune_operator.cluster.errors import ApiError
from finetune_operator.core.certificates import KeyPair, ServerIdentity, renewed
from finetune_operator.tls import TlsKeeper
from operator_bodies import NOW

HOSTS = ("finetune-operator.system.svc", "localhost", "127.0.0.1")
FIRST = renewed(None, HOSTS, NOW)


def certificate(pair: KeyPair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.encode())


def test_the_server_is_vouched_for_by_the_authority_under_every_name() -> None:
    server, authority = certificate(FIRST.server), certificate(FIRST.authority)
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == list(HOSTS)
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_client_that_knows_the_authority_alone_trusts_the_server() -> None:
    identity = renewed(None, HOSTS, datetime.now(UTC))
    keeper = TlsKeeper(None, namespace="n", secret="s", hosts=HOSTS)  # type: ignore[arg-type]
    keeper._load(identity.server)
    client = ssl.create_default_context(cadata=identity.authority.certificate)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
    left = client.wrap_bio(incoming, outgoing, server_hostname=HOSTS[0])
    right = keeper.context.wrap_bio(outgoing, incoming, server_side=True)
    done: set[Any] = set()
    for _ in range(10):
        for side in (left, right):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    assert done == {left, right}


@pytest.mark.parametrize(
    ("days", "new_server", "new_authority"),
    [(0, False, False), (59, False, False), (61, True, False), (3285, True, True), (4000, True, True)],
)
def test_each_is_made_anew_in_time(days: int, new_server: bool, new_authority: bool) -> None:
    later = renewed(FIRST, HOSTS, NOW + timedelta(days=days))
    assert (later.server != FIRST.server) is new_server
    assert (later.authority != FIRST.authority) is new_authority
    assert renewed(later, HOSTS, NOW + timedelta(days=days)) is later
    certificate(later.server).verify_directly_issued_by(certificate(later.authority))


def test_a_new_name_needs_a_new_server_certificate_and_keeps_the_authority() -> None:
    wider = renewed(FIRST, (*HOSTS, "elsewhere"), NOW)
    assert (wider.authority, wider.server == FIRST.server) == (FIRST.authority, False)
    assert renewed(wider, HOSTS, NOW) is wider, "one name more than asked for is no reason"


OTHER = renewed(None, HOSTS, NOW)


@pytest.mark.parametrize(
    "broken",
    [
        replace(FIRST, server=KeyPair("no certificate", FIRST.server.key)),
        replace(FIRST, server=KeyPair(FIRST.server.certificate, OTHER.server.key)),
        replace(FIRST, server=OTHER.server),
        replace(FIRST, authority=KeyPair(FIRST.authority.certificate, "no key")),
        replace(FIRST, authority=OTHER.authority),
    ],
    ids=["garbage", "another's key", "another authority's", "authority without key", "another authority"],
)
def test_what_does_not_hold_together_is_made_anew(broken: ServerIdentity) -> None:
    found = renewed(broken, HOSTS, NOW)
    certificate(found.server).verify_directly_issued_by(certificate(found.authority))
    key = serialization.load_pem_private_key(found.server.key.encode(), None).public_key()
    assert key == certificate(found.server).public_key()


class Secrets:
    """A Secret on the server; ``before_write`` may get in first."""

    def __init__(self) -> None:
        self.body: dict[str, Any] | None = None
        self.writes = 0
        self.before_write: Any = None

    async def secret(self, _namespace: str, _name: str) -> dict[str, Any] | None:
        return self.body

    async def create(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.before_write is not None:
            self.body, self.before_write = self.before_write, None
        if self.body is not None:
            raise ApiError(409, "exists", what="create")
        return await self.replace(body)

    async def replace(self, body: dict[str, Any]) -> dict[str, Any]:
        self.body = body
        self.writes += 1
        return body


def keeper_of(secrets: Secrets) -> TlsKeeper:
    return TlsKeeper(secrets, namespace="system", secret="tls", hosts=HOSTS)  # type: ignore[arg-type]


async def test_a_restart_serves_with_the_same_certificate() -> None:
    secrets = Secrets()
    first, second = keeper_of(secrets), keeper_of(secrets)
    assert first.authority() is None
    await first.refresh()
    await second.refresh()
    assert first.authority() == second.authority() is not None
    assert secrets.writes == 1
    await first.refresh()
    assert secrets.writes == 1


async def test_the_quicker_of_two_makes_it_for_both() -> None:
    quick, secrets = Secrets(), Secrets()
    await keeper_of(quick).refresh()
    secrets.before_write = quick.body
    slow = keeper_of(secrets)
    await slow.refresh()
    assert quick.body is not None
    assert slow.authority() == base64.b64decode(quick.body["data"]["ca.crt"]).decode()
    assert secrets.writes == 0


async def test_a_secret_that_was_emptied_is_filled_again() -> None:
    secrets = Secrets()
    keeper = keeper_of(secrets)
    await keeper.refresh()
    assert secrets.body is not None
    secrets.body = secrets.body | {"data": None}
    await keeper.refresh()
    assert set(secrets.body["data"]) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
