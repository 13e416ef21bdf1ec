"""Steps over several processes."""

from __future__ import annotations

import pytest
from finetune_api.training import HyperparametersSpec
from finetune_trainer.steps import count_steps


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_same_global_batch_takes_as_many_steps_on_any_number_of_devices(processes: int) -> None:
    numbers = HyperparametersSpec(epochs=2, global_batch_size=16, micro_batch_size=2, warmup_ratio=0.1)
    steps = count_steps(numbers, 160, processes)
    assert (steps.per_epoch, steps.total, steps.warmup) == (10, 20, 2)
    assert steps.micro_batch * steps.accumulation * processes == 16


def test_the_last_step_of_an_epoch_may_be_smaller() -> None:
    numbers = HyperparametersSpec(epochs=1, global_batch_size=8, micro_batch_size=1)
    assert count_steps(numbers, 17, 4).per_epoch == 3
