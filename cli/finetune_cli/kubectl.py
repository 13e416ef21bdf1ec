"""The cluster, through ``kubectl``: it knows every way to authenticate that the user's kubeconfig may name.

The environment variable KUBECTL names another program than the one on PATH.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from finetune_api.base import GROUP
from finetune_api.job import FineTuneJob
from pydantic import ValidationError

from finetune_cli.errors import CliError

Body = dict[str, Any]
RESOURCE = f"finetunejobs.{GROUP}"
REQUEST_TIMEOUT = "30s"
JOB_UID_LABEL, COMPONENT_LABEL, ATTEMPT_LABEL = f"{GROUP}/job-uid", f"{GROUP}/component", f"{GROUP}/attempt"


class KubectlError(CliError):
    """kubectl ended with an error; the message is its own."""

    @property
    def not_found(self) -> bool:
        """Whether the object does not exist."""
        return "(NotFound)" in str(self)


@dataclass(frozen=True)
class Kubectl:
    """Where commands go: a program, and the namespace and context that the user chose, if any."""

    program: str
    namespace: str | None = None
    context: str | None = None

    @classmethod
    def find(cls, namespace: str | None = None, context: str | None = None) -> Kubectl:
        """The kubectl of this machine.

        Raises:
            CliError: there is none.
        """
        wanted = os.environ.get("KUBECTL") or "kubectl"
        program = shutil.which(wanted)
        if program is None:
            raise CliError(f"{wanted} is not on PATH; install kubectl, or name it in the variable KUBECTL")
        return cls(program, namespace, context)

    def command(self, *arguments: str) -> list[str]:
        """The command line."""
        chosen = [*(["--context", self.context] if self.context else [])]
        chosen += ["--namespace", self.namespace] if self.namespace else []
        return [self.program, *chosen, *arguments]

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Standard output of a command.

        Raises:
            KubectlError: it failed.
        """
        result = subprocess.run(
            self.command(*arguments), input=stdin, capture_output=True, text=True, check=False, encoding="utf-8"
        )
        if result.returncode != 0:
            raise KubectlError(_told(result.stderr) or f"kubectl {arguments[0]} ended with {result.returncode}")
        return result.stdout

    def get(self, *arguments: str) -> Body:
        """``kubectl get … -o json``.

        Raises:
            KubectlError: it failed.
        """
        body: Body = json.loads(self.run("get", *arguments, "-o", "json", f"--request-timeout={REQUEST_TIMEOUT}"))
        return body

    def items(self, *arguments: str) -> list[Body]:
        """The objects of a list."""
        found: list[Body] = self.get(*arguments).get("items") or []
        return found

    def apply(self, body: Body) -> None:
        """Create or update one object.

        Raises:
            KubectlError: it failed.
        """
        self.run("apply", "-f", "-", stdin=json.dumps(body))

    def job(self, name: str) -> FineTuneJob:
        """The FineTuneJob ``name``.

        Raises:
            CliError: it does not exist, or cannot be read by this version.
        """
        try:
            return parse_job(self.get(RESOURCE, name))
        except KubectlError as error:
            if error.not_found:
                where = f" in namespace {self.namespace}" if self.namespace else " in the current namespace"
                raise CliError(f"there is no FineTuneJob {name!r}{where}; finetune get lists them") from error
            raise

    @contextlib.contextmanager
    def watch(self, *arguments: str) -> Iterator[Watch]:
        """``kubectl get … --watch``, ended with the block."""
        command = self.command("get", *arguments, "-o", "json", "--watch", "--output-watch-events")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        try:
            yield Watch(process)
        finally:
            process.terminate()
            process.communicate()


@dataclass
class Watch:
    """Events of one watch, until the server or the network ends it."""

    process: subprocess.Popen[str]

    def events(self) -> Iterator[tuple[str, Body]]:
        """Type (ADDED, MODIFIED, DELETED) and object of each event."""
        assert self.process.stdout is not None  # noqa: S101 - as Popen was called
        for event in json_stream(self.process.stdout):
            yield str(event.get("type", "MODIFIED")), event.get("object") or event

    def error(self) -> KubectlError | None:
        """Why it ended; None where it ended as watches do. Call it after the last event."""
        assert self.process.stderr is not None  # noqa: S101 - as Popen was called
        told = _told(self.process.stderr.read())
        return KubectlError(told or "the watch failed") if self.process.wait() else None


def json_stream(lines: IO[str] | Iterator[str]) -> Iterator[Body]:
    """The JSON objects that follow one another in ``lines``, each beginning and ending with a line of its own.

    An object that is cut off at the end is left out: the watch broke in the middle of it.
    """
    pending: list[str] = []
    for line in lines:
        pending.append(line)
        # kubectl indents: only an object's own closing brace is in the first column, unless all is in one line.
        if line.startswith("}") or (len(pending) == 1 and line.startswith("{") and line.rstrip().endswith("}")):
            text = "".join(pending)
            try:
                body = json.loads(text)
            except ValueError:
                continue
            pending.clear()
            yield body


def parse_job(body: Body) -> FineTuneJob:
    """A FineTuneJob as the server sent it.

    Raises:
        CliError: it has fields that this version does not know.
    """
    try:
        return FineTuneJob.from_dict(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise CliError(
            f"FineTuneJob {body.get('metadata', {}).get('name')}: {field}: {first['msg']}. This finetune does not "
            "know the resource's version; install the one of the operator's release"
        ) from error


def _told(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith(("Flag --", "W"))]
    return "\n".join(lines).removeprefix("error: ")
