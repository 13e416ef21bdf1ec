"""The operator, as a process of its own, lives on the rights that the chart gives it, in both modes.

The tests act for what a control plane alone has not: they make pods, and say how Jobs and pods fare.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import Body, of_kind, program, render
from finetune_operator.core import names
from kubernetes import client, watch
from manifests import finetunejob
from operator_process import OperatorProcess, running_operator
from template_cases import chat_template

GROUP, VERSION = "finetune.dev", "v1alpha1"
ACCOUNT = "tuner-finetune-operator"
SECRET = "tuner-finetune-operator-tls"
TAKEN_OVER_WITHIN = 20
"""Seconds until another replica acts."""
OWN = {"tls_secret": SECRET, "lease": ACCOUNT}
"""What the chart tells the operator of its own objects."""
RIGHTS = ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


class Team:
    """A namespace with FineTuneJobs, seen by an administrator."""

    def __init__(self, api: client.ApiClient, name: str) -> None:
        self.name = name
        self.core, self.batch = client.CoreV1Api(api), client.BatchV1Api(api)
        self.custom = client.CustomObjectsApi(api)
        self._api = api

    def start(self, job: str, **edits: Any) -> None:
        """Create a FineTuneJob."""
        body = finetunejob(job, **edits)
        self.custom.create_namespaced_custom_object(GROUP, VERSION, self.name, "finetunejobs", body)

    def until(self, job: str, holds: Callable[[Body], bool], seconds: int = 60) -> Body:
        """The FineTuneJob's status once ``holds``."""
        last: Body = {}
        listing = self.custom.list_namespaced_custom_object
        for event in watch.Watch().stream(
            listing, GROUP, VERSION, self.name, "finetunejobs",
            field_selector=f"metadata.name={job}", timeout_seconds=seconds,
        ):  # fmt: skip
            last = event["object"].get("status") or {}
            if holds(last):
                return last
        raise AssertionError(f"{job} is not as expected after {seconds} s: {json.dumps(last, indent=1)}")

    def expires(self, job: str) -> None:
        """Give a finished FineTuneJob no time to live, and see it go."""
        listing, merge = self.custom.list_namespaced_custom_object, {"_content_type": "application/merge-patch+json"}
        seen = listing(GROUP, VERSION, self.name, "finetunejobs")["metadata"]["resourceVersion"]
        patch = {"spec": {"runPolicy": {"ttlSecondsAfterFinished": 0}}}
        self.custom.patch_namespaced_custom_object(GROUP, VERSION, self.name, "finetunejobs", job, patch, **merge)
        selector = f"metadata.name={job}"
        stream = watch.Watch().stream(
            listing, GROUP, VERSION, self.name, "finetunejobs",
            field_selector=selector, resource_version=seen, timeout_seconds=60,
        )  # fmt: skip
        assert any(event["type"] == "DELETED" for event in stream), f"{job} is there after 60 s"

    def job(self, name: str) -> Body:
        """A Job."""
        body: Body = self._api.sanitize_for_serialization(self.batch.read_namespaced_job(name, self.name))
        return body

    def pod_of(self, job: str, status: Body) -> Body:
        """Make the pod that the Job's controller would, and say how it fares."""
        body = self.job(job)
        template = body["spec"]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"]}
        pod["metadata"] |= {"name": f"{job}-0", "namespace": self.name}
        pod["metadata"]["labels"] |= {"batch.kubernetes.io/job-name": job}
        pod["spec"]["nodeName"] = "nowhere"
        self.core.create_namespaced_pod(self.name, pod)
        return self.fares(f"{job}-0", status)

    def fares(self, pod: str, status: Body) -> Body:
        """Write a pod's status as a kubelet does."""
        merge = {"_content_type": "application/merge-patch+json"}
        told = self.core.patch_namespaced_pod_status(pod, self.name, {"status": status}, **merge)
        body: Body = self._api.sanitize_for_serialization(told)
        return body

    def deleted(self, job: str) -> None:
        """See a Job deleted: by background deletion, the API server alone keeps it until a garbage collector comes."""
        listing, selector = self.batch.list_namespaced_job, f"metadata.name={job}"
        found = listing(self.name, field_selector=selector)
        if any(one.metadata.deletion_timestamp is None for one in found.items):
            seen = found.metadata.resource_version
            stream = watch.Watch().stream(
                listing, self.name, field_selector=selector, resource_version=seen, timeout_seconds=60
            )
            assert any(event["type"] == "DELETED" or event["object"].metadata.deletion_timestamp for event in stream)

    def complete(self, job: str) -> None:
        """Say of a Job what its controller says when all is done."""
        time = "2026-01-01T00:00:00Z"
        conditions = [
            {"type": kind, "status": "True", "lastTransitionTime": time, "lastProbeTime": time, "reason": "Done"}
            for kind in ("SuccessCriteriaMet", "Complete")
        ]
        status = {"startTime": time, "completionTime": time, "succeeded": 1, "conditions": conditions}
        self.batch.patch_namespaced_job_status(job, self.name, {"status": status})


def container(state: Body, phase: str) -> Body:
    """Status of a pod whose container is in ``state``."""
    one = {
        "name": "trainer", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state,
    }  # fmt: skip
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return {"phase": phase, "conditions": [scheduled], "containerStatuses": [one]}


WAITING = container({"waiting": {"reason": "ContainerCreating"}}, "Pending")
RUNNING = container({"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "Running")


@pytest.fixture
def install(api: client.ApiClient, kubeconfig: Path, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Apply the chart's accounts and roles alone, and give a kubeconfig of the operator's account."""
    core = client.CoreV1Api(api)
    made: list[Body] = []

    def install(namespace: str, team: str, values: Body) -> Path:
        for name in (namespace, team):
            core.create_namespace({"metadata": {"name": name}})
        core.create_namespaced_service_account(team, {"metadata": {"name": "default"}})
        made.extend(of_kind(render(values, namespace=namespace), *RIGHTS))
        _kubectl(kubeconfig, "apply", "--server-side", "-f", "-", bodies=made)
        token = core.create_namespaced_service_account_token(ACCOUNT, namespace, {"spec": {"expirationSeconds": 3600}})
        document = yaml.safe_load(kubeconfig.read_text())
        for user in document["users"]:
            user["user"] = {"token": token.status.token}
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(document))
        return path

    yield install
    _kubectl(kubeconfig, "delete", "--wait=false", "-f", "-", bodies=made)


def _kubectl(kubeconfig: Path, *arguments: str, bodies: list[Body]) -> None:
    command = [program("kubectl"), "--kubeconfig", str(kubeconfig), *arguments]
    result = subprocess.run(command, input=yaml.safe_dump_all(bodies), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_all_namespaces(api: client.ApiClient, install: Callable[..., Path]) -> None:
    """Every call that the operator makes, in one life of jobs: no refusal is left in its log."""
    team = Team(api, "team-all")
    kubeconfig = install("tuner-all", team.name, {})
    core = client.CoreV1Api(api)
    with running_operator(kubeconfig, "tuner-all", **OWN) as operator:
        operator.wait_for("ready: all namespaces")
        assert operator.get("/readyz") == "ok"
        assert core.read_namespaced_secret(SECRET, "tuner-all").data.keys() >= {"tls.crt"}
        team.custom.create_namespaced_custom_object(GROUP, VERSION, team.name, "chattemplates", chat_template("mine"))
        for name in ("runs", "fails", "waits", "taken"):
            if name == "taken":
                team.batch.create_namespaced_job(team.name, _somebody_elses_job(names.prepare_job(name)))
            team.start(name, template={"ref": "mine"} if name == "runs" else {})
        for name in ("runs", "fails", "waits"):
            team.until(name, lambda status: status.get("phase") == "Preparing")

        _is_told_that_a_name_is_taken(team)
        _frees_what_a_failed_job_holds(team)
        _reads_events_of_a_pod_that_waits(team)
        _lets_two_nodes_find_each_other(team)
        _trains(team, operator)
    _assert_nothing_was_refused(operator)


def _somebody_elses_job(name: str) -> Body:
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}
    return {"metadata": {"name": name}, "spec": {"suspend": True, "template": {"spec": pod}}}


def _is_told_that_a_name_is_taken(team: Team) -> None:
    status = team.until("taken", lambda status: "belongs to somebody else" in json.dumps(status))
    assert status["phase"] == "Pending"


def _frees_what_a_failed_job_holds(team: Team) -> None:
    prepare = names.prepare_job("fails")
    # No exit code of the trainer's own: its Job would try again, so it is for the operator to end it.
    team.pod_of(prepare, container({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "Failed"))
    team.until("fails", lambda status: status.get("phase") == "Failed")
    team.deleted(prepare)


def _reads_events_of_a_pod_that_waits(team: Team) -> None:
    pod = team.pod_of(names.prepare_job("waits"), WAITING)
    told = 'configmap "rows" not found'
    meta = pod["metadata"]
    event = {
        "metadata": {"name": "mount", "namespace": team.name},
        "involvedObject": {"kind": "Pod", "name": meta["name"], "namespace": team.name, "uid": meta["uid"]},
        "reason": "FailedMount",
        "message": told,
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "type": "Warning",
    }
    team.core.create_namespaced_event(team.name, event)
    team.until("waits", lambda status: "ConfigMap rows" in json.dumps(status))


def _starts_to_train(team: Team, job: str, **spec: Any) -> None:
    team.start(job, **spec)
    team.until(job, lambda status: status.get("phase") == "Preparing")
    team.complete(names.prepare_job(job))
    team.until(job, lambda status: status.get("phase") == "Queued")


def _lets_two_nodes_find_each_other(team: Team) -> None:
    _starts_to_train(team, "pair", distributed={"nodes": 2}, output={"claim": {"accessMode": "ReadWriteMany"}})
    team.core.read_namespaced_service(names.service("pair"), team.name)


def _trains(team: Team, operator: OperatorProcess) -> None:
    team.complete(names.prepare_job("runs"))
    team.until("runs", lambda status: status.get("phase") == "Queued")
    pod = team.pod_of(names.train_job("runs", 1), RUNNING)
    team.until("runs", lambda status: status.get("phase") == "Running")
    answer = _post_progress(team, operator, pod, {"version": 1, "attempt": 1, "progress": {"step": 3, "totalSteps": 9}})
    assert answer == {"message": "taken"}
    team.until("runs", lambda status: (status.get("progress") or {}).get("step") == 3)
    team.complete(names.train_job("runs", 1))
    team.until("runs", lambda status: status.get("phase") == "Succeeded")
    events = team.core.list_namespaced_event(team.name, field_selector="involvedObject.name=runs").items
    assert [event.reason for event in events if event.reason == "Succeeded"]
    team.expires("runs")


def _post_progress(team: Team, operator: OperatorProcess, pod: Body, report: Body, job: str = "runs") -> Any:
    """As the pod does: with a token that is bound to it, trusting the operator's authority."""
    meta = pod["metadata"]
    bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
    asked = {"spec": {"audiences": [names.MANAGER], "expirationSeconds": 3600, "boundObjectRef": bound}}
    token = team.core.create_namespaced_service_account_token("default", team.name, asked).status.token
    authority = team.core.read_namespaced_config_map(names.CA_CONFIG_MAP, team.name).data[names.CA_KEY]
    request = urllib.request.Request(
        f"https://localhost:{operator.progress_port}/v1/namespaces/{team.name}/finetunejobs/{job}/progress",
        data=json.dumps(report).encode(),
        headers={"Authorization": f"Bearer {token}"},
    )
    context = ssl.create_default_context(cadata=authority)
    with urllib.request.urlopen(request, timeout=20, context=context) as response:  # noqa: S310 - https, above
        return json.load(response)


def test_named_namespaces(api: client.ApiClient, install: Callable[..., Path]) -> None:
    """With roles in one namespace alone. The Secret is there already, without a certificate: it is filled."""
    team = Team(api, "team-one")
    kubeconfig = install("tuner-one", team.name, {"watchNamespaces": [team.name]})
    core = client.CoreV1Api(api)
    core.create_namespaced_secret("tuner-one", {"metadata": {"name": SECRET}})
    with running_operator(kubeconfig, "tuner-one", watch_namespaces=team.name, **OWN) as operator:
        operator.wait_for(f"ready: {team.name}")
        filled = core.read_namespaced_secret(SECRET, "tuner-one")
        assert filled.data.keys() >= {"ca.crt", "tls.key"}
        team.start("runs")
        team.until("runs", lambda status: status.get("phase") == "Preparing")
        _trains(team, operator)
    _assert_nothing_was_refused(operator)


def test_of_two_replicas_one_acts_and_when_it_is_killed_the_other_does(
    api: client.ApiClient, install: Callable[..., Path]
) -> None:
    """What a pod posts to the one that stands by reaches the one that acts."""
    team = Team(api, "team-two")
    kubeconfig = install("tuner-two", team.name, {})
    core, coordination = client.CoreV1Api(api), client.CoordinationV1Api(api)
    # The name of the progress endpoint is that of one of them alone; the certificate is for localhost in both.
    replicas = [{"pod_name": name, "pod_ip": "127.0.0.1", **OWN} for name in ("first", "second")]
    with running_operator(kubeconfig, "tuner-two", **replicas[0]) as first:
        first.wait_for("ready: all namespaces")
        with running_operator(kubeconfig, "tuner-two", **replicas[1]) as second:
            second.wait_for("standing by: first acts")
            assert second.get("/readyz") == "ok"
            assert ["finetune_leader 1.0" in one.get("/metrics") for one in (first, second)] == [True, False]
            _starts_to_train(team, "before")
            pod = team.pod_of(names.train_job("before", 1), RUNNING)
            team.until("before", lambda status: status.get("phase") == "Running")
            report = {"version": 1, "attempt": 1, "progress": {"step": 3, "totalSteps": 9}}
            assert _post_progress(team, second, pod, report, job="before") == {"message": "taken"}
            team.until("before", lambda status: (status.get("progress") or {}).get("step") == 3)

            first.process.kill()
            killed = time.monotonic()
            team.start("between")
            team.until("between", lambda status: status.get("phase") == "Preparing", seconds=30)
            assert time.monotonic() - killed < TAKEN_OVER_WITHIN
            assert coordination.read_namespaced_lease(ACCOUNT, "tuner-two").spec.holder_identity == "second"
            report["progress"]["step"] = 4
            assert _post_progress(team, second, pod, report, job="before") == {"message": "taken"}
            team.until("before", lambda status: (status.get("progress") or {}).get("step") == 4)
            found = sorted(job.metadata.name for job in team.batch.list_namespaced_job(team.name).items)
            assert found == [names.prepare_job("before"), names.train_job("before", 1), names.prepare_job("between")]
    _assert_nothing_was_refused(first)
    _assert_nothing_was_refused(second)
    assert core.read_namespaced_secret(SECRET, "tuner-two").data.keys() >= {"tls.crt"}
    assert not coordination.read_namespaced_lease(ACCOUNT, "tuner-two").spec.holder_identity, "given up at its end"


def _assert_nothing_was_refused(operator: OperatorProcess) -> None:
    refused = [line for line in operator.log if "forbidden" in line.lower() or ": 403 " in line]
    assert refused == []
