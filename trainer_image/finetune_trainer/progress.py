"""How far training is: a line of ``progress.jsonl`` for each report, and a post to the operator.

Posting never holds training up and never fails it: a thread sends the newest report and forgets older ones. What the
operator misses is in the termination report too.
"""

from __future__ import annotations

import os
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path

from finetune_api.reports import ProgressReport
from finetune_api.status import AccelerationStatus, CheckpointStatus, ModelStatus, Progress
from finetune_api.trainer_config import PROGRESS_CA_FILE_ENV, PROGRESS_TOKEN_FILE_ENV, PROGRESS_URL_ENV

from finetune_trainer.errors import writing_to
from finetune_trainer.log import log

FILE = "progress.jsonl"
_LEAST_SECONDS = 2.0
"""Between two posts; the operator writes the status every ten seconds at most."""
_TIMEOUT = 5.0


class ProgressLog:
    """Takes every report."""

    def __init__(self, output: Path, attempt: int, poster: Poster | None, *, main: bool = True) -> None:
        """``main`` is False in all processes but one: they remember, and write nothing."""
        self._path = output / FILE
        self._main = main
        self._attempt = attempt
        self._poster = poster
        self.last: Progress | None = None
        self.checkpoint: CheckpointStatus | None = None
        self.acceleration: AccelerationStatus | None = None
        self.model: ModelStatus | None = None

    def report(self, progress: Progress) -> None:
        """Write ``progress`` down and send it.

        Raises:
            TrainerError: the output volume is full or cannot be written.
        """
        self.last = progress
        if not self._main:
            return
        with writing_to(self._path, "output"), self._path.open("a") as file:
            file.write(progress.model_dump_json(by_alias=True, exclude_none=True) + "\n")
        self.send()

    def saved(self, checkpoint: CheckpointStatus) -> None:
        """Tell of a checkpoint with the next report, and now."""
        self.checkpoint = checkpoint
        self.send()

    def send(self) -> None:
        """Post what is known."""
        if self._poster is None or self.last is None:
            return
        self._poster.put(
            ProgressReport(
                attempt=self._attempt,
                progress=self.last,
                checkpoint=self.checkpoint,
                acceleration=self.acceleration,
                model=self.model,
            )
        )

    def close(self) -> None:
        """Send the last report, if the operator is there to take it."""
        if self._poster is not None:
            self._poster.close()


class Poster:
    """Posts the newest report from a thread of its own."""

    def __init__(self, url: str, token_file: Path | None, ca_file: Path | None) -> None:
        self._url, self._token_file, self._ca_file = url, token_file, ca_file
        self._changed = threading.Condition()
        self._pending: ProgressReport | None = None
        self._closing = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    @classmethod
    def from_environment(cls) -> Poster | None:
        """As the pod's environment says; None where nobody listens."""
        url = os.environ.get(PROGRESS_URL_ENV)
        if not url:
            return None
        token, authority = os.environ.get(PROGRESS_TOKEN_FILE_ENV), os.environ.get(PROGRESS_CA_FILE_ENV)
        return cls(url, Path(token) if token else None, Path(authority) if authority else None)

    def put(self, report: ProgressReport) -> None:
        """Send ``report`` when it is time, unless a newer one comes first."""
        with self._changed:
            self._pending = report
            self._changed.notify()

    def close(self) -> None:
        """Send what is pending and end; waits for one post at most."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(2 * _TIMEOUT)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending is not None or self._closing)
                report, self._pending = self._pending, None
                closing = self._closing
            if report is not None:
                self._post(report)
            if closing:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._closing, timeout=_LEAST_SECONDS)

    def _post(self, report: ProgressReport) -> None:
        try:
            self._send(report)
        except (OSError, ValueError) as error:  # URLError and SSLError are OSErrors
            if not self._failing:
                log.info("progress is not taken at %s (%s); training goes on without", self._url, _told(error))
            self._failing = True
        else:
            if self._failing:
                log.info("progress is taken again")
            self._failing = False

    def _send(self, report: ProgressReport) -> None:
        body = report.model_dump_json(by_alias=True, exclude_none=True).encode()
        headers = {"Content-Type": "application/json"}
        if self._token_file is not None:  # the kubelet renews it
            headers["Authorization"] = f"Bearer {self._token_file.read_text().strip()}"
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")  # noqa: S310 - the operator's
        context = None
        if self._url.startswith("https://"):
            context = ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file else None)
        with urllib.request.urlopen(request, timeout=_TIMEOUT, context=context):  # noqa: S310 - as above
            pass


def _told(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
    return str(error)
