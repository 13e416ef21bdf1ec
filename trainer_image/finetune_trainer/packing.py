"""Packing: several samples into one sequence, by best fit over the whole set, longest first."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np


def one_each(samples: np.ndarray) -> list[list[int]]:
    """No packing: a sequence a sample, in the order given."""
    return [[int(sample)] for sample in samples]


def filled(sequences: Sequence[Sequence[int]], lengths: Sequence[int] | np.ndarray, capacity: int) -> float:
    """Share of the sequences' ``capacity`` that their samples fill, from 0 to 1."""
    tokens = sum(int(lengths[sample]) for members in sequences for sample in members)
    return tokens / (len(sequences) * capacity) if sequences else 0.0


def pack(samples: np.ndarray, lengths: Sequence[int] | np.ndarray, capacity: int, *, seed: int) -> list[list[int]]:
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
    sizes = np.asarray(lengths, dtype=np.int64)[shuffled]
    order = np.argsort(-sizes, kind="stable")
    sequences: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # sequences by the room they have left
    rooms: list[int] = []  # its keys in order
    for sample, size in zip(shuffled[order].tolist(), sizes[order].tolist(), strict=True):
        at = bisect.bisect_left(rooms, size)
        if at == len(rooms):
            number, room = len(sequences), capacity
            sequences.append([])
        else:
            room = rooms[at]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room]
                rooms.pop(at)
        sequences[number].append(sample)
        if room > size:
            left = room - size
            if left not in with_room:
                with_room[left] = []
                bisect.insort(rooms, left)
            with_room[left].append(number)
    return [generator.permutation(sequences[number]).tolist() for number in generator.permutation(len(sequences))]
