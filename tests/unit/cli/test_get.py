"""``finetune get``."""

from __future__ import annotations

from typing import Any

from fake_kubectl import FakeKubectl, job
from finetune_cli.main import app
from typer.testing import CliRunner

PROGRESS = {"step": 3, "totalSteps": 10, "loss": 2.5, "tokensPerSecond": 1234.5, "display": "3/10 30%", "eta": "1m20s"}


def get(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["get", *arguments])
    return result.exit_code, result.stdout, result.stderr


def items(*bodies: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": list(bodies)}


def test_the_table_has_the_columns_of_kubectl(fake: FakeKubectl) -> None:
    fake.answer("get", "finetunejobs.finetune.dev", out=items(job("Running", progress=PROGRESS), job()))
    code, out, _ = get()
    assert code == 0
    header, first, second = (line.split() for line in out.splitlines())
    assert header == ["NAME", "MODEL", "METHOD", "PHASE", "PROGRESS", "LOSS", "TOK/S", "ETA", "AGE"]
    expected = ["night", "hf://org/model", "lora", "Running", "3/10", "30%", "2.5000", "1,234", "1m20s"]
    assert first[:-1] == expected
    assert second[:-1] == ["night", "hf://org/model", "lora", "Pending", "-", "-", "-", "-"]


def test_all_namespaces_are_a_column_more(fake: FakeKubectl) -> None:
    fake.answer("get", "--all-namespaces", out=items(job()))
    _, out, _ = get("-A")
    assert [line.split()[0] for line in out.splitlines()] == ["NAMESPACE", "research"]


def test_no_jobs_is_said_beside_the_result(fake: FakeKubectl) -> None:
    fake.answer("get", out=items())
    assert get() == (0, "", "no FineTuneJobs here\n")


def test_one_job_in_full(fake: FakeKubectl) -> None:
    condition = {
        "type": "Prepared", "status": "True", "reason": "Ready", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    status = {
        "progress": PROGRESS | {"initialEvalLoss": 3.0, "evalLoss": 1.5},
        "conditions": [condition],
        "dataset": {"samples": 76, "tokens": 8000, "dropped": [{"reason": "empty", "count": 2, "first": "a:3"}]},
        "model": {"parameters": 1000, "trainableParameters": 10},
        "output": {"uri": "pvc://night-output/night-0123/adapter"},
        "samples": [{"prompt": "Hello?", "before": "Hm [x]", "after": "Ahoy!"}],
        "attempt": 4,
        "failedAttempts": 1,
        "disruptions": 2,
        "startTime": "2026-01-01T00:00:00Z",
        "completionTime": "2026-01-01T00:03:20Z",
    }
    fake.answer("get", "night", out=job("Succeeded", **status))
    code, out, _ = get("night")
    assert code == 0
    for piece in (
        "3.0000 → 1.5000", "pvc://night-output/night-0123/adapter", "2 rows left out: empty, first a:3", "3m20s",
        "10 of 1,000 parameters trained: 99.0 % fewer", "Prepared", "Hm [x]", "Ahoy!",
        "4 (1 failed, 2 ended by the cluster)",
    ):  # fmt: skip
        assert piece in out


def test_a_failure_says_what_to_change(fake: FakeKubectl) -> None:
    failure = {"reason": "OOMKilled", "message": "the pod used more than 4Gi", "logTail": "last [words]"}
    fake.answer("get", "night", out=job("Failed", failure=failure))
    _, out, _ = get("night")
    for piece in ("OOMKilled", "the pod used more than 4Gi", "Raise spec.resources.memory", "last [words]"):
        assert piece in out


def test_a_name_and_all_namespaces_exclude_each_other(fake: FakeKubectl) -> None:
    code, _, err = get("night", "-A")
    assert code == 2
    assert "not both" in err
