"""``finetune get``: jobs as a table, or all that is known of one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from finetune_api.job import FineTuneJob
from finetune_api.status import FineTuneJobStatus
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from finetune_cli import words
from finetune_cli.console import note, out
from finetune_cli.kubectl import RESOURCE, Kubectl, parse_job
from finetune_cli.progress_view import describe
from finetune_cli.results import describe_dataset, held_out, show_failure, show_samples

_STYLES = {"Succeeded": "green", "Failed": "bold red", "Running": "cyan", "Preparing": "cyan", "Suspended": "yellow"}


def show_table(kubectl: Kubectl, *, all_namespaces: bool) -> None:
    """The jobs of a namespace or of all, in the columns of ``kubectl get ftj``.

    Raises:
        CliError: the cluster does not answer, or a job is of a newer version.
    """
    bodies = kubectl.items(RESOURCE, *(["--all-namespaces"] if all_namespaces else []))
    if not bodies:
        note("no FineTuneJobs here" if not all_namespaces else "no FineTuneJobs")
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in [*(["NAMESPACE"] if all_namespaces else []), "NAME", "MODEL", "METHOD", "PHASE"]:
        table.add_column(column, no_wrap=True)
    for column in ("PROGRESS", "LOSS", "TOK/S", "ETA", "AGE"):
        table.add_column(column, no_wrap=True, justify="right")
    now = datetime.now(UTC)
    for job in map(parse_job, bodies):
        first = [job.metadata.namespace or ""] if all_namespaces else []
        table.add_row(*first, *_row(job, now))
    out.print(table)


def _row(job: FineTuneJob, now: datetime) -> Iterator[RenderableType]:
    status, progress = job.status, job.status.progress
    phase = status.phase or "Pending"
    yield job.metadata.name
    yield job.spec.model.source
    yield status.method or job.spec.method_name
    yield Text(phase, style=_STYLES.get(phase, ""))
    yield (progress and progress.display) or "-"
    yield words.loss(progress.loss if progress else None)
    yield f"{progress.tokens_per_second:,.0f}" if progress and progress.tokens_per_second is not None else "-"
    yield (progress and progress.eta) or "-"
    yield words.age(job.metadata.creation_timestamp, now)


def show_one(kubectl: Kubectl, name: str) -> None:
    """Everything that the status of ``name`` says.

    Raises:
        CliError: there is no such job, or the cluster does not answer.
    """
    job = kubectl.job(name)
    out.print(detail(job, datetime.now(UTC)))
    if job.status.samples:
        out.print(Text("\nSamples", style="bold"))
        show_samples(job.status.samples)
    if job.status.failure:
        out.print()
        show_failure(job.status.failure)


def detail(job: FineTuneJob, now: datetime) -> RenderableType:
    """Facts in two columns, then the conditions."""
    facts = Table.grid(padding=(0, 3))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, value in _facts(job, now):
        if value:
            facts.add_row(label, Text(value, style=_STYLES.get(value, "")))
    conditions = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for column in ("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"):
        conditions.add_column(column, overflow="fold")
    for c in job.status.conditions:
        conditions.add_row(c.type, c.status, c.reason, words.age(c.last_transition_time, now), Text(c.message))
    return Group(facts, Text(""), conditions) if job.status.conditions else facts


def _facts(job: FineTuneJob, now: datetime) -> Iterator[tuple[str, str]]:
    status, spec = job.status, job.spec
    yield "Name", f"{job.metadata.namespace or 'default'}/{job.metadata.name}"
    yield "Phase", status.phase or "Pending"
    yield "Model", f"{spec.model.source} @ {spec.model.revision}"
    yield "Method", status.method or spec.method_name
    yield "Age", words.age(job.metadata.creation_timestamp, now)
    yield "Took", _took(status)
    yield "Attempt", _attempts(status)
    if status.progress:
        yield "Progress", describe(status.progress)
        yield "Held-out loss", held_out(status.progress)
    if status.dataset:
        yield "Data", describe_dataset(status.dataset)
        for dropped in status.dataset.dropped:
            first = f", first {dropped.first}" if dropped.first else ""
            yield "", f"{dropped.count} rows left out: {dropped.reason}{first}"
    if status.model:
        yield "Parameters", status.model.trained
        yield "Architecture", status.model.architecture or ""
        yield "Model digest", status.model.digest or ""
    if status.memory:
        estimate = words.size(status.memory.estimate.total if status.memory.estimate else None)
        micro = status.memory.micro_batch_size
        chosen = f", micro-batch {micro} (auto)" if micro else ""
        yield "Memory", f"estimated {estimate}, measured {words.size(status.memory.measured)}{chosen}"
    if status.acceleration:
        used = status.acceleration
        spread = f"{used.strategy} on {used.devices} devices" if used.strategy else None
        held = f"{used.offload} in host memory" if used.offload else None
        parts = [used.device, spread, held, used.attention, used.precision, *used.kernels]
        yield "Runs on", ", ".join(filter(None, parts))
    if status.checkpoint:
        since = words.age(status.checkpoint.time, now)
        yield "Checkpoint", f"step {status.checkpoint.step}, {since} ago: {status.checkpoint.path}"
    if status.output:
        yield "Output", status.output.uri
        yield "Digest", status.output.digest or ""


def _attempts(status: FineTuneJobStatus) -> str:
    ends = ((status.failed_attempts, "failed"), (status.disruptions, "ended by the cluster"))
    told = ", ".join(f"{count} {how}" for count, how in ends if count)
    return f"{status.attempt or ''}{f' ({told})' if told else ''}"


def _took(status: FineTuneJobStatus) -> str:
    start, end = words.parse_time(status.start_time), words.parse_time(status.completion_time)
    return words.duration((end - start).total_seconds()) if start and end else ""
