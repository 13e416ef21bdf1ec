"""``finetune watch`` and ``finetune logs``."""

from __future__ import annotations

from typing import Any

import pytest
from fake_kubectl import FakeKubectl, job
from finetune_cli import watch as watching
from finetune_cli.main import app
from typer.testing import CliRunner

OUTPUT = {"uri": "pvc://night-output/night-0123/adapter"}
DONE = {"step": 10, "totalSteps": 10, "initialEvalLoss": 3.0, "evalLoss": 1.5}


def progress(step: int) -> dict[str, Any]:
    return {"step": step, "totalSteps": 10, "loss": 2.5}


def events(*bodies: dict[str, Any], kind: str = "MODIFIED") -> str:
    import json  # noqa: PLC0415

    return "".join(json.dumps({"type": kind, "object": body}, indent=4) + "\n" for body in bodies)


def watch() -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["watch", "night", "-n", "research"])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "SHORTEST_WAIT", 0.0)
    monkeypatch.setattr(watching, "LONGEST_WAIT", 0.0)


def test_it_is_followed_to_its_result(fake: FakeKubectl) -> None:
    checkpoint = {"step": 5, "path": "checkpoints/checkpoint-5", "time": "2026-01-01T00:00:00Z"}
    told = events(
        job("Running", progress=progress(3), attempt=1),
        job("Running", progress=progress(5), attempt=2, checkpoint=checkpoint),
        job("Succeeded", progress=DONE, output=OUTPUT),
    )
    fake.answer("--watch", out=told)
    fake.answer("get", "night", out=job("Preparing"))
    code, out, _ = watch()
    assert code == 0
    for piece in ("Preparing", "step 3/10 30%", "attempt 2", "checkpoint at step 5", f"Succeeded: {OUTPUT['uri']}"):
        assert piece in out
    assert "held-out loss: 3.0000 → 1.5000" in out


def condition(kind: str, status: str, message: str = "") -> dict[str, str]:
    stamp = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": status, "reason": "R", "message": message, "lastTransitionTime": stamp}


def test_what_goes_on_is_said_once_and_what_is_for_tools_is_not(fake: FakeKubectl) -> None:
    accepted = condition("Accepted", "True", "The manifest is valid.")
    waiting = condition("Reconciling", "True", "No node takes the pod.")
    noise = [
        condition("Complete", "False", "noise"),
        condition("Failed", "False"),
        condition("Ready", "False", "noise"),
    ]
    told = events(
        job("Queued", conditions=[accepted, waiting, *noise]),
        job("Queued", conditions=[accepted, waiting, *noise], attempt=1),
        job("Suspended", conditions=[accepted, condition("Suspended", "True", "by its owner"), *noise]),
        job("Running", conditions=[accepted, condition("Suspended", "False", "resumed"), *noise]),
        job("Succeeded", output=OUTPUT),
    )
    fake.answer("--watch", out=told)
    fake.answer("get", "night", out=job("Pending", conditions=[condition("Accepted", "Unknown")]))
    lines = [line.partition(" ")[2] for line in watch()[1].splitlines()]
    assert lines.count("Accepted: The manifest is valid.") == 1
    assert lines.count("No node takes the pod.") == 1
    assert lines.count("Suspended: by its owner") == 1
    assert lines.count("Suspended no longer: resumed") == 1
    assert not any("noise" in line or "Failed" in line for line in lines)


def test_a_watch_that_breaks_is_made_anew(fake: FakeKubectl) -> None:
    fake.answer("--watch", out=events(job("Running", progress=progress(3))), err="error: gone\n", code=1, times=1)
    fake.answer("--watch", out=events(job("Succeeded", output=OUTPUT)), times=1)
    fake.answer("get", "night", out=job("Running"))
    code, out, _ = watch()
    assert code == 0
    assert "the watch broke: gone" in out


def test_a_server_that_is_away_meanwhile_is_waited_for(fake: FakeKubectl) -> None:
    fake.answer("--watch", out="", times=1)
    fake.answer("get", "night", out=job("Running"), times=1)
    fake.answer("get", "night", err="error: connection refused\n", code=1, times=2)
    fake.answer("get", "night", out=job("Succeeded", output=OUTPUT))
    fake.answer("--watch", out="")
    code, out, _ = watch()
    assert code == 0
    assert "connection refused; trying again" in out


def test_a_failure_is_told_and_is_exit_code_1(fake: FakeKubectl) -> None:
    failure = {"reason": "DatasetInvalid", "message": "rows.jsonl:17: is not JSON"}
    fake.answer("get", "night", out=job("Failed", failure=failure))
    code, out, _ = watch()
    assert code == 1
    assert "DatasetInvalid" in out
    assert "rows.jsonl:17" in out


@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [(job("Running"), "DELETED", "was deleted"), (None, "MODIFIED", "was deleted and made anew")],
)
def test_a_job_that_goes_away_ends_it(fake: FakeKubectl, body: dict[str, Any] | None, kind: str, told: str) -> None:
    other = job("Running")
    other["metadata"]["uid"] = "another"
    fake.answer("--watch", out=events(body or other, kind=kind))
    fake.answer("get", "night", out=job("Running"))
    code, _, err = watch()
    assert code == 1
    assert told in err


def pod(name: str, attempt: int, **status: Any) -> dict[str, Any]:
    labels = {"finetune.dev/attempt": str(attempt)}
    return {"metadata": {"name": name, "labels": labels, "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": status}


def test_logs_are_those_of_the_newest_pod(fake: FakeKubectl) -> None:
    fake.answer("get", "night", out=job("Running"))
    fake.answer("get", "pods", out={"items": [pod("night-1", 1), pod("night-2", 2)]})
    fake.answer("logs", "night-2", "trainer")
    result = CliRunner().invoke(app, ["logs", "night", "--step", "train"])
    assert result.exit_code == 0
    selector = next(call for call in fake.calls() if "pods" in call)
    assert "finetune.dev/job-uid=0123abcd-0000,finetune.dev/component=train" in selector


def test_when_the_pod_is_gone_the_status_still_has_the_logs_end(fake: FakeKubectl) -> None:
    failure = {"reason": "TrainerCrash", "message": "m", "logTail": "its last words", "attempt": 1}
    fake.answer("get", "night", out=job("Failed", failure=failure))
    fake.answer("get", "pods", out={"items": []})
    result = CliRunner().invoke(app, ["logs", "night"])
    assert (result.exit_code, result.stdout) == (0, "its last words\n")
    assert CliRunner().invoke(app, ["logs", "night", "--attempt", "7"]).exit_code == 1
