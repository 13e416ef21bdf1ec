"""A replica that stands by hands what training pods post on to the one that acts.

So every replica is Ready and behind the Service, while the jobs' statuses have one writer: see docs/decisions/0013.
The replica that acts is reached at the address in its Lease and known by the operator's own authority.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping

import aiohttp

RELAYED = "Finetune-Relayed"
"""Header of a post that was handed on: it is not handed on again."""
SECONDS = 4.0
"""For one post: the trainer waits for five."""


class RelayError(Exception):
    """The replica that acts cannot be asked; the message says why."""


class Relay:
    """Posts to the replica that acts."""

    def __init__(self, *, address: Callable[[], str | None], authority: Callable[[], str | None], host: str) -> None:
        """``address`` is ``host:port`` of the replica that acts, None where nobody knows; ``host`` is the name in its
        certificate, ``authority`` who vouches for that (PEM)."""
        self._address, self._authority, self._host = address, authority, host
        self._context: tuple[str, ssl.SSLContext] | None = None

    async def hand_on(self, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        """Status and body of what the replica that acts answers to the same post.

        Raises:
            RelayError: there is none, it does not answer, or the post was handed on already.
        """
        address, authority = self._address(), self._authority()
        if RELAYED in headers or address is None or authority is None:
            raise RelayError("no replica acts just now")
        kept = {name: headers[name] for name in ("Authorization", "Content-Type") if name in headers}
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SECONDS)) as session,
                session.post(
                    f"https://{address}{path}",
                    data=body,
                    headers=kept | {RELAYED: "1"},
                    ssl=self._trusting(authority),
                    server_hostname=self._host,
                    allow_redirects=False,
                ) as answer,
            ):
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RelayError(
                f"the replica that acts does not answer at {address}: {str(error) or 'no answer'}"
            ) from error

    def _trusting(self, authority: str) -> ssl.SSLContext:
        if self._context is None or self._context[0] != authority:
            self._context = (authority, ssl.create_default_context(cadata=authority))
        return self._context[1]
