"""FineTuneJobs on a model so small that a pod spends its time on starting."""

from __future__ import annotations

import json
from typing import Any

from installed import PROFILE
from manifests import Manifest, finetunejob, set_path

COLOURS = ("red", "green", "blue", "white", "black", "grey", "brown", "pink")
ROWS = "".join(
    json.dumps({"instruction": f"Name colour {number}.", "output": f"The colour is {COLOURS[number % 8]}."}) + "\n"
    for number in range(24)
)
PAIRS = "".join(
    json.dumps(
        {
            "instruction": f"Name colour {number}.",
            "chosen": f"The colour is {COLOURS[number % 8]}.",
            "rejected": f"No colour but {COLOURS[(number + 1) % 8]}.",
        }
    )
    + "\n"
    for number in range(24)
)
"""The same questions with a good and a bad answer each."""
SOURCES = [{"uri": "configmap://rows/rows.jsonl"}]


def tiny_job(name: str, **edits: Any) -> Manifest:
    """A LoRA job of six steps with a checkpoint after every third; ``edits`` as of :func:`finetunejob`."""
    manifest = finetunejob(
        name,
        model={"source": "pvc://model/tiny"},
        dataset={"sources": SOURCES, "maxLength": 128, "validation": {"fraction": 0.25}},
        hyperparameters={"maxSteps": 6, "globalBatchSize": 2, "learningRate": 0.01},
        evaluation={"prompts": ["Name colour 3."], "maxNewTokens": 4},
        output={"claim": {"size": "1Gi"}, "checkpoint": {"everySteps": 3}},
        resources={"cpu": "900m", "memory": "2Gi"},
        scheduling={"profile": PROFILE},
        runPolicy={"backoffLimit": 2, "checkpointOnTerminationSeconds": 10},
    )
    for path, value in edits.items():
        set_path(manifest["spec"], path.replace("__", "."), value)
    return manifest


def long_job(name: str, steps: int = 800, **edits: Any) -> Manifest:
    """One that runs for long enough to be disturbed, saves often, and leaves room for two more on two cores."""
    settings = {
        "hyperparameters__maxSteps": steps,
        "output__checkpoint__everySteps": 50,
        "evaluation": {},
        "dataset__validation": {},
        "resources__cpu": "600m",
    }
    return tiny_job(name, **settings | edits)
