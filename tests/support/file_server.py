"""Servers of files for tests: plain HTTP as file servers speak it, and as much of S3 as reading needs, path-style.

``with FileServer({"/rows.jsonl": b"…"}) as server``; with ``buckets`` as well, ``/bucket/key`` are objects that want a
signature by ``access_key``. Whatever goes wrong between is switched on by an attribute.
"""

from __future__ import annotations

import hashlib
import re
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class FileServer:
    """Serves ``files`` by path.

    Args:
        files: contents by path.
        s3: answer as an object store, whose buckets are the first parts of the paths.
        access_key: the one whose signatures are taken; empty takes unsigned requests too.
        token: bearer token that is wanted; empty wants none.
    """

    def __init__(self, files: dict[str, bytes], *, s3: bool = False, access_key: str = "", token: str = "") -> None:
        self.files, self.s3, self.access_key, self.token = files, s3, access_key, token
        self.requests: list[str] = []
        """`METHOD path range` of each."""
        self.authorizations: list[str] = []
        self.fail_with: list[int] = []
        """Statuses of the next answers."""
        self.break_off_after: list[int] = []
        """Bytes after which the next answers' connections are closed."""
        self.ranges = True
        self.validators = True
        self.redirects: dict[str, str] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def url(self) -> str:
        """Of this machine."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def etag(content: bytes) -> str:
    """As the server sends it."""
    return f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
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
            path, query = unquote(url.path), parse_qs(url.query)
            server.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            authorization = self.headers.get("Authorization", "")
            server.authorizations.append(authorization)
            if server.fail_with:
                self._send(server.fail_with.pop(0), b"", {}, body=body)
            elif path in server.redirects:
                self._send(302, b"", {"Location": server.redirects[path]}, body=body)
            elif server.token and authorization != f"Bearer {server.token}":
                self._send(403 if authorization else 401, b"", {}, body=body)
            elif server.access_key and not re.match(
                rf"AWS4-HMAC-SHA256 Credential={re.escape(server.access_key)}/\d{{8}}/.*/s3/aws4_request, "
                r"SignedHeaders=.*host.*, Signature=[0-9a-f]{64}$",
                authorization,
            ):
                self._refuse(403, "AccessDenied", body=body)
            elif server.s3 and "list-type" in query:
                self._list(path.strip("/"), query, body=body)
            elif path in server.files:
                self._file(server.files[path], body=body)
            else:
                bucket = path.strip("/").partition("/")[0]
                known = any(name.startswith(f"/{bucket}/") for name in server.files)
                self._refuse(404, "NoSuchKey" if known else "NoSuchBucket", body=body)

        def _file(self, content: bytes, *, body: bool) -> None:
            headers = {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
            tag = etag(content)
            if server.validators:
                headers |= {"ETag": tag}
            if server.s3:
                headers |= {"Last-Modified": formatdate(0, usegmt=True)}
            if tag == self.headers.get("If-None-Match"):
                self._send(304, b"", headers, body=False)
                return
            status, data = 200, content
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted and server.ranges and self.headers.get("If-Range", tag) == tag:
                start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
                if start >= len(content):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"}, body=body)
                    return
                data, status = content[start : end + 1], 206
                headers["Content-Range"] = f"bytes {start}-{start + len(data) - 1}/{len(content)}"
            self._send(status, data, headers, body=body)

        def _list(self, bucket: str, query: dict[str, list[str]], *, body: bool) -> None:
            prefix = query.get("prefix", [""])[0]
            keys = sorted(name.removeprefix(f"/{bucket}/") for name in server.files if name.startswith(f"/{bucket}/"))
            entries, folders = [], set()
            for key in keys:
                if not key.startswith(prefix):
                    continue
                rest = key[len(prefix) :]
                if "delimiter" in query and "/" in rest:
                    folders.add(prefix + rest.partition("/")[0] + "/")
                else:
                    size = len(server.files[f"/{bucket}/{key}"])
                    entries.append(
                        f"<Contents><Key>{escape(key)}</Key><LastModified>1970-01-01T00:00:00.000Z</LastModified>"
                        f"<Size>{size}</Size></Contents>"
                    )
            shared = "".join(
                f"<CommonPrefixes><Prefix>{escape(one)}</Prefix></CommonPrefixes>" for one in sorted(folders)
            )
            answer = (
                '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<Name>{bucket}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>false</IsTruncated>"
                f"<KeyCount>{len(entries) + len(folders)}</KeyCount>{''.join(entries)}{shared}</ListBucketResult>"
            )
            self._send(200, answer.encode(), {"Content-Type": "application/xml"}, body=body)

        def _refuse(self, status: int, code: str, *, body: bool) -> None:
            answer = (
                f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>' if server.s3 else ""
            )
            self._send(status, answer.encode(), {"Content-Type": "application/xml"}, body=body)

        def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
            # Before anything is sent: the client may ask again as soon as it has the headers.
            cut = server.break_off_after.pop(0) if body and data and server.break_off_after else None
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            if not body:
                return
            if cut is not None:
                self.wfile.write(data[:cut])
                self.close_connection = True
                return
            self.wfile.write(data)

    return Handler
