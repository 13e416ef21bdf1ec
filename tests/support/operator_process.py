"""The operator as a process of its own, against a real API server, with a kubeconfig that may be anyone's."""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

STOP_SECONDS = 30


@dataclass
class OperatorProcess:
    """A running operator. Its log is read line by line, so that a test can wait for what it says."""

    process: subprocess.Popen[str]
    metrics_port: int
    progress_port: int
    log: list[str] = field(default_factory=list)
    _unread: queue.Queue[str | None] = field(default_factory=queue.Queue)

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Wait until a line of the log has ``words``."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._unread.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"{words!r} is not said within {seconds} s:\n{''.join(self.log)}") from None
            assert line is not None, f"the operator ended before it said {words!r}:\n{''.join(self.log)}"
            if words in line:
                return

    def get(self, path: str) -> str:
        """What the metrics port answers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=10) as response:
            return str(response.read().decode())

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            self._unread.put(line)
        self._unread.put(None)


@contextlib.contextmanager
def running_operator(
    kubeconfig: Path,
    namespace: str,
    *,
    clock: Mapping[str, str] | None = None,
    progress_host: str = "localhost",
    **settings: str,
) -> Iterator[OperatorProcess]:
    """Run the operator for the length of the block.

    Args:
        kubeconfig: whose rights it has.
        namespace: the namespace that it counts as its own.
        clock: variables that give it another clock, as of :func:`another_clock.minutes_ahead`.
        progress_host: where pods reach it.
        settings: further variables, such as ``watch_namespaces`` for FINETUNE_WATCH_NAMESPACES.
    """
    metrics_port, progress_port = free_ports(2)
    variables = {
        "namespace": namespace,
        "trainer_image": "registry/trainer:1",
        "progress_url": f"https://{progress_host}:{progress_port}",
        "progress_port": str(progress_port),
        "metrics_port": str(metrics_port),
        "log_format": "plain",
        "resync_seconds": "1",
        "progress_interval_seconds": "0",
        **settings,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FINETUNE_")}
    environment = kept | {f"FINETUNE_{name.upper()}": value for name, value in variables.items()}
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune_operator"],
        env={**environment, **(clock or {}), "KUBECONFIG": str(kubeconfig)},
        stderr=subprocess.PIPE,
        text=True,
    )
    operator = OperatorProcess(process, metrics_port, progress_port)
    reader = threading.Thread(target=operator._read, daemon=True)
    reader.start()
    try:
        yield operator
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        if process.stderr is not None:
            process.stderr.close()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
