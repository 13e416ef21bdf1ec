"""The order of sequences: by chance, the longest first, once each in an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetune_trainer.loop import FineTuner
from finetune_trainer.order import LongestFirst
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from trainings import configure, run


def test_each_epoch_has_its_own_order_and_every_sequence_once() -> None:
    order = LongestFirst(50, 7, seed=3)
    first, second = list(order), list(order)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first[0] == 7
    assert first != second
    assert first != [7, *(index for index in range(50) if index != 7)]  # the rest is by chance


def test_a_restart_goes_on_in_the_order_of_its_epoch() -> None:
    order = LongestFirst(50, 7, seed=3)
    orders = [list(order) for _ in range(3)]
    for epoch, expected in enumerate(orders):
        again = LongestFirst(50, 7, seed=3)
        again.set_epoch(epoch)
        assert list(again) == expected
    assert list(LongestFirst(50, 7, seed=4)) != orders[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_first_batch_of_a_training_is_as_long_as_any(
    tmp_path: Path, tiny: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    step = FineTuner.training_step

    def watched(tuner: Any, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        lengths.append(inputs["input_ids"].shape[1])
        return step(tuner, model, inputs, *arguments, **options)

    monkeypatch.setattr(FineTuner, "training_step", watched)
    numbers = {"seed": seed, "maxSteps": 3, "globalBatchSize": 1, "microBatchSize": 1}
    config = configure(tmp_path, tiny, packing=False, hyperparameters=numbers)
    prepare(config)
    run(config)
    data = load_prepared(config).train
    sizes = [len(data[index].input_ids) for index in range(len(data))]
    assert len(set(sizes)) > 1
    assert lengths[0] == max(sizes) == sizes[data.longest]
