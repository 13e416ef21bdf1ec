"""From sequences to the tensors of a forward pass."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Several
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from finetune_trainer.media_batches import MediaBatches
from finetune_trainer.prepared import IGNORED, Sequence, SequenceSet


class Examples(Dataset[Sequence]):
    """A :class:`SequenceSet` as torch wants it."""

    def __init__(self, sequences: SequenceSet) -> None:
        self._sequences = sequences

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, index: int) -> Sequence:
        return self._sequences[index]

    @property
    def longest(self) -> int:
        """Index of the sequence with most tokens."""
        return self._sequences.longest


class Collator:
    """Makes a batch of sequences, in the form that model and kernels want.

    Rows are padded to the longest of the batch, on the right. Packed sequences carry position ids that begin anew with
    each sample and no attention mask: from these, transformers' mask for sdpa and eager attention keeps samples apart.
    Padding behind them is a sample of its own, whose labels are ignored.

    Where attention is told the samples' boundaries (``flat``), the sequences of a batch lie behind one another in one
    row, and there is no mask at all.
    """

    def __init__(
        self,
        pad_token_id: int,
        *,
        packed: bool,
        flat: bool = False,
        lengths: bool = False,
        fused_loss: bool = False,
        row_length: int | None = None,
        media: MediaBatches | None = None,
    ) -> None:
        """Settle the form.

        Args:
            pad_token_id: for padding.
            packed: sequences hold several samples.
            flat: one row with boundaries.
            lengths: give these as the samples' lengths, by Unsloth's name, instead of by flash-attn's.
            fused_loss: add what :func:`finetune_trainer.fused_loss.fuse_loss` reads.
            row_length: pad every row to this many tokens instead of to the longest, so that shapes stay the same.
            media: of a model that takes more than text.
        """
        self._pad, self._packed, self._flat, self._fused = pad_token_id, packed, flat, fused_loss
        self._row_length, self._lengths, self._media = row_length, lengths, media

    def unpadded(self) -> Collator:
        """The same for rows that are short, without padding to one length."""
        return Collator(
            self._pad,
            packed=self._packed,
            flat=self._flat,
            lengths=self._lengths,
            fused_loss=self._fused,
            media=self._media,
        )

    def forgo_fused_loss(self) -> None:
        """Make batches for the model's own loss from now on."""
        self._fused = False

    def __call__(self, sequences: Several[Sequence]) -> dict[str, Any]:
        """Tensors (batch, length) of int64: input_ids, labels, and position_ids or, where there is padding,
        attention_mask; ``tokens`` is an int, the tokens that are no padding. Flat: batch is 1, and ``cu_seq_lens_*``
        and ``max_length_*`` are flash-attn's, ``packed_seq_lengths`` Unsloth's. Fused loss: ``loss_positions`` and
        ``targets``. Media: what the model's processor makes of them."""
        rows = [_joined(sequences)] if self._flat else list(sequences)
        longest = max(len(row.input_ids) for row in rows)
        length = max(longest, (self._row_length or 0) * (len(sequences) if self._flat else 1))
        shape = (len(rows), length)
        ids = np.full(shape, self._pad, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        attended = np.zeros(shape, dtype=np.int64)
        for number, row in enumerate(rows):
            size = len(row.input_ids)
            ids[number, :size] = row.input_ids
            labels[number, :size] = row.labels
            attended[number, :size] = 1
            positions[number, :size] = np.concatenate([np.arange(part) for part in row.lengths])
            positions[number, size:] = np.arange(length - size)
        batch: dict[str, Any] = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        if self._packed or self._flat:
            batch["position_ids"] = torch.from_numpy(positions)
        elif not attended.all():  # without a mask, attention runs by its fastest kernels
            batch["attention_mask"] = torch.from_numpy(attended)
        if self._flat:
            batch |= _boundaries(rows[0], length, self._row_length, lengths=self._lengths)
        if self._fused:
            batch |= _supervised(labels)
        if self._media is not None:
            batch |= self._media.inputs([row.media for row in rows], ids)
        batch["tokens"] = int(attended.sum())
        return batch


class Numbered:
    """A collator's batches with ``rows``, those of the data that they hold."""

    def __init__(self, collator: Callable[[Several[Sequence]], dict[str, Any]]) -> None:
        self._collator = collator

    def __call__(self, sequences: Several[Sequence]) -> dict[str, Any]:
        """The collator's, and ``rows``, a tuple of int."""
        return {**self._collator(sequences), "rows": tuple(row for one in sequences for row in one.rows)}


def _joined(sequences: Several[Sequence]) -> Sequence:
    return Sequence(
        *(np.concatenate([getattr(s, field) for s in sequences]) for field in ("input_ids", "labels", "lengths"))
    )


def _boundaries(row: Sequence, length: int, row_length: int | None, *, lengths: bool) -> dict[str, Any]:
    """Where each sample begins and, last, the row ends. The longest length is rounded up: compiled code is made anew
    for each."""
    parts = [*row.lengths.tolist()]
    left = length - len(row.input_ids)
    while left > 0:  # padding, in pieces no longer than samples are
        parts.append(min(left, row_length or left))
        left -= parts[-1]
    if lengths:
        return {"packed_seq_lengths": torch.tensor(parts, dtype=torch.int32)}
    starts = torch.from_numpy(np.concatenate([[0], np.cumsum(parts)]).astype(np.int32))
    longest = max([*parts, row_length or 0])
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}


def _supervised(labels: np.ndarray) -> dict[str, torch.Tensor]:
    """The tokens that predict a supervised one, and which. The first label of a row predicts nothing."""
    shifted = np.full_like(labels, IGNORED)
    shifted[:, :-1] = labels[:, 1:]
    positions = np.flatnonzero(shifted != IGNORED)
    targets = shifted.reshape(-1)[positions]
    return {"loss_positions": torch.from_numpy(positions), "targets": torch.from_numpy(targets)}
