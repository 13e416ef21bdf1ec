"""From sequences of the preference stages to the tensors that TRL's trainers compute on.

The keys are those that the trainers' own collators give, so that their tokenization can be left out. ``tokens`` is an
int, the tokens that are no padding.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Any

import numpy as np
import torch

from finetune_trainer.prepared import IGNORED, Sequence

Answer = tuple[np.ndarray, np.ndarray]
"""Ids and labels, each int64 (n,)."""


class PairCollator:
    """Pairs for DPO: chosen answers of the batch, then the rejected ones, padded on the right."""

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, sequences: Several[Sequence]) -> dict[str, Any]:
        """input_ids, attention_mask and completion_mask, int64 (2 x batch, longest)."""
        answers = _chosen_then_rejected(sequences)
        return {**_padded(answers, self._pad), "tokens": _tokens(answers)}


class RewardCollator(PairCollator):
    """Pairs for a reward model, which sees the whole of each."""

    def __call__(self, sequences: Several[Sequence]) -> dict[str, Any]:
        """input_ids and attention_mask, int64 (2 x batch, longest)."""
        batch = super().__call__(sequences)
        del batch["completion_mask"]
        return batch


class OrpoCollator(PairCollator):
    """Pairs for ORPO: chosen and rejected answers apart."""

    def __call__(self, sequences: Several[Sequence]) -> dict[str, Any]:
        """chosen_ and rejected_ input_ids, attention_mask and labels, int64 (batch, longest)."""
        answers = _chosen_then_rejected(sequences)
        batch: dict[str, Any] = {"tokens": _tokens(answers)}
        for name, part in (("chosen", answers[: len(sequences)]), ("rejected", answers[len(sequences) :])):
            padded = _padded(part, self._pad)
            answered = padded.pop("completion_mask").bool()
            padded["labels"] = padded["input_ids"].masked_fill(~answered, IGNORED)
            batch |= {f"{name}_{key}": value for key, value in padded.items()}
        return batch


class LabelledCollator:
    """Labelled answers for KTO, and beside each a prompt with another's answer.

    On those the divergence from the reference is estimated (Ethayarajh et al., arXiv 2402.01306): within a batch each
    prompt gets the answer of the sample before it, the first that of the last.
    """

    def __init__(self, pad_token_id: int) -> None:
        self._pad = pad_token_id

    def __call__(self, sequences: Several[Sequence]) -> dict[str, Any]:
        """input_ids, attention_mask and completion_mask, int64 (batch, longest), the same as KL_…, and label, bool
        (batch,)."""
        answers = [(one.input_ids, one.labels) for one in sequences]
        begins = [int(np.flatnonzero(labels != IGNORED)[0]) for _, labels in answers]
        others = [
            tuple(np.concatenate([mine[:begin], theirs[other:]]) for mine, theirs in zip(answer, before, strict=True))
            for answer, begin, before, other in zip(
                answers, begins, [answers[-1], *answers[:-1]], [begins[-1], *begins[:-1]], strict=True
            )
        ]
        mismatched = _padded(others, self._pad)  # type: ignore[arg-type]
        return {
            **_padded(answers, self._pad),
            **{f"KL_{name}": value for name, value in mismatched.items()},
            "label": torch.tensor([bool(one.desirable) for one in sequences]),
            "tokens": _tokens(answers),
        }


def _chosen_then_rejected(sequences: Several[Sequence]) -> list[Answer]:
    chosen, rejected = [], []
    for one in sequences:
        end = int(one.lengths[0])
        chosen.append((one.input_ids[:end], one.labels[:end]))
        rejected.append((one.input_ids[end:], one.labels[end:]))
    return chosen + rejected


def _tokens(answers: list[Answer]) -> int:
    return sum(len(ids) for ids, _ in answers)


def _padded(answers: list[Answer], pad: int) -> dict[str, torch.Tensor]:
    shape = (len(answers), max(len(ids) for ids, _ in answers))
    padded = np.full(shape, pad, dtype=np.int64)
    attended, answered = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, (ids, labels) in enumerate(answers):
        padded[row, : len(ids)] = ids
        attended[row, : len(ids)] = 1
        answered[row, : len(ids)] = labels != IGNORED
    return {
        "input_ids": torch.from_numpy(padded),
        "attention_mask": torch.from_numpy(attended),
        "completion_mask": torch.from_numpy(answered),
    }
