"""Progress is written down always, sent when somebody listens, and never in training's way."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from finetune_api.reports import ProgressReport
from finetune_api.status import CheckpointStatus, Progress
from finetune_trainer.picture import draw_losses, read_history
from finetune_trainer.progress import FILE, Poster, ProgressLog


class Operator(ThreadingHTTPServer):
    """Takes posts; answers with ``code``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.code = 200
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.came = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/progress"

    def wait_for(self, count: int) -> bool:
        with self.came:
            return self.came.wait_for(lambda: len(self.taken) >= count, timeout=20)


class Handler(BaseHTTPRequestHandler):
    server: Operator

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.came:
            self.server.taken.append((self.headers.get("Authorization", ""), body))
            self.server.came.notify_all()
        self.send_response(self.server.code)
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture
def operator() -> Iterator[Operator]:
    with Operator() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def progress(step: int, **more: Any) -> Progress:
    return Progress(step=step, total_steps=10, loss=1.0 / (step + 1), **more)


def test_reports_are_written_and_posted_with_the_token_of_the_moment(tmp_path: Path, operator: Operator) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    log = ProgressLog(tmp_path, attempt=3, poster=Poster(operator.url, token, None))
    log.report(progress(1))
    assert operator.wait_for(1)
    token.write_text("renewed\n")
    log.checkpoint = CheckpointStatus(step=1, path="checkpoints/checkpoint-1", time="2026-01-01T00:00:00Z")
    log.report(progress(2))
    log.close()
    assert [authorization for authorization, _ in operator.taken] == ["Bearer first", "Bearer renewed"]
    last = ProgressReport.model_validate(operator.taken[-1][1])
    assert (last.attempt, last.progress.step, last.checkpoint) == (3, 2, log.checkpoint)
    assert [report.step for report in read_history(tmp_path / FILE)] == [1, 2]


def test_only_the_newest_of_many_is_sent(tmp_path: Path, operator: Operator) -> None:
    log = ProgressLog(tmp_path, attempt=1, poster=Poster(operator.url, None, None))
    for step in range(200):
        log.report(progress(step))
    log.close()
    assert operator.taken[-1][1]["progress"]["step"] == 199
    assert len(operator.taken) < 10


@pytest.mark.parametrize("code", [403, 503])
def test_a_refusal_is_no_failure(tmp_path: Path, operator: Operator, code: int) -> None:
    operator.code = code
    log = ProgressLog(tmp_path, attempt=1, poster=Poster(operator.url, None, None))
    log.report(progress(1))
    log.close()
    assert len(operator.taken) == 1
    assert len(read_history(tmp_path / FILE)) == 1


def test_nobody_listening_is_no_failure(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path, attempt=1, poster=Poster("http://127.0.0.1:9/v1", tmp_path / "no-token", None))
    log.report(progress(1))
    log.close()
    assert len(read_history(tmp_path / FILE)) == 1


def test_history_takes_a_repeated_step_as_it_was_last_and_passes_a_torn_line(tmp_path: Path) -> None:
    lines = [progress(1), progress(2, eval_loss=3.0), progress(2, eval_loss=2.0), progress(3)]
    text = "\n".join(line.model_dump_json(by_alias=True, exclude_none=True) for line in lines)
    (tmp_path / FILE).write_text(text + '\n{"step": 4, "tot')
    history = read_history(tmp_path / FILE)
    assert [(report.step, report.eval_loss) for report in history] == [(1, None), (2, 2.0), (3, None)]


def test_the_curve_becomes_a_picture(tmp_path: Path) -> None:
    log = ProgressLog(tmp_path, attempt=1, poster=None)
    for step in range(1, 5):
        log.report(progress(step, initial_eval_loss=2.0, eval_loss=1.0 if step == 4 else None))
    draw_losses(tmp_path / FILE, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_no_losses_no_picture(tmp_path: Path) -> None:
    draw_losses(tmp_path / FILE, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
