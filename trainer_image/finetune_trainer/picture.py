"""Pictures: the loss curve, and how long samples are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_api.status import Progress


def read_history(path: Path) -> list[Progress]:
    """The reports in a ``progress.jsonl``; a step that was done twice counts as it was done last. A torn line, which a
    killed attempt may leave, says nothing."""
    by_step: dict[int, Progress] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            progress = Progress.model_validate_json(line)
        except ValueError:
            continue
        by_step[progress.step] = progress
    return [by_step[step] for step in sorted(by_step)]


def draw_losses(history: Path, target: Path, *, per_token: bool = True) -> None:
    """Draw training and held-out loss of ``history`` into the PNG ``target``; nothing where there is no loss.

    Args:
        history: ``progress.jsonl``.
        target: the picture.
        per_token: whether the loss is in nats a token, as it is but for preferences.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow, and needed once, at the end

    reports = read_history(history)
    training = [(r.step, r.loss) for r in reports if r.loss is not None]
    held_out = [(r.step, r.eval_loss) for r in reports if r.eval_loss is not None]
    first = next((r.initial_eval_loss for r in reports if r.initial_eval_loss is not None), None)
    if first is not None:
        held_out.insert(0, (0, first))
    if not training:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(*zip(*training, strict=True), label="training", color="#1f77b4", linewidth=1.4)
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o--", label="held out", color="#d62728", linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats a token)" if per_token else "loss")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=120)


def draw_lengths(edges: Sequence[int], counts: Sequence[int], limit: int, target: Path) -> None:
    """Draw a histogram of samples' lengths into the PNG ``target``.

    Args:
        edges: (n + 1,) in tokens.
        counts: (n,) samples from each edge to below the next.
        limit: ``maxLength``, which is marked.
        target: the picture.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(counts, edges, fill=True, color="#1f77b4")
    axes.axvline(limit, color="#d62728", linewidth=1, linestyle="--", label=f"maxLength {limit}")
    axes.set(xlabel="tokens a sample", ylabel="samples")
    axes.legend()
    figure.savefig(target, dpi=120, format="png")
