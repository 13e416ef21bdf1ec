"""Shares of sources: how often each sample comes, whatever the sizes and weights."""

from __future__ import annotations

import numpy as np
from finetune_trainer.mixing import mix
from hypothesis import given
from hypothesis import strategies as st


def counts(units: np.ndarray, sources: np.ndarray) -> list[int]:
    return np.bincount(sources[units], minlength=sources.max() + 1).tolist()


def test_without_weights_nothing_changes() -> None:
    units = np.arange(5)
    assert mix(units, np.zeros(5, int), [None], seed=1) is units


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    weights=st.lists(st.floats(0.01, 1000), min_size=6, max_size=6),
    seed=st.integers(0, 9),
)
def test_each_source_has_its_share_and_each_sample_of_it_as_often_as_the_next(
    sizes: list[int], weights: list[float], seed: int
) -> None:
    sources = np.repeat(np.arange(len(sizes)), sizes)
    units = np.arange(len(sources))
    mixed = mix(units, sources, weights[: len(sizes)], seed=seed)
    assert len(mixed) == len(units)
    assert np.array_equal(mixed, np.sort(mixed))
    assert np.array_equal(mixed, mix(units, sources, weights[: len(sizes)], seed=seed))
    share = np.array(weights[: len(sizes)]) / sum(weights[: len(sizes)]) * len(units)
    for source, used in enumerate(counts(mixed, sources)):
        assert used >= 1
        # A share of less than a sample is one, which others give up.
        assert abs(used - share[source]) <= len(sizes)
        times = np.bincount(mixed, minlength=len(units))[sources == source]
        assert times.max() - times.min() <= 1


def test_weights_in_the_ratio_of_the_sizes_use_each_sample_once() -> None:
    sources = np.repeat([0, 1], [30, 10])
    assert np.array_equal(mix(np.arange(40), sources, [3, 1], seed=0), np.arange(40))


def test_a_source_of_which_all_is_held_out_gives_nothing() -> None:
    sources = np.array([0, 0, 0, 1])
    assert counts(mix(np.array([0, 1, 2]), sources, [1, 5], seed=0), sources) == [3, 0]


def test_the_seed_chooses_what_is_left_out() -> None:
    sources = np.repeat([0, 1], [50, 50])
    chosen = {tuple(mix(np.arange(100), sources, [1, 3], seed=seed).tolist()) for seed in range(5)}
    assert len(chosen) == 5
