"""A model hub of one's own: the part of the Hugging Face hub's HTTP API that downloads use, from a directory.

``ROOT/models/<org>/<name>/…`` and ``ROOT/datasets/<org>/<name>/…``. In a test: ``with FakeHub(root) as hub:`` and
``HF_ENDPOINT=hub.url``. For a cluster: ``python fake_hub.py ROOT --host 0.0.0.0 --port 8080 [--gated org/name
--token SECRET]``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?$")
_FILE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


class FakeHub:
    """Serves a directory.

    Args:
        root: see the module.
        host: address to bind; the URL says it, but for 0.0.0.0.
        port: 0 takes a free one.
        gated: repositories whose files want ``token``; anybody sees that they exist.
        private: repositories that are not there for whoever comes without ``token``.
        token: the one that is accepted.
        branches: names of the one revision there is.
    """

    def __init__(
        self,
        root: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        gated: Iterable[str] = (),
        private: Iterable[str] = (),
        token: str = "",
        branches: Iterable[str] = ("main",),
    ) -> None:
        self.root, self._host = root, host
        self.gated, self.private, self.token = set(gated), set(private), token
        self.branches = set(branches)
        self.requests: list[str] = []
        """`METHOD path` of each request."""
        self.tokens: set[str] = set()
        """Authorization headers that were sent."""
        self.fail_with: int | None = None
        """Answer everything with this status."""
        self._server = ThreadingHTTPServer((host, port), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """What HF_ENDPOINT must be on this machine."""
        host, port = self._host, self._server.server_port
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - compared, not bound

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def files(self, kind: str, repository: str) -> dict[str, Path]:
        """Files of a repository by their names there."""
        directory = self.root / kind / repository
        return {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}

    def commit(self, kind: str, repository: str) -> str:
        """Its one commit: a hash of names and contents."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, path in self.files(kind, repository).items():
            digest.update(f"{name}\0{_etag(path)}\n".encode())
        return digest.hexdigest()

    def accepts(self, authorization: str | None) -> bool:
        """Whether the header holds the token."""
        return bool(self.token) and authorization == f"Bearer {self.token}"


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            pass

        def _answer(self, *, body: bool) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            hub.requests.append(f"{self.command} {path}")
            authorization = self.headers.get("Authorization")
            if authorization:
                hub.tokens.add(authorization)
            if hub.fail_with is not None:
                self._send(hub.fail_with, b"", {}, body=body)
            elif match := _API.match(path):
                self._api(*match.groups(), query=parse_qs(url.query), body=body)
            elif match := _FILE.match(path):
                kind = "datasets" if match[1] else "models"
                self._file(kind, match[2], match[3], match[4], body=body)
            else:
                self._refuse(404, "EntryNotFound", "no such page", body=body)

        def _refused(self, kind: str, repository: str, revision: str | None, *, content: bool, body: bool) -> bool:
            known = hub.accepts(self.headers.get("Authorization"))
            if not hub.files(kind, repository) or (repository in hub.private and not known):
                # The real one says 401 to a stranger, whether there is such a repository or not.
                status = 404 if self.headers.get("Authorization") else 401
                self._refuse(status, "RepoNotFound", "Repository not found", body=body)
            elif content and repository in hub.gated and not known:
                status = 403 if self.headers.get("Authorization") else 401
                self._refuse(status, "GatedRepo", f"Access to {repository} is restricted", body=body)
            elif revision is not None and revision not in {*hub.branches, hub.commit(kind, repository)}:
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}", body=body)
            else:
                return False
            return True

        def _api(
            self,
            kind: str,
            repository: str,
            call: str | None,
            revision: str | None,
            *,
            query: dict[str, list[str]],
            body: bool,
        ) -> None:
            if self._refused(kind, repository, revision, content=False, body=body):
                return
            files = hub.files(kind, repository)
            if call == "tree":
                answer: Any = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)[:40]}
                    for name, path in files.items()
                ]
            else:
                sizes = "blobs" in query
                answer = {
                    "_id": "0",
                    "id": repository,
                    "sha": hub.commit(kind, repository),
                    "private": repository in hub.private,
                    "gated": "manual" if repository in hub.gated else False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "siblings": [
                        {"rfilename": name} | ({"size": path.stat().st_size} if sizes else {})
                        for name, path in files.items()
                    ],
                }
            self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body=body)

        def _file(self, kind: str, repository: str, revision: str, name: str, *, body: bool) -> None:
            if self._refused(kind, repository, revision, content=True, body=body):
                return
            path = hub.files(kind, repository).get(name)
            if path is None:
                self._refuse(404, "EntryNotFound", "Entry not found", body=body)
                return
            headers = {
                "ETag": f'"{_etag(path)}"',
                "X-Repo-Commit": hub.commit(kind, repository),
                "Accept-Ranges": "bytes",
                "Content-Type": "application/octet-stream",
            }
            data = path.read_bytes()
            status = 200
            if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
                headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
                data, status = data[start : end + 1], 206
            self._send(status, data, headers, body=body)

        def _refuse(self, status: int, code: str, message: str, *, body: bool) -> None:
            answer = json.dumps({"error": message}).encode()
            self._send(status, answer, {"X-Error-Code": code, "X-Error-Message": message}, body=body)

        def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    return Handler


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="A model hub that serves a directory")
    parser.add_argument("root", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--gated", action="append", default=[], metavar="ORG/NAME")
    parser.add_argument("--private", action="append", default=[], metavar="ORG/NAME")
    parser.add_argument("--token", default="")
    arguments = vars(parser.parse_args())
    with FakeHub(arguments.pop("root"), **arguments) as hub:
        print(hub.url, flush=True)  # noqa: T201 - the caller reads it
        threading.Event().wait()


if __name__ == "__main__":
    main()
