"""The store: what is read is what was written, in as few bytes as it needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finetune_trainer.packing import Sequences, one_each
from finetune_trainer.prepared import IGNORED, SequenceSet, StoreWriter, sample_store
from hypothesis import given, settings
from hypothesis import strategies as st

Samples = list[list[tuple[int, bool]]]


@st.composite
def batches(draw: st.DrawFn) -> tuple[int, list[Samples]]:
    vocabulary = draw(st.sampled_from([2**16, 2**16 + 1, 200_000]))
    token = st.tuples(st.integers(0, vocabulary - 1), st.booleans())
    return vocabulary, draw(st.lists(st.lists(st.lists(token, min_size=1, max_size=20), min_size=1), min_size=1))


@given(batches())
@settings(deadline=None, max_examples=60)
def test_samples_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[int, list[Samples]]
) -> None:
    vocabulary, written = made
    directory = tmp_path_factory.mktemp("store")
    every = [sample for batch in written for sample in batch]
    with StoreWriter(directory, vocabulary=vocabulary) as writer:
        for batch in written:
            pairs = [pair for sample in batch for pair in sample]
            rows = range(len(writer.lengths), len(writer.lengths) + len(batch))
            writer.extend(
                np.array([token for token, _ in pairs], dtype=np.int32),
                np.array([trained for _, trained in pairs]),
                [len(sample) for sample in batch],
                desirable=[],
                rows=rows,
            )
        order = list(range(len(every)))[::-1]
        writer.finish(Sequences.of(np.array(order), np.array([len(order)])), one_each(np.array([])), {})
    store = sample_store(directory)
    assert len(store) == len(every)
    for number, sample in enumerate(every):
        ids, trained, row = store[number]
        assert list(zip(ids.tolist(), trained.tolist(), strict=True)) == sample
        assert row == number
    train = SequenceSet(directory, "train")
    flat = [pair for number in order for pair in every[number]]
    assert train[0].input_ids.tolist() == [token for token, _ in flat]
    assert train[0].labels.tolist() == [token if trained else IGNORED for token, trained in flat]
    assert train.tokens == len(flat)
    assert train.supervised_tokens == sum(trained for _, trained in flat)
    each = 2 if vocabulary <= 2**16 else 4
    assert (directory / "tokens.bin").stat().st_size == each * len(flat)
    assert (directory / "trained.bin").stat().st_size <= len(flat) / 8 + len(every) + 1


def test_a_token_beyond_the_vocabulary_is_not_cut(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, vocabulary=100) as writer, pytest.raises(ValueError, match="token 70000"):
        writer.extend(np.array([70_000]), np.array([True]), [1], desirable=[], rows=[1])
