"""The operator's benchmark asks for what the API takes, and counts what the API server's log tells."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from finetune_api.reports import TerminationReport
from finetune_api.validation import validate_manifest

BENCH = Path(__file__).resolve().parents[2] / "bench/operator"
OPERATOR = "system:serviceaccount:finetune-system:operator"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def test_its_jobs_are_valid_and_its_pods_last_words_are_read(bench: Any) -> None:
    fleet = bench("fleet")
    assert validate_manifest(fleet.finetunejob("job-00001")) == []
    for report in (fleet.PREPARED, fleet.TRAINED):
        assert TerminationReport.decode(report.encode()) == report
    stages = {stage["metadata"]["name"]: stage["spec"] for stage in fleet.stages(prepare_seconds=2, train_seconds=5)}
    ends = stages["pod-of-train-ends"]
    assert ends["delay"] == {"durationMilliseconds": 5000}
    assert fleet.TRAINED.encode().decode() in ends["next"]["statusTemplate"]


def test_the_log_tells_who_wrote_what_and_when(bench: Any, tmp_path: Path) -> None:
    def event(user: str, verb: str, resource: str, second: int, code: int = 200) -> str:
        time = f"2026-11-25T12:00:{second:02}.000000Z"
        resource, _, sub = resource.partition("/")
        target = {"resource": resource, "name": "tune", **({"subresource": sub} if sub else {})}
        told = {"user": {"username": user}, "verb": verb, "objectRef": target, "responseStatus": {"code": code}}
        return json.dumps({**told, "requestReceivedTimestamp": time, "stageTimestamp": time}) + "\n"

    log = tmp_path / "audit.log"
    first = event("admin", "create", "finetunejobs", 0, 201)
    log.write_text(
        first
        + event("admin", "create", "finetunejobs", 1, 201)
        + event(OPERATOR, "get", "trainingprofiles", 2, 404)
        + event(OPERATOR, "create", "jobs", 3, 201)
        + event(OPERATOR, "patch", "finetunejobs/status", 4)
        + '{"it is still being writ'
    )
    account = bench("audit").read(log, OPERATOR, offset=len(first))
    assert (account.writes, account.reads) == (2, 1)
    assert account.operator["patch", "finetunejobs/status"] == 1
    assert account.refused == {("get", "trainingprofiles", 404): 1}
    assert account.everybody == {"admin": 1, OPERATOR: 2}
    assert (account.created["jobs", "tune"][0] - account.asked["tune"]).total_seconds() == 2
