"""A FineTuneJob's Jobs, read anew by their names, which follow from it.

To list them by label, the API server goes through all Jobs of the namespace, and reads them all from etcd where its
cache is behind: thousands, for three. Attempts are consecutive, so that those the status does not know of yet, because
its write was lost, are found by going on until there is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from finetune_operator.cluster.objects import Cluster
from finetune_operator.core import names
from finetune_operator.core.children import attempt_of, belongs_to, labels

Body = dict[str, Any]


async def read_jobs(cluster: Cluster, body: Body, heard: Iterable[Body]) -> list[Body]:
    """The prepare Job of the FineTuneJob ``body`` and its attempts from the one in the status on, with those that
    were ``heard`` of; also such that an earlier FineTuneJob of that name left. Attempts before that one have ended.

    A Job of one of these names that does not carry our label is somebody else's, and not among them.
    """
    meta = body["metadata"]
    namespace, name, uid = meta["namespace"], meta["name"], meta["uid"]

    async def read(job: str) -> Body | None:
        found = await cluster.job(namespace, job)
        ours = found is not None and labels(found).get(names.JOB_LABEL) == names.label_value(name)
        return found if ours else None

    async def read_attempts() -> dict[int, Body | None]:
        current = (body.get("status") or {}).get("attempt") or 0
        told = {attempt_of(job, name) for job in heard if belongs_to(job, uid)}
        unread = {current, current + 1, *(number for number in told if number > current)} - {0}
        attempts: dict[int, Body | None] = {}
        while unread:
            numbers = sorted(unread)
            found = await asyncio.gather(*(read(names.train_job(name, number)) for number in numbers))
            attempts |= zip(numbers, found, strict=True)
            there = {number for number, job in attempts.items() if job is not None and belongs_to(job, uid)}
            unread = {number + 1 for number in there} - attempts.keys()
        return attempts

    prepare, attempts = await asyncio.gather(read(names.prepare_job(name)), read_attempts())
    return [job for job in (prepare, *attempts.values()) if job is not None]
