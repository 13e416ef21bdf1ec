"""docs/performance.svg: how each lever moved speed and memory.

    python bench/trainer/picture.py bench/trainer/results/2026-11-26-levers.json docs/performance.svg

Cards differ: tokens a second are scaled to a card whose bf16 product runs at 790 TFLOP/s.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

PRODUCT = 790.0
"""TFLOP/s."""
OURS, PEERS, INK = "#2f6fb2", "#b8bec6", "#333a44"


def draw(found: dict[str, Any]) -> Figure:
    """A bar for each step of each track, its memory beside it."""
    tracks = found["tracks"]
    figure = Figure(
        figsize=(8.6, 0.34 * sum(len(track["steps"]) + 1.4 for track in tracks) + 0.6), layout="constrained"
    )
    FigureCanvasSVG(figure)
    axes = figure.subplots(len(tracks), 1, sharex=True, height_ratios=[len(track["steps"]) + 0.6 for track in tracks])
    for axis, track in zip(axes, tracks, strict=True):
        steps = track["steps"]
        rates = [step["tokens"] * PRODUCT / step["product"] for step in steps]
        places = range(len(steps))
        axis.barh(places, rates, height=0.72, color=[PEERS if step.get("peer") else OURS for step in steps])
        axis.set_yticks(list(places), [step["lever"] for step in steps])
        axis.invert_yaxis()
        axis.set_title(track["name"], loc="left", fontsize=10, color=INK, fontweight="bold")
        for place, rate, step in zip(places, rates, steps, strict=True):
            axis.text(rate + 120, place, f"{rate:,.0f}", va="center", fontsize=8.5, color=INK)
            inside = INK if step.get("peer") else "white"
            axis.text(250, place, f"{step['gib']:.0f} GiB", va="center", fontsize=8.5, color=inside)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0, labelsize=9, colors=INK)
        axis.tick_params(axis="x", labelsize=8.5, colors=INK)
    axes[-1].set_xlim(0, 21500)
    axes[-1].set_xlabel("tokens a second, scaled to a bf16 product of 790 TFLOP/s", fontsize=9, color=INK)
    return figure


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    with mpl.rc_context({"svg.hashsalt": "finetune", "svg.fonttype": "none", "font.family": "sans-serif"}):
        draw(json.loads(source.read_text())).savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
