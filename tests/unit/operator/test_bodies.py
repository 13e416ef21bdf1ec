"""Bodies that training pods post: ours, and what transformers' own callback sends."""

from __future__ import annotations

import ast
import importlib.util
import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetune_api.status import Progress
from finetune_operator.core.bodies import BadBody, parse_progress


def kubeflow(**status: Any) -> bytes:
    return json.dumps({"trainerStatus": {"lastUpdatedTime": "2026-05-01T12:00:00+00:00", **status}}).encode()


def metrics(**values: Any) -> list[dict[str, str]]:
    return [{"name": name, "value": str(value)} for name, value in values.items()]


def read(data: bytes, attempt: int = 1) -> Progress:
    return parse_progress(data, attempt=attempt).progress


def test_our_own_report_is_taken_whole() -> None:
    body = {"attempt": 2, "progress": {"step": 3, "totalSteps": 9, "loss": 1}, "unknown": True}
    report = parse_progress(json.dumps(body).encode(), attempt=2)
    assert (report.progress.step, report.progress.loss) == (3, 1.0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "must be a JSON object"),
        (b"{}", "attempt"),
        (b'{"attempt": 1, "progress": {"step": -1, "totalSteps": 2}}', "progress.step"),
        (b'{"attempt": 3, "progress": {"step": 1, "totalSteps": 2}}', "the pod is of attempt 1"),
        (b'{"trainerStatus": 5}', "must be an object"),
        (kubeflow(), "neither progressPercentage nor"),
        (kubeflow(progressPercentage="x"), "progressPercentage: must be a number"),
        (kubeflow(progressPercentage=1, metrics="loss"), "must be a list"),
        (kubeflow(progressPercentage=1, metrics=["x"]), "must have a name"),
        (kubeflow(progressPercentage=1, estimatedRemainingSeconds="nan"), "estimatedRemainingSeconds"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, words: str) -> None:
    with pytest.raises(BadBody, match=words):
        parse_progress(data, attempt=1)


def test_kubeflow_metrics_become_progress() -> None:
    found = read(
        kubeflow(
            progressPercentage=40,
            estimatedRemainingSeconds=90,
            metrics=metrics(
                current_step=4,
                total_steps=10,
                current_epoch=0.4,
                loss=2.5,
                eval_loss="nan",
                learning_rate=1e-4,
                grad_norm=0.7,
                num_input_tokens_seen=12345,
                train_tokens_per_second=99.5,
                note="words",
            ),
        )
    )
    assert (found.step, found.total_steps, found.percent, found.eta_seconds) == (4, 10, 40, 90)
    assert (found.epoch, found.loss, found.learning_rate, found.grad_norm) == (0.4, 2.5, 1e-4, 0.7)
    assert (found.tokens, found.tokens_per_second) == (12345, 99.5)
    assert found.eval_loss is None


def test_a_percentage_alone_claims_no_steps() -> None:
    found = read(kubeflow(progressPercentage=137.5))
    assert (found.step, found.total_steps, found.percent) == (0, 0, 100)


def test_absurd_numbers_are_bounded() -> None:
    found = read(kubeflow(progressPercentage=-5, metrics=metrics(current_step=1e300, total_steps=-3)))
    assert (found.step, found.total_steps, found.percent) == (2**53, 0, 0)


def callback_of_transformers(post: Any) -> Any:
    """transformers' KubeflowCallback as installed, without importing all of transformers (half a minute)."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], "integrations/integration_utils.py").read_text()
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "KubeflowCallback"]
    space: dict[str, Any] = {
        "TrainerCallback": object,
        "is_kubeflow_available": lambda: True,
        "os": os,
        "logger": logging.getLogger("test"),
    }
    exec(compile(tree, "integration_utils.py", "exec"), space)  # noqa: S102 - the installed library's own code
    callback = space["KubeflowCallback"]()
    callback._update_status = _posting(callback, post)
    return callback


def _posting(callback: Any, post: Any) -> Any:
    """The callback's own method, whose HTTP request is caught."""
    import urllib.request  # noqa: PLC0415

    original = type(callback)._update_status.__get__(callback)

    def update(**arguments: Any) -> Any:
        class Answer:
            status = 200

            def __enter__(self) -> Answer:
                return self

            def __exit__(self, *_: object) -> None:
                return None

        def opened(request: urllib.request.Request, **_: Any) -> Answer:
            post(request)
            return Answer()

        kept, urllib.request.urlopen = urllib.request.urlopen, opened  # type: ignore[assignment]
        try:
            return original(**arguments)
        finally:
            urllib.request.urlopen = kept

    return update


def test_the_callback_of_stock_transformers_is_understood_from_begin_to_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("the-token\n")
    url = "https://operator.system.svc:8443/v1/namespaces/team/finetunejobs/tune/progress"
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", url)
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(token))
    posted: list[Any] = []
    callback = callback_of_transformers(posted.append)
    callback._MIN_UPDATE_INTERVAL = 0
    state = SimpleNamespace(is_world_process_zero=True, max_steps=250, global_step=0, epoch=0.0)
    callback.on_train_begin(None, state, None)
    callback.on_log(None, state, None, logs={"loss": 1.25, "grad_norm": 0.5, "learning_rate": 2e-4, "epoch": 0.4})
    state.global_step, state.epoch = 100, 0.4
    callback.on_step_end(None, state, None)
    callback.on_train_end(None, state, None)
    assert {request.full_url for request in posted} == {url}
    assert {request.get_header("Authorization") for request in posted} == {"Bearer the-token"}
    begin, middle, end = [read(request.data) for request in posted]
    assert (begin.step, begin.total_steps, begin.percent) == (0, 250, 0)
    assert (middle.step, middle.total_steps, middle.percent, middle.loss) == (100, 250, 40, 1.25)
    assert middle.eta_seconds is not None
    assert (end.percent, end.total_steps, end.loss) == (100, 0, 1.25), "its last word has no steps"
