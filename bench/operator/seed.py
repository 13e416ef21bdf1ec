"""More jobs that have ended than there is time to run: copies of ones that did, put into etcd beside them.

A copy has a name and uids of its own and is else what the real flow left: the FineTuneJob, its two Jobs, their pods,
its ConfigMap. Names and uids are as long as those they stand for, so that they can be put in their place in the stored
bytes, whether these are JSON or protobuf. The API server and all who watch it hear of them as of any write.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import re
import ssl
import uuid
from typing import Any

import aiohttp
import fleet
from plane import Plane

PREFIXES = ("/registry/finetune.dev/finetunejobs/", "/registry/jobs/", "/registry/pods/", "/registry/configmaps/")
_UID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_JOB = re.compile(rb"job-\d{5}")
AT_ONCE = 16


async def multiply(plane: Plane, real: int, wanted: int) -> None:
    """Copy the ended jobs ``job-00000`` and on, of which there are ``real``, until there are ``wanted``."""
    context = ssl.create_default_context(cafile=str(plane.pki / "ca.crt"))
    context.load_cert_chain(plane.pki / "apiserver-etcd.crt", plane.pki / "apiserver-etcd.key")
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(plane.etcd_url, connector=connector) as etcd:
        stored = await _stored(etcd)
        slots = asyncio.Semaphore(AT_ONCE)

        async def put(key: bytes, value: bytes) -> None:
            async with slots:
                await _ask(etcd, "put", {"key": _text(key), "value": _text(value)})

        copies = (_copy(stored, index % real, index) for index in range(real, wanted))
        while some := list(itertools.islice(copies, AT_ONCE)):
            await asyncio.gather(*(put(key, value) for pairs in some for key, value in pairs))


async def _stored(etcd: aiohttp.ClientSession) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """Keys and values in etcd by the job that they belong to."""
    found: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for prefix in PREFIXES:
        beginning = f"{prefix}{fleet.NAMESPACE}/".encode()
        answer = await _ask(etcd, "range", {"key": _text(beginning), "range_end": _text(beginning[:-1] + b"0")})
        for pair in answer.get("kvs", ()):
            key, value = base64.b64decode(pair["key"]), base64.b64decode(pair["value"])
            match = _JOB.search(key)
            if match:
                found.setdefault(match.group(), []).append((key, value))
    return found


def _copy(stored: dict[bytes, list[tuple[bytes, bytes]]], of: int, index: int) -> list[tuple[bytes, bytes]]:
    """Keys and values of a copy of job ``of``, which becomes job ``index``."""
    name, new = (f"job-{number:05}".encode() for number in (of, index))
    uids: dict[bytes, bytes] = {}

    def other(match: re.Match[bytes]) -> bytes:
        return uids.setdefault(match.group(), str(uuid.uuid4()).encode())

    return [(key.replace(name, new), _UID.sub(other, value.replace(name, new))) for key, value in stored[name]]


async def _ask(etcd: aiohttp.ClientSession, what: str, body: dict[str, str]) -> dict[str, Any]:
    async with etcd.post(f"/v3/kv/{what}", json=body) as response:
        response.raise_for_status()
        answer: dict[str, Any] = await response.json()
        return answer


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
