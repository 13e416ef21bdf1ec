"""``finetune fetch``, and the pod that it reads the claim through."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from fake_kubectl import FakeKubectl, job
from finetune_cli.errors import CliError
from finetune_cli.kubectl import Kubectl
from finetune_cli.main import app
from finetune_cli.volume_pod import PodPlan, pod_body, volume_pod
from typer.testing import CliRunner

OUTPUT = {"uri": "pvc://night-output/night-0123abcd/adapter"}
PROFILE = {
    "image": {"repository": "registry.example.com/trainer:1", "pullSecrets": ["pull"]},
    "nodeSelector": {"gpu": "a100"},
    "security": {"runAsUser": 1234},
}


def archive(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def answer_with_files(fake: FakeKubectl, files: dict[str, bytes], cut: int | None = None) -> None:
    """Let `exec … tar` answer with an archive, which is no text: beside the script."""
    (fake.directory / "archive.tar").write_bytes(archive(files)[:cut])
    script = fake.directory / "fake.py"
    script.write_text(
        "import pathlib, sys\n"
        "if 'exec' in sys.argv:\n"
        "    sys.stdout.buffer.write((pathlib.Path(__file__).parent / 'archive.tar').read_bytes())\n"
        "    sys.exit(0)\n" + script.read_text()
    )
    for words in (("apply",), ("wait",), ("delete",)):
        fake.answer(*words)


def fetch(target: Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["fetch", "night", "-n", "research", "-o", str(target)])
    return result.exit_code, result.stdout.strip(), result.stderr


def test_the_result_is_copied_by_a_pod_that_is_deleted(fake: FakeKubectl, tmp_path: Path) -> None:
    fake.answer("get", "night", out=job("Succeeded", output=OUTPUT, profile=json.dumps(PROFILE)))
    answer_with_files(fake, {"./adapter/adapter_config.json": b"{}", "./progress.jsonl": b""})
    code, out, _ = fetch(tmp_path / "result")
    assert (code, out) == (0, str(tmp_path / "result/adapter"))
    assert (tmp_path / "result/adapter/adapter_config.json").read_bytes() == b"{}"
    pod = fake.stdins()[0]
    assert pod["spec"]["containers"][0]["image"] == "registry.example.com/trainer:1"
    assert pod["spec"]["nodeSelector"] == {"gpu": "a100"}
    assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["spec"]["volumes"][0]["persistentVolumeClaim"] == {"claimName": "night-output"}
    assert ["delete", "pod", pod["metadata"]["name"]] == fake.calls()[-1][2:5]


def test_without_a_profiles_image_the_jobs_own_is_used(fake: FakeKubectl, tmp_path: Path) -> None:
    fake.answer("get", "night", out=job("Succeeded", output=OUTPUT))
    body = {"spec": {"template": {"spec": {"containers": [{"image": "trainer:2"}]}}}}
    fake.answer("get", "jobs.batch", out={"items": [body]})
    answer_with_files(fake, {"./adapter/x": b""})
    assert fetch(tmp_path / "result")[0] == 0
    assert fake.stdins()[0]["spec"]["containers"][0]["image"] == "trainer:2"


@pytest.mark.parametrize("cut", [700, 100])
def test_a_stream_that_breaks_leaves_nothing(fake: FakeKubectl, tmp_path: Path, cut: int) -> None:
    fake.answer("get", "night", out=job("Succeeded", output=OUTPUT, profile=json.dumps(PROFILE)))
    answer_with_files(fake, {"./adapter/big": b"x" * 5000}, cut=cut)
    code, _, err = fetch(tmp_path / "result")
    assert code == 1
    assert "could not be copied" in err
    assert {path.name for path in tmp_path.iterdir()} == {fake.directory.name}


def test_names_that_lead_out_of_the_target_are_refused(fake: FakeKubectl, tmp_path: Path) -> None:
    fake.answer("get", "night", out=job("Succeeded", output=OUTPUT, profile=json.dumps(PROFILE)))
    answer_with_files(fake, {"../../escaped": b"x"})
    assert fetch(tmp_path / "a/result")[0] == 1
    assert not (tmp_path / "escaped").exists()


def test_a_directory_that_holds_something_is_left_alone(fake: FakeKubectl, tmp_path: Path) -> None:
    fake.answer("get", "night", out=job("Succeeded", output=OUTPUT))
    (tmp_path / "mine").write_text("")
    code, _, err = fetch(tmp_path)
    assert code == 1
    assert "not empty" in err
    assert not fake.stdins()


@pytest.mark.parametrize(
    ("status", "told"),
    [({}, "is Running and has no result yet"), ({"output": {"uri": "s3://bucket/x"}}, "which no claim holds")],
)
def test_a_job_without_a_result_in_a_claim(
    fake: FakeKubectl, tmp_path: Path, status: dict[str, Any], told: str
) -> None:
    fake.answer("get", "night", out=job("Running", **status))
    code, _, err = fetch(tmp_path / "result")
    assert code == 1
    assert told in err


def test_the_pod_meets_the_restricted_standard() -> None:
    body = pod_body(PodPlan(claim="c", image="i"), "name")
    spec, container = body["spec"], body["spec"]["containers"][0]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    assert not any("hostPath" in volume for volume in spec["volumes"])
    assert container["volumeMounts"][0]["readOnly"] is True
    assert spec["activeDeadlineSeconds"] > 0  # it ends by itself should we be killed


def test_a_pod_that_does_not_start_says_what_its_events_say(fake: FakeKubectl, kubectl: Kubectl) -> None:
    fake.answer("apply")
    fake.answer("wait", err="error: timed out waiting for the condition\n", code=1)
    events = [{"type": "Warning", "message": "0/1 nodes are available"}, {"type": "Normal", "message": "fine"}]
    fake.answer("get", "events", out={"items": events})
    fake.answer("delete")
    plan = PodPlan(claim="c", image="i")
    with pytest.raises(CliError, match=r"did not start: 0/1 nodes are available$"), volume_pod(kubectl, plan):
        pytest.fail("the block was run")
    assert "delete" in fake.calls()[-1]
