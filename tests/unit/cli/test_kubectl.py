"""kubectl, as the command line talks to it."""

from __future__ import annotations

import json

import pytest
from fake_kubectl import FakeKubectl, job
from finetune_cli.errors import CliError
from finetune_cli.kubectl import Kubectl, KubectlError, json_stream, parse_job


def stream(text: str) -> list[dict[str, object]]:
    return list(json_stream(iter(text.splitlines(keepends=True))))


def test_objects_that_follow_one_another_are_told_apart() -> None:
    events = [{"type": "ADDED", "object": {"a": {"}": 1}}}, {"type": "MODIFIED", "object": {"text": "}\n{"}}]
    assert stream("".join(json.dumps(event, indent=4) + "\n" for event in events)) == events
    assert stream("".join(json.dumps(event) + "\n" for event in events)) == events


def test_an_object_that_is_cut_off_is_left_out() -> None:
    whole = json.dumps({"a": 1}, indent=4) + "\n"
    assert stream(whole + whole[:6]) == [{"a": 1}]


def test_namespace_and_context_go_before_the_command() -> None:
    command = Kubectl("kubectl", "research", "prod").command("get", "pods")
    assert command == ["kubectl", "--context", "prod", "--namespace", "research", "get", "pods"]
    assert Kubectl("kubectl").command("get") == ["kubectl", "get"]


def test_a_kubectl_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECTL", "kubectl-of-nobody")
    with pytest.raises(CliError, match="kubectl-of-nobody is not on PATH"):
        Kubectl.find()


def test_its_own_message_is_the_error(fake: FakeKubectl, kubectl: Kubectl) -> None:
    fake.answer("get", err="W1231 warning\nerror: Unable to connect: refused\n", code=1)
    with pytest.raises(KubectlError, match=r"^Unable to connect: refused$"):
        kubectl.get("pods")


def test_a_job_that_does_not_exist_is_said_with_its_namespace(fake: FakeKubectl, kubectl: Kubectl) -> None:
    fake.answer("get", err='Error from server (NotFound): finetunejobs.finetune.dev "night" not found\n', code=1)
    with pytest.raises(CliError, match="no FineTuneJob 'night' in namespace research"):
        kubectl.job("night")


def test_a_resource_of_a_newer_release_is_refused_by_field() -> None:
    body = job()
    body["spec"]["warp"] = 9
    with pytest.raises(CliError, match=r"spec\.warp.*install the one of the operator's release"):
        parse_job(body)


def test_a_watch_ends_its_kubectl(fake: FakeKubectl, kubectl: Kubectl) -> None:
    event = {"type": "ADDED", "object": job("Running")}
    fake.answer("--watch", out=event)
    with kubectl.watch("ftj") as watch:
        assert [kind for kind, _ in watch.events()] == ["ADDED"]
        assert watch.error() is None
    assert watch.process.returncode is not None
