"""Acts for the trainers of running training pods: each posts its progress to the operator, as rank 0 does.

    python bench/operator/simulator.py --kubeconfig FILE --seconds 10

What the kubelet would mount it asks the API server for: a token bound to the pod and to the operator's audience, and
the certificate authority from its ConfigMap. The address is the one in the pod's own environment. A process of its
own, so that its processor time is nobody else's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import ssl
import sys
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part) for part in ("crds", "operator")]

from finetune_api.reports import ProgressReport  # noqa: E402
from finetune_api.status import Progress  # noqa: E402
from finetune_api.trainer_config import PROGRESS_URL_ENV  # noqa: E402
from finetune_operator.cluster.client import ApiClient, path_of  # noqa: E402
from finetune_operator.core import names  # noqa: E402

Body = dict[str, Any]
STEPS = 3_235
SECONDS_PER_STEP = 1.9


class Trainers:
    """One task for each pod that trains."""

    def __init__(self, api: ApiClient, seconds: float) -> None:
        self._api, self._seconds = api, seconds
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None
        self.answers: dict[int, int] = {}

    async def run(self, namespace: str) -> None:
        """Follow the namespace's training pods until cancelled."""
        selector = {"labelSelector": f"{names.COMPONENT_LABEL}={names.TRAIN}", "fieldSelector": "status.phase=Running"}
        while True:
            running = await self._api.list_all(path_of("api/v1", "pods", namespace), selector)
            pods = {pod["metadata"]["uid"]: pod for pod in running}
            for uid in self._tasks.keys() - pods.keys():
                self._tasks.pop(uid).cancel()
            for uid in pods.keys() - self._tasks.keys():
                self._tasks[uid] = asyncio.create_task(self._train(pods[uid]))
            print(json.dumps({"training": len(self._tasks), "answers": self.answers}), flush=True)
            await asyncio.sleep(5)

    async def _train(self, pod: Body) -> None:
        environment = {item["name"]: item.get("value") for item in pod["spec"]["containers"][0]["env"]}
        attempt = int(pod["metadata"]["labels"][names.ATTEMPT_LABEL])
        token = await self._token(pod)
        await asyncio.sleep(random.uniform(0, self._seconds))
        started = asyncio.get_running_loop().time()
        while True:
            step = min(STEPS, 1 + int((asyncio.get_running_loop().time() - started) / SECONDS_PER_STEP))
            await self._post(str(environment[PROGRESS_URL_ENV]), token, attempt, step, pod["metadata"]["namespace"])
            await asyncio.sleep(self._seconds)

    async def _token(self, pod: Body) -> str:
        meta = pod["metadata"]
        path = path_of("api/v1", "serviceaccounts", meta["namespace"], "default", "token")
        bound = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
        spec = {"audiences": [names.MANAGER], "expirationSeconds": 3600, "boundObjectRef": bound}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        return str((await self._api.request("POST", path, body=body))["status"]["token"])

    async def _post(self, url: str, token: str, attempt: int, step: int, namespace: str) -> None:
        session = await self._connected(namespace)
        progress = Progress(
            step=step,
            total_steps=STEPS,
            epoch=step / STEPS,
            loss=2.1 - step / STEPS + random.uniform(-0.05, 0.05),
            learning_rate=2e-4 * (1 - step / STEPS),
            grad_norm=random.uniform(0.2, 0.4),
            tokens_per_second=random.uniform(13_900, 14_100),
            tokens=step * 65_536,
            peak_memory_bytes=61_094_232_064,
            eta_seconds=int((STEPS - step) * SECONDS_PER_STEP),
        )
        report = ProgressReport(attempt=attempt, progress=progress)
        data = report.model_dump_json(by_alias=True, exclude_none=True)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            async with session.post(url, data=data, headers=headers) as answer:
                await answer.read()
                code = answer.status
        except (aiohttp.ClientError, TimeoutError):
            code = 0
        self.answers[code] = self.answers.get(code, 0) + 1

    async def _connected(self, namespace: str) -> aiohttp.ClientSession:
        if self._session is None:
            path = path_of("api/v1", "configmaps", namespace, names.CA_CONFIG_MAP)
            authority = (await self._api.request("GET", path))["data"][names.CA_KEY]
            # A connection for each post, as from so many pods.
            connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cadata=authority), force_close=True)
            timeout = aiohttp.ClientTimeout(total=10)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    os.environ["KUBECONFIG"] = options.kubeconfig
    api = await ApiClient.connect()
    await Trainers(api, options.seconds).run(options.namespace)


if __name__ == "__main__":
    asyncio.run(main())
