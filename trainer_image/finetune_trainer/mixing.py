"""Sources by weight: how often each sample is trained on in an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

MANY_TIMES = 4
"""More passes over the same samples in an epoch than this hardly teach (Muennighoff et al., 2023, arXiv 2305.16264)."""


def mix(units: np.ndarray, sources: np.ndarray, weights: Sequence[float | None], *, seed: int) -> np.ndarray:
    """``units`` as often as an epoch has them.

    Without weights, each once. Else there are as many in all as before, and of each source its share: each of its units
    as often as the share holds them all, and of the rest, chosen by the seed, once more.

    Args:
        units: int64 (n,), numbers of the units to train on.
        sources: (m,), source of every unit there is.
        weights: of each source; None counts as 1 where another has one.
        seed: of the job.

    Returns:
        int64 (n,), in the order of ``units``; copies stand together.
    """
    if all(weight is None for weight in weights) or not len(units):
        return units
    of_source = sources[units]
    present = np.unique(of_source)
    shares = np.array([weights[source] or 1.0 for source in present])
    wanted = _whole(len(units) * shares / shares.sum(), len(units))
    generator = np.random.default_rng(seed)
    times = np.zeros(len(units), dtype=np.int64)
    for source, count in zip(present, wanted, strict=True):
        places = np.flatnonzero(of_source == source)
        passes, rest = divmod(int(count), len(places))
        times[places] = passes
        times[generator.choice(places, rest, replace=False)] += 1
    return np.repeat(units, times)


def _whole(exact: np.ndarray, total: int) -> np.ndarray:
    """``exact`` in whole numbers of the same sum: the largest remainders are rounded up; none is 0."""
    whole = np.maximum(1, np.floor(exact).astype(np.int64))
    for place in np.argsort(-(exact - whole), kind="stable")[: max(0, total - int(whole.sum()))]:
        whole[place] += 1
    while whole.sum() > total and whole.max() > 1:
        whole[whole.argmax()] -= 1
    return whole
