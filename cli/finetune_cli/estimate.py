"""``finetune estimate``: memory by part, and how few GPUs hold the job, from a manifest and the model's config.json."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.fitting import COMMON_GPUS, LARGEST, Fit, changes_that_fit, smallest_gpu_count
from finetune_api.job import FineTuneJob
from finetune_api.memory import USABLE, refuse_unknown, trained_parameters
from finetune_api.memory import estimate as estimated
from finetune_api.model_shape import ModelShape, ShapeError, not_counted
from finetune_api.recipe import recipe_of
from finetune_api.status import MemoryEstimate, ModelStatus
from finetune_api.trainer_config import JobIdentity, Paths, ResolvedModel, TrainerConfig, resolve_config
from rich.table import Table
from rich.text import Text

from finetune_cli import words
from finetune_cli.console import out
from finetune_cli.documents import read_documents
from finetune_cli.errors import CliError
from finetune_cli.local_job import find_job
from finetune_cli.model_config import read_model_config
from finetune_cli.quantities import parse_bytes

_PARTS = {
    "weights": "the model, as the method holds it",
    "gradients": "of the weights that are trained",
    "optimizer": "its state, and master weights under ZeRO",
    "activations": "kept for the backward pass",
    "logits": "with their fp32 copies and gradients",
    "buffers": "cast weights, workspaces, communication",
}
_MOMENTS = {
    "loss": "the loss is computed",
    "layer": "the backward pass is in a layer",
    "gradients": "the backward pass is done",
    "step": "the optimizer's step begins",
}


@dataclass(frozen=True)
class Verdict:
    """What a size of GPU comes to."""

    size: str
    fit: Fit | None
    changes: tuple[str, ...] = ()
    """What must be changed for ``fit``."""


def estimate(
    files: list[str], *, job: str | None, gpu_memory: list[str], model_config: Path | None, as_json: bool
) -> None:
    """Print the estimate of the one job in ``files``.

    Raises:
        CliError: there is no such job, or the model's config.json cannot be had or is of a build not known.
    """
    sizes = {size: parse_bytes(size, "--gpu-memory") for size in gpu_memory} or COMMON_GPUS
    _, chosen = find_job(read_documents(files), job)
    where, body = read_model_config(chosen.spec.model, model_config)
    try:
        shape = ModelShape.from_config(body)
        refuse_unknown(shape, chosen.spec.resolved_method)
    except ShapeError as error:
        raise CliError(f"{where}: {error}") from error
    config = _config(chosen)
    micro = config.hyperparameters.micro_batch_size
    recipe = recipe_of(config, micro_batch=micro if isinstance(micro, int) else 1)
    told = estimated(shape, recipe)
    verdicts = [_judge(config, shape, size, count) for size, count in sizes.items()]
    trained, missing = trained_parameters(shape, recipe), not_counted(body)
    if as_json:
        out.print(json.dumps(_as_json(told, shape, trained, verdicts, missing), indent=2), markup=False)
        return
    out.print(Text(_title(chosen, shape, trained)))
    out.print(_table(told))
    if missing:
        out.print(Text(f"Not counted: the part of the model in {' and '.join(missing)}, which comes on top"))
    for verdict in verdicts:
        out.print(Text(_sentence(verdict)))


def _config(job: FineTuneJob) -> TrainerConfig:
    """As the trainer would get it, but for where things are."""
    model = ResolvedModel(uri=job.spec.model.source)
    return resolve_config(job.spec, job=JobIdentity(name=job.metadata.name), model=model, sources=[], paths=Paths())


def _judge(config: TrainerConfig, shape: ModelShape, size: str, memory: int) -> Verdict:
    fit = smallest_gpu_count(config, shape, memory)
    if fit is not None:
        return Verdict(size, fit)
    changed = changes_that_fit(config, shape, memory)
    return Verdict(size, changed[1], tuple(changed[0])) if changed else Verdict(size, None)


def _title(job: FineTuneJob, shape: ModelShape, trained: int) -> str:
    counts = ModelStatus(parameters=shape.parameters, trainable_parameters=trained)
    return (
        f"{job.metadata.name}: {job.spec.method_name}, {job.spec.precision}, sequences of "
        f"{job.spec.dataset.max_length}; {counts.trained}"
    )


def _table(told: MemoryEstimate) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("Part")
    table.add_column("Memory", justify="right")
    table.add_column("", style="dim")
    for part, what in _PARTS.items():
        table.add_row(part, words.size(getattr(told, part)), what)
    when = _MOMENTS.get(told.moment or "", "")
    table.add_row("total", words.size(told.total), f"on one device, when {when}", style="bold")
    return table


def _sentence(verdict: Verdict) -> str:
    fit = verdict.fit
    if fit is None:
        less = "whatever is changed; use a smaller model or larger GPUs"
        return f"{verdict.size}: does not fit on up to {LARGEST} GPUs, {less}"
    gpus = "1 GPU" if fit.devices == 1 else f"{fit.devices} GPUs, {fit.strategy}"
    held = f"{gpus}, micro-batch {fit.micro_batch}: {words.size(fit.estimate.total)} each"
    if not verdict.changes:
        return f"{verdict.size}: fits on {held}"
    return f"{verdict.size}: does not fit. To fit: {'; '.join(verdict.changes)}. Then on {held}"


def _as_json(
    told: MemoryEstimate, shape: ModelShape, trained: int, verdicts: list[Verdict], missing: tuple[str, ...]
) -> dict[str, Any]:
    return {
        "parameters": shape.parameters,
        "trainableParameters": trained,
        "estimate": told.to_dict(),
        "notCounted": list(missing),
        "usableShare": USABLE,
        "gpus": [
            {
                "memory": verdict.size,
                "fits": verdict.fit is not None and not verdict.changes,
                "changes": list(verdict.changes),
                "count": verdict.fit.devices if verdict.fit else None,
                "strategy": verdict.fit.strategy if verdict.fit else None,
                "microBatchSize": verdict.fit.micro_batch if verdict.fit else None,
                "total": verdict.fit.estimate.total if verdict.fit else None,
            }
            for verdict in verdicts
        ],
    }
