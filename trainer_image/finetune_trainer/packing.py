"""Packing: several samples into one sequence, by best fit over the whole set, longest first."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sequences:
    """Which samples make up each sequence, one behind another: a set has millions, and as lists they take ten times
    the memory."""

    members: np.ndarray
    """int64: numbers of samples."""
    starts: np.ndarray
    """int64 (sequences + 1,): where each begins in ``members``."""

    @classmethod
    def of(cls, members: np.ndarray, counts: np.ndarray) -> Sequences:
        """``members`` in sequences of so many."""
        return cls(members.astype(np.int64), np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[list[int]]:
        """The samples of each."""
        for start, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            yield self.members[start:end].tolist()


def one_each(samples: np.ndarray) -> Sequences:
    """No packing: a sequence a sample, in the order given."""
    return Sequences.of(np.asarray(samples), np.ones(len(samples), dtype=np.int64))


def filled(sequences: Sequences, lengths: Sequence[int] | np.ndarray, capacity: int) -> float:
    """Share of the sequences' ``capacity`` that their samples fill, from 0 to 1."""
    tokens = int(np.asarray(lengths)[sequences.members].sum())
    return tokens / (len(sequences) * capacity) if len(sequences) else 0.0


def pack(samples: np.ndarray, lengths: Sequence[int] | np.ndarray, capacity: int, *, seed: int) -> Sequences:
    """Share ``samples`` out to sequences of at most ``capacity`` tokens.

    Each goes into the fullest sequence that still has room (best fit, decreasing). The same input gives the same
    result; ``seed`` decides between samples of one length, and the order of the sequences and within them, so that
    length tells nothing of the place.

    Args:
        samples: numbers of the samples to pack.
        lengths: tokens of each sample, by its number.
        capacity: no sample is longer.
    """
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(np.asarray(samples, dtype=np.int64))
    sizes = np.asarray(lengths)[shuffled].astype(np.int32)
    order = np.argsort(-sizes, kind="stable")
    shuffled, sizes = shuffled[order], sizes[order]
    numbers = np.empty(len(shuffled), dtype=np.int32)  # of the sequence that each goes into
    count = 0
    with_room: dict[int, list[int]] = {}  # sequences by the room they have left
    rooms: list[int] = []  # its keys in order
    for place, length in enumerate(sizes):
        size = int(length)
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            number, room = count, capacity
            count += 1
        else:
            room = rooms[at]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room]
                rooms.pop(at)
        numbers[place] = number
        if room > size:
            left = room - size
            if left not in with_room:
                with_room[left] = []
                bisect.insort(rooms, left)
            with_room[left].append(number)
    numbers = generator.permutation(count).astype(np.int32)[numbers]
    within = np.lexsort((generator.random(len(numbers), dtype=np.float32), numbers))
    return Sequences.of(shuffled[within], np.bincount(numbers, minlength=count))
