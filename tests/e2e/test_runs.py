"""Jobs that go well: what the resource says on the way, and what lies in the volume at the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from finetune_cli.kubectl import Kubectl, KubectlError
from finetune_operator.core import names
from installed import PROFILE, json_of, metrics
from team import Team, condition
from template_cases import chat_template
from tiny_jobs import PAIRS, ROWS, tiny_job

OWN_FORMAT = {
    "formatSystem": ["<|im_start|>{{content}}<|im_end|>\n"],
    "formatUser": ["<|im_start|>Question: {{content}}<|im_end|>\n<|im_start|>Answer: "],
    "formatAssistant": ["{{content}}<|im_end|>\n"],
    "stopWords": ["<|im_end|>"],
}


@pytest.fixture(scope="module")
def team(make_team: Callable[[str], Team]) -> Team:
    """All jobs are started at once: most of their time is the start of Python."""
    team = make_team("e2e-runs")
    team.config_map("pairs", pairs__jsonl=PAIRS)
    team.start(tiny_job("adapter"))
    team.template(chat_template("ours", **OWN_FORMAT))
    team.start(tiny_job("whole", method={"full": {}}, dataset__packing=True, template={"ref": "ours"}))
    team.start(
        tiny_job(
            "quantized",
            method={},
            quantization={"bits": 4},
            hyperparameters__microBatchSize="auto",
            output__merge={"dtype": "fp32"},
        )
    )
    sources = [{"uri": "configmap://pairs/pairs.jsonl", "format": "preference"}]
    team.start(tiny_job("preferred", stage="dpo", dataset__sources=sources))
    return team


def test_an_adapter_is_trained_and_every_step_is_told(team: Team, kubectl: Kubectl) -> None:
    status = team.until_phase("adapter", "Succeeded")
    assert team.phases("adapter") == ["Preparing", "Queued", "Running", "Succeeded"]
    for kind, expected in (
        ("Accepted", "True"), ("Prepared", "True"), ("Complete", "True"), ("Failed", "False"),
        ("Ready", "True"), ("Reconciling", "False"), ("Stalled", "False"),
    ):  # fmt: skip
        assert condition(status, kind)["status"] == expected, kind
    progress = status["progress"]
    assert (progress["step"], progress["totalSteps"], progress["percent"]) == (6, 6, 100)
    assert progress["loss"] > 0
    assert progress["evalLoss"] < progress["initialEvalLoss"]
    assert status["dataset"]["samples"] == 18
    assert status["dataset"]["validationSamples"] == 6
    assert 0 < status["dataset"]["supervisedTokens"] < status["dataset"]["tokens"]
    assert 0 < status["model"]["trainableParameters"] < status["model"]["parameters"]
    assert status["attempt"] == 1
    assert status["samples"][0]["prompt"] == "Name colour 3."

    told = team.events("adapter", until="Succeeded")
    assert [reason for reason in told if reason != "CheckpointSaved"] == ["Succeeded"]
    assert "CheckpointSaved" in told

    uri = status["output"]["uri"]
    assert uri.startswith("pvc://adapter-output/")
    _, _, path = uri.removeprefix("pvc://").partition("/")
    with team.files("adapter-output", read_only=True) as pod:
        found = set(pod.run("ls", f"/volume/{path}").split())
        log = pod.run("cat", f"/volume/{path}/../progress.jsonl")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= found
    assert [json.loads(line) for line in log.splitlines()][-1]


def test_all_weights_are_trained(team: Team) -> None:
    status = team.until_phase("whole", "Succeeded")
    assert status["method"] == "full"
    assert status["model"]["trainableParameters"] == status["model"]["parameters"]
    _, _, path = status["output"]["uri"].removeprefix("pvc://").partition("/")
    with team.files("whole-output", read_only=True) as pod:
        found = set(pod.run("ls", f"/volume/{path}").split())
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} <= found
    assert json.loads(status["chatTemplate"])["formatUser"] == OWN_FORMAT["formatUser"]
    with team.files("whole-output", read_only=True) as pod:
        assert "Question: " in pod.run("cat", f"/volume/{path}/chat_template.jinja")


def test_adapters_are_trained_on_4_bits_and_merged(team: Team) -> None:
    status = team.until_phase("quantized", "Succeeded")
    assert status["method"] == "qlora"
    assert status["memory"]["microBatchSize"] in (1, 2)
    assert status["memory"]["estimate"]["total"] > 0
    _, _, path = status["output"]["uri"].removeprefix("pvc://").partition("/")
    with team.files("quantized-output", read_only=True) as pod:
        found = set(pod.run("ls", f"/volume/{path}/../merged").split())
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= found


def test_preferences_are_learnt(team: Team) -> None:
    status = team.until_phase("preferred", "Succeeded")
    assert 0 <= status["progress"]["rewardAccuracy"] <= 1
    assert status["progress"]["evalLoss"] < status["progress"]["initialEvalLoss"]


def test_columns_say_how_far_it_is(team: Team) -> None:
    team.until_phase("adapter", "Succeeded")
    header, row = team.kubectl.run("get", "ftj", "adapter").splitlines()
    assert header.split() == ["NAME", "MODEL", "METHOD", "PHASE", "PROGRESS", "LOSS", "TOK/S", "ETA", "AGE"]
    cells = row.split()
    assert cells[:6] == ["adapter", "pvc://model/tiny", "lora", "Succeeded", "6/6", "100%"]
    wide = team.kubectl.run("get", "ftj", "adapter", "-o", "wide").splitlines()[0].split()
    assert wide[-3:] == ["GPUS", "ATTEMPT", "QUEUE"]


def test_pods_hold_no_token_but_the_one_for_progress(team: Team) -> None:
    team.until_phase("adapter", "Succeeded")
    (name,) = team.pods("adapter", names.TRAIN)
    pod = json_of(team.kubectl, "pod", name)
    assert pod["spec"]["automountServiceAccountToken"] is False
    tokens = [
        source["serviceAccountToken"]
        for volume in pod["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
        if "serviceAccountToken" in source
    ]
    assert [token["audience"] for token in tokens] == [names.MANAGER]


def test_an_accepted_manifest_cannot_be_changed(team: Team) -> None:
    team.until("adapter", lambda status: condition(status, "Accepted").get("status") == "True", "accepted")
    with pytest.raises(KubectlError, match=r"spec\.hyperparameters.*cannot be changed once"):
        team.kubectl.run(
            "patch", "ftj", "adapter", "--type=merge", "-p", '{"spec": {"hyperparameters": {"learningRate": 0.5}}}'
        )


def test_metrics_count_what_happened(team: Team, kubectl: Kubectl) -> None:
    team.until_phase("adapter", "Succeeded")
    team.until_phase("whole", "Succeeded")
    lines = metrics(kubectl).splitlines()
    assert any(line.startswith('finetune_jobs{phase="Succeeded"}') for line in lines)
    posts = [line for line in lines if line.startswith('finetune_progress_posts_total{code="200"}')]
    assert posts
    assert float(posts[0].split()[-1]) > 0


def test_the_charts_profile_is_the_one_in_use(team: Team) -> None:
    status = team.until_phase("adapter", "Succeeded")
    assert json.loads(status["profile"])["prepare"]["cpu"] == "20m"
    labels = json_of(team.kubectl, "trainingprofile", PROFILE)["metadata"]["labels"]
    assert labels["app.kubernetes.io/instance"] == "e2e"


def test_the_same_manifest_without_a_cluster_gives_the_same_adapter(
    team: Team, model: Path, kubectl: Kubectl, tmp_path: Path
) -> None:
    team.until_phase("adapter", "Succeeded")
    _finetune(kubectl, "fetch", "adapter", "--namespace", team.name, "--output", str(tmp_path / "fetched"))

    rows = tmp_path / "rows.jsonl"
    rows.write_text(ROWS)
    sources = [{"uri": f"file://{rows}"}]
    manifest = tiny_job("adapter", model={"source": f"file://{model}"}, dataset__sources=sources)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(manifest))
    places = ("--output", str(tmp_path / "here"), "--cache", str(tmp_path / "cache"))
    _finetune(kubectl, "run", "--filename", str(tmp_path / "job.yaml"), *places)

    fetched, here = (tmp_path / place / "adapter" for place in ("fetched", "here"))
    assert {path.name for path in here.iterdir()} == {path.name for path in fetched.iterdir()}
    weights = "adapter_model.safetensors"
    assert (here / weights).read_bytes() == (fetched / weights).read_bytes()


def _finetune(kubectl: Kubectl, *arguments: str) -> None:
    command = [sys.executable, "-c", "from finetune_cli.main import app; app()", *arguments]
    environment = os.environ | {"KUBECTL": kubectl.program}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
