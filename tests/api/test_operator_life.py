"""The whole operator against a real API server. Nothing runs Jobs here, so the test plays their controller.

What only a real server shows: that every object is accepted and owned as it should be, that kopf's watches bring
what is needed, that conflicts and restarts cost nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from finetune_operator.cluster.client import ApiClient, path_of
from finetune_operator.cluster.errors import CONFLICT, GATEWAY_TIMEOUT, ApiError
from finetune_operator.cluster.objects import OURS, Cluster
from finetune_operator.core import names
from finetune_operator.core.reconcile import PREPARING
from finetune_operator.core.times import stamp
from finetune_operator.main import PartEndedError, run
from finetune_operator.settings import Settings, read_settings
from kubernetes import client
from manifests import finetunejob
from operator_bodies import report

Body = dict[str, Any]
NAMES = (f"life-{number}" for number in itertools.count())
PATIENCE = 30.0


@pytest.fixture
async def cluster(api: client.ApiClient, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    """The operator's own client, as administrator."""
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    made = await ApiClient.connect()
    yield Cluster(made, ("default",))
    await made.close()
    # A TLS connection takes a while to close, and pytest ends the loop at once.
    await until(no_connection, "neither the operator nor its client leaves a connection open")


async def no_connection() -> bool:
    transports = asyncio.get_running_loop()._transports.values()  # type: ignore[attr-defined]
    return all(transport._sock is None for transport in list(transports))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def settings_of(**variables: str) -> Settings:
    port = free_port()
    return read_settings(
        {
            "FINETUNE_TRAINER_IMAGE": "registry/trainer:1",
            "FINETUNE_NAMESPACE": "default",
            "FINETUNE_WATCH_NAMESPACES": "default",
            "FINETUNE_PROGRESS_PORT": str(port),
            "FINETUNE_PROGRESS_URL": f"https://localhost:{port}",
            "FINETUNE_METRICS_PORT": str(free_port()),
            "FINETUNE_BACKOFF_BASE_SECONDS": "1",
            "FINETUNE_PROGRESS_INTERVAL_SECONDS": "0.2",
            **variables,
        }
    )


@asynccontextmanager
async def operator(settings: Settings | None = None) -> AsyncIterator[Settings]:
    """The whole program, ended as the kubelet ends it."""
    settings = settings or settings_of()
    task = asyncio.create_task(run(settings))
    try:
        await until(lambda: ready(settings, task), "the operator is ready")
        yield settings
    finally:
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, PATIENCE)


async def ready(settings: Settings, task: asyncio.Task[None]) -> bool:
    if task.done():
        await task
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{settings.metrics_port}/readyz") as answer,
        ):
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def until(condition: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What ``condition`` gives once it gives something."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while not (found := await condition()):
        assert asyncio.get_running_loop().time() < end, f"never: {what}"
        await asyncio.sleep(0.05)
    return found


class Player:
    """One FineTuneJob, and the part of Job controller and kubelet."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.name = cluster, next(NAMES)

    async def create(self, **edits: Any) -> Body:
        path = path_of(OURS, "finetunejobs", "default")
        return await self.cluster.api.request("POST", path, body=finetunejob(self.name, **edits))

    async def read(self) -> Body:
        body = await self.cluster.finetunejob("default", self.name)
        assert body is not None
        return body

    async def phase(self, *wanted: str) -> Body:
        async def reached() -> Body | None:
            body = await self.read()
            return body if (body.get("status") or {}).get("phase") in wanted else None

        found: Body = await until(reached, f"{self.name} is {' or '.join(wanted)}")
        return found

    async def jobs(self) -> list[str]:
        query = {"labelSelector": f"{names.JOB_LABEL}={self.name}"}
        found = await self.cluster.api.list_all(path_of("apis/batch/v1", "jobs", "default"), query)
        return sorted(job["metadata"]["name"] for job in found)

    async def start(self, job: str) -> Body:
        """The Job ``job`` once it is there, with a pod that runs."""
        path = path_of("apis/batch/v1", "jobs", "default", job)

        async def there() -> Body | None:
            try:
                return await self.cluster.api.request("GET", path)
            except ApiError:
                return None

        body: Body = await until(there, f"Job {job}")
        template = body["spec"]["template"]
        labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": job}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{job}-0-abcde",
                "labels": labels,
                "annotations": template["metadata"]["annotations"],
            },
            "spec": template["spec"],
        }
        made = await self.cluster.api.request("POST", path_of("api/v1", "pods", "default"), body=pod)
        await self._status("pods", made["metadata"]["name"], {"phase": "Running"} | _container("running", {}))
        return made

    async def end(self, job: str, code: int, message: str) -> None:
        """Pod and Job ``job`` end."""
        last = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
        phase = "Failed" if code else "Succeeded"
        await self._status("pods", f"{job}-0-abcde", {"phase": phase} | _container("terminated", last))
        now = stamp(datetime.now(UTC))
        kinds = ("FailureTarget", "Failed") if code else ("SuccessCriteriaMet", "Complete")
        conditions = [{"type": kind, "status": "True", "lastTransitionTime": now, "reason": "x"} for kind in kinds]
        status: Body = {"startTime": now, "conditions": conditions}
        if not code:
            status |= {"completionTime": now, "succeeded": 1}
        await self._status("jobs", job, status)

    async def gone(self, job: str, code: int, message: str) -> None:
        """A pod that was told to end has ended and goes."""
        last = {"exitCode": code, "reason": "Error", "message": message}
        await self._status("pods", f"{job}-0-abcde", {"phase": "Failed"} | _container("terminated", last))
        await self.cluster.api.request("DELETE", path_of("api/v1", "pods", "default", f"{job}-0-abcde"))

    async def edit(self, **run_policy: Any) -> None:
        """The owner edits runPolicy."""
        path = path_of(OURS, "finetunejobs", "default", self.name)
        patch = {"spec": {"runPolicy": run_policy}}
        await self.cluster.api.request("PATCH", path, body=patch, content_type="application/merge-patch+json")

    async def _status(self, plural: str, name: str, status: Body) -> None:
        group = "api/v1" if plural == "pods" else "apis/batch/v1"
        path = path_of(group, plural, "default", name, "status")
        await self.cluster.api.request(
            "PATCH", path, body={"status": status}, content_type="application/merge-patch+json"
        )

    async def told(self) -> list[str]:
        selector = f"involvedObject.uid={(await self.read())['metadata']['uid']}"
        events = await self.cluster.api.list_all(path_of("api/v1", "events", "default"), {"fieldSelector": selector})
        return sorted(event["reason"] for event in events)

    async def prepared(self) -> None:
        await self.start(f"{self.name}-prepare")
        await self.end(f"{self.name}-prepare", 0, report("prepare", dataset={"samples": 7, "supervisedTokens": 70}))


def _container(kind: str, state: Body) -> Body:
    status = {"name": "trainer", "state": {kind: state}, "ready": False, "restartCount": 0, "image": "i", "imageID": ""}
    return {"containerStatuses": [status]}


@pytest.fixture
async def service_account(cluster: Cluster) -> None:
    """What the controller manager would make, and pods need."""
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
    try:
        await cluster.api.request("POST", path_of("api/v1", "serviceaccounts", "default"), body=body)
    except ApiError as error:
        if error.status != CONFLICT:
            raise


@pytest.fixture
def player(cluster: Cluster, service_account: None) -> Player:
    return Player(cluster)


async def test_a_whole_life_with_a_failed_attempt(player: Player) -> None:
    await player.create()
    async with operator():
        await player.prepared()
        await player.start(f"{player.name}-train-1")
        await player.phase("Running")
        await player.end(f"{player.name}-train-1", 1, report("train", 1, message="it broke"))
        await player.start(f"{player.name}-train-2")
        await player.phase("Running")
        done = report("train", output={"path": "adapter", "digest": "sha256:1"}, progress={"step": 9, "totalSteps": 9})
        await player.end(f"{player.name}-train-2", 0, done)
        body = await player.phase("Succeeded")
        await until(lambda: _has(player, "Succeeded"), "the event")
    status = body["status"]
    assert status["attempt"] == 2
    assert status["progress"]["display"] == "9/9 100%"
    assert status["output"]["uri"].endswith("/adapter")
    assert status["dataset"]["samples"] == 7
    assert "failure" not in status
    assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == "True"
    assert await player.jobs() == [f"{player.name}-{end}" for end in ("prepare", "train-1", "train-2")]
    assert await player.told() == ["Retrying", "Succeeded"]


async def _has(player: Player, reason: str) -> bool:
    return reason in await player.told()


async def test_a_restart_at_every_stage_loses_and_doubles_nothing(player: Player) -> None:
    await player.create()
    async with operator():
        await player.phase("Preparing")
    await player.prepared()  # while nobody looks
    async with operator():
        await player.start(f"{player.name}-train-1")
        await player.phase("Running")
    await player.end(f"{player.name}-train-1", 1, "Killed")
    async with operator():
        await player.start(f"{player.name}-train-2")
    await player.end(f"{player.name}-train-2", 0, report("train"))
    async with operator():
        body = await player.phase("Succeeded")
    version = body["metadata"]["resourceVersion"]
    assert await player.jobs() == [f"{player.name}-{end}" for end in ("prepare", "train-1", "train-2")]
    async with operator():
        await player_settles(player)
    assert (await player.read())["metadata"]["resourceVersion"] == version, "a finished job is not touched again"


async def player_settles(player: Player) -> None:
    """Until a job made now was taken up: whatever there was to do for older ones is done then."""
    other = Player(player.cluster)
    await other.create()
    await other.phase("Preparing")


async def test_the_status_is_written_only_when_it_changes(player: Player) -> None:
    await player.create()
    settings = settings_of(FINETUNE_RESYNC_SECONDS="1")
    async with operator(settings):
        await player.start(f"{player.name}-prepare")
        await until(lambda: _says(player, PREPARING), "the running pod is in the status")
        before = (await player.read())["metadata"]["resourceVersion"]
        await asyncio.gather(*(player_settles(player) for _ in range(3)))
        url = f"http://127.0.0.1:{settings.metrics_port}/metrics"
        reconciles = "finetune_reconcile_seconds_count "
        seen = await _metric(url, reconciles)
        await until(lambda: _grew(url, reconciles, seen + 3), "a resync looks at the jobs")
        assert (await player.read())["metadata"]["resourceVersion"] == before


async def _says(player: Player, message: str) -> bool:
    conditions = ((await player.read()).get("status") or {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["message"] == message for condition in conditions)


async def _metric(url: str, name: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        lines = (await answer.text()).splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


async def _grew(url: str, name: str, beyond: float) -> bool:
    return await _metric(url, name) > beyond


async def test_changes_by_others_meanwhile_are_kept(player: Player) -> None:
    created = await player.create()
    path = path_of(OURS, "finetunejobs", "default", player.name)
    async with operator():
        for number in range(10):  # while the operator writes
            patch = {"metadata": {"labels": {f"l{number}": "x"}}, "spec": {"runPolicy": {"backoffLimit": number}}}
            await player.cluster.api.request("PATCH", path, body=patch, content_type="application/merge-patch+json")
        body = await player.phase("Preparing")
        generation = body["metadata"]["generation"]
        assert generation > created["metadata"]["generation"]

        async def observed() -> bool:
            return bool((await player.read())["status"]["observedGeneration"] == generation)

        await until(observed, "the newest generation is observed")
    body = await player.read()
    assert len(body["metadata"]["labels"]) == 10
    assert await player.jobs() == [f"{player.name}-prepare"]


async def test_children_are_owned_and_applied_by_one_manager(player: Player) -> None:
    shared = {"claim": {"accessMode": "ReadWriteMany"}}
    created = await player.create(distributed={"nodes": 2}, output=shared)  # they find each other by a Service
    async with operator():
        await player.prepared()
        body = await player.phase("Queued")
    get = player.cluster.api.request
    config = names.config_map(player.name, body["status"]["configHash"])
    for group, plural, name in (
        ("api/v1", "configmaps", config),
        ("api/v1", "services", names.service(player.name)),
        ("apis/batch/v1", "jobs", f"{player.name}-train-1"),
    ):
        meta = (await get("GET", path_of(group, plural, "default", name)))["metadata"]
        assert [owner["uid"] for owner in meta["ownerReferences"]] == [created["metadata"]["uid"]], plural
        managers = {entry["manager"]: entry["operation"] for entry in meta["managedFields"]}
        assert managers["finetune-operator"] == ("Update" if plural == "jobs" else "Apply"), plural
    claim = await get("GET", path_of("api/v1", "persistentvolumeclaims", "default", f"{player.name}-output"))
    assert "ownerReferences" not in claim["metadata"], "results outlive the job"
    assert {m["manager"] for m in body["metadata"]["managedFields"] if m.get("subresource") == "status"} == {
        "finetune-operator"
    }


async def test_the_spec_of_a_job_is_immutable_but_for_its_run_policy(player: Player) -> None:
    await player.create()
    path = path_of(OURS, "finetunejobs", "default", player.name)
    patch = {"spec": {"model": {"source": "hf://org/other"}}}
    with pytest.raises(ApiError) as refused:
        await player.cluster.api.request("PATCH", path, body=patch, content_type="application/merge-patch+json")
    assert refused.value.status == 422
    assert "spec.model: cannot be changed once the job is accepted" in refused.value.message


async def test_a_deleted_job_is_done_with(player: Player) -> None:
    await player.create()
    async with operator():
        await player.phase("Preparing")
        path = path_of(OURS, "finetunejobs", "default", player.name)
        await player.cluster.api.request("DELETE", path)
        assert await player.cluster.finetunejob("default", player.name) is None, "no finalizer holds it"
        again = Player(player.cluster)
        again.name = player.name
        await again.create()

        async def clears() -> bool:
            conditions = ((await again.read()).get("status") or {}).get("conditions", [])
            return any(c["type"] == "Ready" and c["reason"] == "Clearing" for c in conditions)

        await until(clears, "the Job of the earlier one is waited for: nothing collects garbage here")
        await player.cluster.delete_job("default", f"{player.name}-prepare")
        await again.phase("Preparing")


async def test_a_pod_posts_progress_with_its_own_token(player: Player) -> None:
    await player.create()
    async with operator() as settings:
        await player.prepared()
        pod = await player.start(f"{player.name}-train-1")
        await player.phase("Running")
        bound = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
        url = f"{settings.core.progress_url}/v1/namespaces/default/finetunejobs/{player.name}/progress"
        authority = await player.cluster.api.request(
            "GET", path_of("api/v1", "configmaps", "default", names.CA_CONFIG_MAP)
        )
        context = ssl.create_default_context(cadata=authority["data"][names.CA_KEY])

        async def post(token: str, body: Body) -> int:
            async with (
                aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
                session.post(url, json=body, ssl=context) as answer,
            ):
                return answer.status

        good = await _token(player.cluster, names.MANAGER, bound)
        status = {"progressPercentage": 50, "metrics": [{"name": "total_steps", "value": "8"}]}
        assert await post(good, {"trainerStatus": status}) == 200

        async def shown() -> bool:
            return (await player.read())["status"].get("progress", {}).get("display") == "4/8 50%"

        await until(shown, "progress is in the status")
        report_of_old = {"attempt": 0, "progress": {"step": 1, "totalSteps": 8}}
        assert await post(good, report_of_old) == 422
        assert await post(await _token(player.cluster, names.MANAGER, None), report_of_old) == 403
        assert await post(await _token(player.cluster, "another", bound), report_of_old) == 401
        assert await post("rubbish", report_of_old) == 401


async def _token(cluster: Cluster, audience: str, bound: Body | None) -> str:
    spec: Body = {"audiences": [audience], "expirationSeconds": 600}
    if bound is not None:
        spec["boundObjectRef"] = bound
    path = path_of("api/v1", "serviceaccounts", "default", "default", "token")
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    answer = await cluster.api.request("POST", path, body=body)
    token: str = answer["status"]["token"]
    return token


async def test_a_job_rests_goes_on_and_expires(player: Player) -> None:
    await player.create()
    async with operator():
        await player.prepared()
        await player.start(f"{player.name}-train-1")
        await player.phase("Running")
        await player.edit(suspend=True)
        await until(lambda: _lacks(player, f"{player.name}-train-1"), "the attempt's Job is deleted")
        body = await player.read()
        assert body["status"]["suspendedAttempt"] == 1
        assert body["status"]["phase"] == "Running", "its pod still lives"
        saved = {"step": 4, "path": "checkpoints/checkpoint-4", "time": stamp(datetime.now(UTC))}
        await player.gone(f"{player.name}-train-1", 40, report("train", 40, checkpoint=saved))
        body = await player.phase("Suspended")
        assert body["status"]["checkpoint"]["step"] == 4
        await until(lambda: _has(player, "Suspended"), "the event, which no other operator would tell")
    async with operator():  # which knows nothing of the rest
        await player.edit(suspend=False)
        await player.start(f"{player.name}-train-2")
        await player.phase("Running")
        await player.end(f"{player.name}-train-2", 0, report("train"))
        body = await player.phase("Succeeded")
        assert "failedAttempts" not in body["status"]
        await until(lambda: _has(player, "Succeeded"), "the event")
        assert await player.told() == ["CheckpointSaved", "Resumed", "Succeeded", "Suspended"]
    await player.edit(ttlSecondsAfterFinished=0)  # while nobody looks
    async with operator():

        async def gone() -> bool:
            return await player.cluster.finetunejob("default", player.name) is None

        await until(gone, "its time to live is over")
    claim = path_of("api/v1", "persistentvolumeclaims", "default", f"{player.name}-output")
    assert "deletionTimestamp" not in (await player.cluster.api.request("GET", claim))["metadata"]


async def _lacks(player: Player, job: str) -> bool:
    return job not in await player.jobs()


async def test_a_job_that_is_created_at_rest_waits_for_its_owner(player: Player) -> None:
    await player.create(runPolicy={"suspend": True})
    async with operator():
        await player.phase("Suspended")
        assert await player.jobs() == []
        await player.edit(suspend=False)
        await player.phase("Preparing")


async def test_what_the_server_refuses_ends_the_job_with_its_words(player: Player) -> None:
    await player.create(resources={"cpu": "2", "memory": "8Gi", "gpuResource": "no such"}, distributed__gpusPerNode=1)
    async with operator():
        await player.prepared()
        body = await player.phase("Failed")
        await until(lambda: _has(player, "Failed"), "the event")
    assert body["status"]["failure"]["reason"] == "SpecInvalid"
    assert "no such" in body["status"]["failure"]["message"]


async def test_pods_are_read_as_new_as_they_are_from_a_cache_that_may_be_behind(player: Player) -> None:
    pods = path_of("api/v1", "pods", "default")
    labels = {names.JOB_LABEL: player.name}
    for number in range(10):
        name = f"{player.name}-{number}"
        spec = {"containers": [{"name": "trainer", "image": "i"}]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec}
        await player.cluster.api.request("POST", pods, body=body)
        assert [pod["metadata"]["name"] for pod in await player.cluster.pods("default", player.name)] == [name]
        now = {"gracePeriodSeconds": 0}
        await player.cluster.api.request("DELETE", path_of("api/v1", "pods", "default", name), body=now)
        assert await player.cluster.pods("default", player.name) == []
    never = {"resourceVersion": str(2**50), "resourceVersionMatch": "NotOlderThan"}
    with pytest.raises(ApiError) as told:
        await player.cluster.api.request("GET", pods, query=never)
    assert told.value.status == GATEWAY_TIMEOUT, "what says that the cache has not come to it"


async def test_a_lost_watch_ends_the_operator(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_operator.main.Watches.look_seconds", 0.05)
    task = asyncio.create_task(run(settings_of()))

    async def watched() -> Any:
        return [one for one in asyncio.all_tasks() if one.get_name().startswith("watcher for pods")]

    (watch,) = await until(watched, "pods are watched")
    await player_settles(player)
    watch.cancel()
    with pytest.raises(PartEndedError, match="watcher for pods"):
        await asyncio.wait_for(task, PATIENCE)
