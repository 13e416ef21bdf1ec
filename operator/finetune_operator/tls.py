"""The certificate that the progress endpoint serves with: kept in a Secret, renewed in time, known to pods."""

from __future__ import annotations

import asyncio
import base64
import logging
import ssl
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_operator.cluster.errors import CONFLICT, ApiError
from finetune_operator.cluster.objects import Cluster
from finetune_operator.core import names
from finetune_operator.core.certificates import KeyPair, ServerIdentity, renewed

CHECK_SECONDS = 60.0
"""Between two looks: what another replica has made anew is served here soon, too."""
_KEYS = ("ca.crt", "ca.key", "tls.crt", "tls.key")
logger = logging.getLogger(__name__)


class TlsKeeper:
    """Holds the identity, and an SSL context that new connections find it in."""

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str,
        secret: str,
        hosts: tuple[str, ...],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._cluster, self._namespace, self._secret, self._hosts = cluster, namespace, secret, hosts
        self._clock = clock
        self._identity: ServerIdentity | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2

    def authority(self) -> str | None:
        """Certificate of the authority (PEM), once there is one."""
        return self._identity.authority.certificate if self._identity else None

    async def refresh(self) -> None:
        """Read the Secret, make or renew what it lacks, and serve with it.

        Raises:
            ApiError: the Secret can be neither read nor written.
        """
        for _ in range(5):
            found = await self._cluster.secret(self._namespace, self._secret)
            current = _identity_in(found) if found else None
            identity = renewed(current, self._hosts, self._clock())
            if identity == current:
                break
            try:
                await self._store(found, identity)
            except ApiError as error:
                if error.status != CONFLICT:
                    raise
                continue  # another replica was quicker: take what it made
            logger.info("made a certificate for %s", ", ".join(self._hosts))
            break
        else:
            raise ApiError(CONFLICT, "changes under our hands", what=f"Secret {self._namespace}/{self._secret}")
        if identity != self._identity:
            self._load(identity.server)
            self._identity = identity

    async def keep(self) -> None:
        """Look every minute whether it is time to renew, or another has; until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self.refresh()
            except ApiError as error:
                logger.warning("the certificate is looked at again in a minute: %s", error)

    async def _store(self, found: dict[str, Any] | None, identity: ServerIdentity) -> None:
        values = (
            identity.authority.certificate,
            identity.authority.key,
            identity.server.certificate,
            identity.server.key,
        )
        data = {key: base64.b64encode(value.encode()).decode() for key, value in zip(_KEYS, values, strict=True)}
        if found:
            await self._cluster.replace({"apiVersion": "v1", "kind": "Secret", **found, "data": data})
            return
        metadata = {
            "name": self._secret,
            "namespace": self._namespace,
            "labels": {names.MANAGED_BY_LABEL: names.MANAGER},
        }
        await self._cluster.create(
            {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata, "data": data}
        )

    def _load(self, pair: KeyPair) -> None:
        # ssl takes files alone; the key lies in the pod's own /tmp, for as long as this takes.
        with tempfile.TemporaryDirectory() as directory:
            certificate, key = Path(directory, "tls.crt"), Path(directory, "tls.key")
            certificate.write_text(pair.certificate)
            key.write_text(pair.key)
            self.context.load_cert_chain(certificate, key)


def _identity_in(secret: dict[str, Any]) -> ServerIdentity | None:
    try:
        parts = [base64.b64decode(secret["data"][key]).decode() for key in _KEYS]
    except (KeyError, TypeError, ValueError):
        return None
    return ServerIdentity(KeyPair(parts[0], parts[1]), KeyPair(parts[2], parts[3]))
