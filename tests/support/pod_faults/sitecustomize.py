"""Faults in the test's own pods: a TrainingProfile's PYTHONPATH leads their Python here, and FAULT names one.

Nothing of the trainer knows of this. Python imports ``sitecustomize`` by itself; this one waits for the trainer's own
modules and changes what they do once they are imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

FAULT = os.environ.get("FAULT", "")
STEP = 4
"""Call of a training step that goes wrong."""


class _Change(importlib.abc.MetaPathFinder):
    """Changes one module when it is imported."""

    def __init__(self, name: str, change: Callable[[ModuleType], None]) -> None:
        self._name, self._change = name, change
        sys.meta_path.insert(0, self)

    def find_spec(self, fullname: str, *_: Any) -> Any:
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader = spec.loader
        execute = loader.exec_module

        def execute_and_change(module: ModuleType) -> None:
            execute(module)
            self._change(module)

        loader.exec_module = execute_and_change
        return spec


def _in_a_step(goes_wrong: Callable[[], None]) -> Callable[[ModuleType], None]:
    def change(module: ModuleType) -> None:
        tuner, calls = module.FineTuner, 0
        step = tuner.training_step

        def training_step(self: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == STEP:
                goes_wrong()
            return step(self, *arguments, **options)

        tuner.training_step = training_step

    return change


def _out_of_memory() -> None:
    import torch  # noqa: PLC0415 - in the pod, when the trainer has

    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB."
    )


def _crash() -> None:
    raise RuntimeError("the test makes this step fail")


def _hang() -> None:
    if os.environ.get("RANK") == "1":
        while True:
            signal.pause()


def _lose_patience(module: ModuleType) -> None:
    module.COLLECTIVE_SECONDS = 10


_LOOP = "finetune_trainer.loop"
if FAULT == "cuda":
    _Change(_LOOP, _in_a_step(_out_of_memory))
elif FAULT == "crash":
    _Change(_LOOP, _in_a_step(_crash))
elif FAULT == "hang":
    _Change(_LOOP, _in_a_step(_hang))
    _Change("finetune_trainer.peers", _lose_patience)
