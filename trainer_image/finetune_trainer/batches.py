"""From sequences to the tensors of a forward pass."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from finetune_trainer.prepared import IGNORED, Sequence, SequenceSet


class Examples(Dataset[Sequence]):
    """A :class:`SequenceSet` as torch wants it."""

    def __init__(self, sequences: SequenceSet) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> Sequence:
        return self._sequences[index]


class Collator:
    """Pads sequences to the longest of the batch, on the right.

    Packed sequences carry position ids that begin anew with each sample and no attention mask: from these,
    transformers' mask for sdpa and eager attention keeps samples apart. Padding behind them is a sample of its own,
    whose labels are ignored.
    """

    def __init__(self, pad_token_id: int, *, packed: bool) -> None:
        self._pad, self._packed = pad_token_id, packed

    def __call__(self, sequences: Several[Sequence]) -> dict[str, Any]:
        """Tensors (batch, longest) of int64: input_ids, labels, and position_ids or attention_mask; ``tokens`` is a
        scalar, the tokens that are no padding."""
        longest = max(len(sequence.input_ids) for sequence in sequences)
        shape = (len(sequences), longest)
        ids = np.full(shape, self._pad, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        attended = np.zeros(shape, dtype=np.int64)
        for row, sequence in enumerate(sequences):
            length = len(sequence.input_ids)
            ids[row, :length] = sequence.input_ids
            labels[row, :length] = sequence.labels
            attended[row, :length] = 1
            positions[row, :length] = np.concatenate([np.arange(part) for part in sequence.lengths])
            positions[row, length:] = np.arange(longest - length)
        batch = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if self._packed:
            batch["position_ids"] = torch.from_numpy(positions)
        else:
            batch["attention_mask"] = torch.from_numpy(attended)
        batch["tokens"] = torch.tensor(int(attended.sum()))
        return batch
