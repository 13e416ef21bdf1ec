"""Files over HTTP: by the standard library, which knows proxies, and with the token for nobody but whom it is for."""

from __future__ import annotations

import http.client
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from finetune_api.failures import ExitCode

from finetune_trainer.downloads import Answer, UnreachableError
from finetune_trainer.errors import TrainerError

SILENT_SECONDS = 60.0
"""A server that sends nothing for as long is as good as gone."""
_CHUNK = 2**20
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Another host does not get the token, and none is reached less safely than the one that was named."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:  # noqa: PLR0917
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (req.type == "https" and scheme == "http"):
            raise urllib.error.HTTPError(req.full_url, code, f"redirects to {scheme}, which is refused", headers, fp)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and following.host != req.host:
            following.remove_header("Authorization")
        return following


class WebFile:
    """A file behind an ``http://`` or ``https://`` URL."""

    def __init__(self, url: str, *, token: str | None, field: str) -> None:
        self._url = url
        self._token = token
        self._field = field

    def open(self, *, offset: int, validator: str | None, known: str | None, length: int | None = None) -> Answer:
        """As :meth:`finetune_trainer.downloads.Remote.open`."""
        request = urllib.request.Request(self._url, headers={"Accept-Encoding": "identity"})  # noqa: S310 - see uris
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        part = length is not None or (offset > 0 and validator is not None)
        if part:
            request.add_header("Range", f"bytes={offset}-{'' if length is None else offset + length - 1}")
            if validator:
                request.add_header("If-Range", validator)
        elif known and known.startswith(('"', "W/")):
            request.add_header("If-None-Match", known)
        elif known:
            request.add_header("If-Modified-Since", known)
        try:
            answer = urllib.request.build_opener(_Redirects).open(request, timeout=SILENT_SECONDS)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == http.HTTPStatus.NOT_MODIFIED:
                return Answer(validator=known, unchanged=True)
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and part:
                return self.open(offset=0, validator=None, known=known)
            raise self._meaning(error) from error
        except (OSError, http.client.HTTPException) as error:
            raise UnreachableError(_told(error)) from error
        return self._answer(answer)

    def _answer(self, response: Any) -> Answer:
        headers = response.headers
        start, size = 0, int(headers["Content-Length"]) if headers.get("Content-Length", "").isdigit() else None
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            found = _RANGE.fullmatch(headers.get("Content-Range", ""))
            if found is None:
                response.close()
                raise UnreachableError("the server sends a part and does not say which")
            start, size = int(found[1]), None if found[2] == "*" else int(found[2])
        # A weak tag says that two files mean the same, not that a part of one goes on in the other.
        tag = headers.get("ETag")
        validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
        return Answer(validator, size, start, _chunks(response), close=response.close)

    def _meaning(self, error: urllib.error.HTTPError) -> Exception:
        secret = f"{self._field.removesuffix('.uri')}.secretRef"
        if error.code in (401, 403):
            advice = (
                f"the token of {secret} was given, but does not grant access"
                if self._token
                else f"if it wants a token, name a Secret with it in {secret}"
            )
            return TrainerError(
                ExitCode.DATASET_ACCESS_DENIED,
                f"{self._field}: the server refuses {self._url} ({error.code}); {advice}",
            )
        if error.code == http.HTTPStatus.TOO_MANY_REQUESTS or error.code >= 500:
            return UnreachableError(f"the server answers {error.code}")
        return TrainerError(
            ExitCode.DATASET_NOT_FOUND,
            f"{self._field}: {self._url}: the server answers {error.code} {error.reason}; check the address",
        )


def _chunks(response: Any) -> Iterator[bytes]:
    with response:
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise UnreachableError(_told(error)) from error
            if not chunk:
                return
            yield chunk


def _told(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, (TimeoutError, socket.timeout)):
        return f"it was silent for {SILENT_SECONDS:.0f} s"
    return str(reason) or type(reason).__name__
