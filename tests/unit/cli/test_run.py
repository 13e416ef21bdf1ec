"""``finetune run``: the same manifest on this machine, with a trainer that obeys the contract."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetune_cli import run as running
from finetune_cli.documents import parse
from finetune_cli.errors import CliError
from finetune_cli.local_job import cache_directory, find_job, plan, threads
from finetune_cli.main import app
from template_cases import chat_template
from typer.testing import CliRunner

FAKE = Path(__file__).resolve().parents[2] / "support/fake_trainer.py"
COMMAND = (sys.executable, "-SE", str(FAKE))
MANIFEST = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: rows
data:
  rows.jsonl: |
    {"instruction": "a", "output": "b"}
    {"instruction": "c", "output": "d"}
---
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: night
spec:
  model:
    source: hf://org/model
  dataset:
    sources:
      - uri: configmap://rows/rows.jsonl
  method:
    lora: {}
  resources:
    cpu: 1500m
  evaluation:
    prompts: ["Hello?"]
"""


class Runs:
    """Runs of one manifest in one directory."""

    def __init__(self, directory: Path) -> None:
        self.manifest, self.output = directory / "job.yaml", directory / "out"
        self.manifest.write_text(MANIFEST)

    def __call__(self, *options: str) -> tuple[int, str, str]:
        arguments = ["run", "-f", str(self.manifest), "-o", str(self.output), *options]
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    def starts(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.output / "starts.jsonl").read_text().splitlines()]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    original = running.run
    monkeypatch.setattr(running, "run", lambda paths, **options: original(paths, **options, trainer=COMMAND))
    return Runs(tmp_path)


def test_both_steps_run_and_the_result_is_shown(run: Runs) -> None:
    code, out, _ = run()
    assert code == 0
    for piece in (
        "2 samples in 2 sequences", "10 of 1,000 parameters trained: 99.0 % fewer", "step 4/4 100%",
        "checkpoint at step 4", "Succeeded: ", "out/adapter", "held-out loss: 3.0000 → 1.5000", "Ahoy!",
        "training loss",
    ):  # fmt: skip
        assert piece in out
    assert [start["step"] for start in run.starts()] == ["prepare", "train"]


def test_the_trainer_gets_a_pods_surroundings(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_PROGRESS_URL", "https://somebody.else")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    run()
    assert run.starts()[1] == {
        "step": "train",
        "OMP_NUM_THREADS": "2",  # 1500m, rounded up as for a pod
        "FINETUNE_ATTEMPT": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "FINETUNE_PROGRESS_URL": None,
    }


def test_a_failing_prepare_ends_it_before_training(run: Runs) -> None:
    run.manifest.write_text(MANIFEST.replace('"output": "d"}', '"output": '))
    code, out, err = run()
    assert code == 1
    assert "DatasetInvalid" in out
    assert "rows.jsonl:2: is not JSON" in out
    assert "What to change" in out
    assert "prepare.log" in err
    assert [start["step"] for start in run.starts()] == ["prepare"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("badly", ["NonFiniteLoss", "the loss of step 2 is nan", "Lower learningRate", "its end"]),
        ("crash", ["TrainerCrash", "exit code 1 and no report", "Traceback: the last words"]),
        ("kill", ["TrainerCrash", "SIGKILL: most often because memory ran out"]),
    ],
)
def test_a_failing_training_says_why(run: Runs, monkeypatch: pytest.MonkeyPatch, how: str, told: list[str]) -> None:
    monkeypatch.setenv("FAKE_TRAINER", how)
    code, out, err = run()
    assert code == 1
    for piece in told:
        assert piece in out
    assert "train.log" in err


@pytest.mark.parametrize("told_by", [signal.SIGINT, signal.SIGHUP], ids=["Ctrl-C", "closed terminal"])
def test_told_to_end_it_saves_a_checkpoint_and_the_next_run_goes_on_from_it(run: Runs, told_by: signal.Signals) -> None:
    # A runner in the background, or under nohup, has these ignored, and so would have its children.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
        f"import sys; from finetune_cli import run; "
        f"sys.exit(run.run([{str(run.manifest)!r}], output=__import__('pathlib').Path({str(run.output)!r}), "
        f"trainer={COMMAND!r}))"
    )
    command = [sys.executable, "-c", program]
    environment = os.environ | {"FAKE_TRAINER": "wait"}
    told = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            told.append(line)
            if "checkpoint at step 1" in line:
                process.send_signal(told_by)
        stderr = process.stderr.read()
    assert process.returncode == 130
    assert "stopping" in "".join(told)
    assert "stopped with a checkpoint of step 1" in stderr
    assert f"finetune run -f {run.manifest}" in stderr

    code, out, _ = run()
    assert code == 0
    assert "attempt 2" in out
    assert "checkpoint at step 1" not in out  # old news
    assert "step 2/4" in out
    assert run.starts()[-1]["FINETUNE_ATTEMPT"] == "2"


def test_a_directory_serves_one_run_at_a_time(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    with running._held(run.output):
        code, _, err = run()
    assert code == 1
    assert "another finetune run is at work" in err


@pytest.mark.parametrize(("old", "new"), [("lora: {}", "lora: {rank: 4}"), ('"output": "d"', '"output": "e"')])
def test_a_directory_belongs_to_one_manifest(run: Runs, old: str, new: str) -> None:
    run()
    run.manifest.write_text(MANIFEST.replace(old, new))
    code, _, err = run()
    assert code == 1
    assert "another version of" in err
    assert len(run.starts()) == 2


def test_an_invalid_manifest_is_refused_with_its_line(run: Runs) -> None:
    run.manifest.write_text(MANIFEST.replace("cpu: 1500m", "cpus: 2"))
    code, out, err = run()
    assert code == 1
    assert "job.yaml:23: spec.resources.cpus: unknown field" in out
    assert "correct it first" in err
    assert not run.output.exists()


def test_an_unwritable_output_is_a_sentence(run: Runs) -> None:
    run.output.write_text("a file")
    code, _, err = run()
    assert code == 1
    assert "cannot be written" in err


def test_missing_libraries_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.importlib.util, "find_spec", lambda name: None if name == "torch" else object())
    manifest = tmp_path / "job.yaml"
    manifest.write_text(MANIFEST)
    with pytest.raises(CliError, match=r"torch is not installed: pip install 'finetune-operator\[trainer\]'"):
        running.run([str(manifest)], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- the plan for this machine ------------------------------------------------------------------------------------


def planned(text: str, tmp_path: Path, **environment: str) -> Any:
    documents = parse(text, "job.yaml")
    document, job = find_job(documents, None)
    assert document.kind == "FineTuneJob"
    return plan(
        job, documents, output=tmp_path / "out", cache=tmp_path / "cache", work=tmp_path / "w", environment=environment
    )


def test_sources_become_files_and_the_hub_stays(tmp_path: Path) -> None:
    made = planned(MANIFEST, tmp_path)
    config = made.config
    assert (config.model.uri, config.model.path) == ("hf://org/model", None)
    path = Path(config.sources[0].path)
    assert path.name == "rows.jsonl"
    assert config.sources[0].uri == "configmap://rows/rows.jsonl"
    assert not path.exists()
    made.lay_out()
    assert path.read_text().count("\n") == 2
    assert config.paths.cache == str(tmp_path / "cache")


def test_local_files_and_binary_data(tmp_path: Path) -> None:
    text = MANIFEST.replace("hf://org/model", "file:///models/m").replace(
        "data:\n  rows.jsonl: |\n", 'binaryData:\n  rows.jsonl: "e30K"\nunused:\n  x: |\n'
    )
    made = planned(text, tmp_path)
    assert made.config.model.path == "/models/m"
    assert list(made.files.values()) == [b"{}\n"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("hf://org/model", "pvc://claim/m", "spec.model.source: pvc://claim/m is a claim of a cluster; give file://"),
        (
            "method:\n",
            "distributed: {nodes: 2}\n  output: {claim: {name: c}}\n  method:\n",
            "nodes is 2, and this is one",
        ),
        ("configmap://rows/rows.jsonl", "configmap://other/rows.jsonl", "is in none of these files"),
        ("configmap://rows/rows.jsonl", "configmap://rows/no.jsonl", "has no key 'no.jsonl'"),
        ("configmap://rows/rows.jsonl", "configmap://rows/a/b", "a ConfigMap's keys have no '/'"),
        ("configmap://rows/rows.jsonl", "file://rows.jsonl", "must be absolute"),
        ("name: rows\n", "name: rows\n  namespace: other\n", ""),
    ],
)
def test_what_only_a_cluster_has_is_refused(tmp_path: Path, old: str, new: str, told: str) -> None:
    text = MANIFEST.replace(old, new, 1)
    if not told:  # a ConfigMap of another namespace than the job's
        text = text.replace("name: night\n", "name: night\n  namespace: research\n")
        told = "is in none of these files"
    with pytest.raises(CliError) as caught:
        planned(text, tmp_path)
    assert told in str(caught.value)


TEMPLATE = yaml.safe_dump(chat_template("ours"))


def test_a_chat_template_is_taken_from_the_files(tmp_path: Path) -> None:
    text = MANIFEST.replace("  method:\n", "  template: {ref: ours}\n  method:\n")
    made = planned(f"{TEMPLATE}---\n{text}", tmp_path)
    assert made.config.chat_template is not None
    assert made.config.chat_template.stop_words == ["<|end|>"]
    with pytest.raises(CliError, match="ChatTemplate 'ours' is in none of these files"):
        planned(text, tmp_path)
    broken = yaml.safe_dump(chat_template("ours", stopWords=[]))
    with pytest.raises(CliError, match="would be refused"):
        planned(f"{broken}---\n{text}", tmp_path)


def test_a_secret_becomes_the_environments_token(tmp_path: Path) -> None:
    text = MANIFEST.replace("hf://org/model", "hf://org/model\n    secretRef: {name: hub}")
    with pytest.raises(CliError, match=r"spec\.model\.secretRef names a Secret.*export HF_TOKEN"):
        planned(text, tmp_path)
    made = planned(text, tmp_path, HF_TOKEN="t")
    assert made.config.model.token_env == "HF_TOKEN"
    assert made.notes == ["spec.model.secretRef: the token is taken from HF_TOKEN"]
    assert "t" not in made.config.to_json().split('"')


def test_credentials_of_a_store_are_those_of_the_environment(tmp_path: Path) -> None:
    text = MANIFEST.replace("configmap://rows/rows.jsonl", "s3://bucket/rows.jsonl\n        secretRef: {name: store}")
    with pytest.raises(CliError, match="export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        planned(text, tmp_path)
    made = planned(text, tmp_path, AWS_ACCESS_KEY_ID="k", AWS_SECRET_ACCESS_KEY="s")
    assert made.config.sources[0].credentials_env == ""
    assert "spec.dataset.sources[0].secretRef: the credentials are taken from" in made.notes[0]


def test_several_jobs_need_a_name() -> None:
    documents = parse(f"{MANIFEST}---\n{MANIFEST.replace('name: night', 'name: day')}", "job.yaml")
    with pytest.raises(CliError, match="several FineTuneJobs in these files: night, day"):
        find_job(documents, None)
    assert find_job(documents, "day")[1].metadata.name == "day"
    with pytest.raises(CliError, match="no FineTuneJob 'dusk' in these files; there is: night, day"):
        find_job(documents, "dusk")


@pytest.mark.parametrize(("cpu", "count"), [("2", 2), ("500m", 1), ("1500m", 2), ("2.5", 3), ("1k", 1000)])
def test_threads(cpu: str, count: int) -> None:
    assert threads(cpu) == count


def test_the_cache_is_where_the_seed_goes() -> None:
    assert cache_directory({"FINETUNE_CACHE": "/c"}) == Path("/c/model")
    assert cache_directory({"XDG_CACHE_HOME": "/x"}) == Path("/x/finetune-operator/model")
    assert cache_directory({}) == Path.home() / ".cache/finetune-operator/model"
