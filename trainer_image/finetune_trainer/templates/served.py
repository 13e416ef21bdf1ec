"""What is trained is what is served: an answer is trained in the very text that the model gave it in.

When an answer was given, the conversation ended with it. Templates may show it otherwise once the conversation has
gone on: most leave the thoughts of earlier turns out, some write tools before the last question alone. Training on
that would teach answers that the prompt of their time does not lead to. So the whole conversation trains the answers
that stand in it as they were given, and for the others the conversation up to them is a text of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from finetune_trainer.messages import Message
from finetune_trainer.templates.marks import Segment

Place = tuple[int, int]
"""Start and end within a text, in characters."""


@dataclass(frozen=True)
class Given:
    """A conversation that ends with an answer, as it was when that was given."""

    segments: list[Segment]
    answer: Place
    """Where the last answer stands, with what ends it."""

    @cached_property
    def text(self) -> str:
        """All of it."""
        return "".join(segment.text for segment in self.segments)


def as_given(
    messages: Sequence[Message], first: int, render: Callable[[Sequence[Message]], Given]
) -> list[list[Segment]]:
    """The renderings that train each answer from the ``first`` on once, as it was given: the whole conversation, then
    earlier parts of it, later ones first.

    Args:
        messages: end with an answer.
        first: number of the first answer that is trained, from 0.
        render: renders a part of the conversation that ends with an answer.
    """
    ends = [place for place, message in enumerate(messages) if message.role == "assistant"]
    given = {number: render(messages[: ends[number] + 1]) for number in range(first, len(ends))}
    heads = {number: (one.text[: one.answer[1]], one.answer) for number, one in given.items()}
    left, found = set(given), []
    while left:
        base = given[max(left)]
        text = base.text
        trained = {number: heads[number][1] for number in left if text.startswith(heads[number][0])}
        found.append(retrained(base.segments, trained))
        left -= trained.keys()
    return found


def retrained(segments: Sequence[Segment], places: Mapping[int, Place]) -> list[Segment]:
    """The same text, trained at the ``places`` of the answers with these numbers and nowhere else."""
    cut: list[Segment] = []
    every = sorted(edge for place in places.values() for edge in place)
    start = 0
    for segment in segments:
        text, literal, turn, _, medium = segment
        end = start + len(text)
        edges = [start, *(edge for edge in every if start < edge < end), end]
        for first, last in pairwise(edges):
            if first == last:
                continue
            number = next((n for n, place in places.items() if place[0] <= first < place[1]), None)
            cut.append(Segment(text[first - start : last - start], literal, turn, number, medium))
        start = end
    return cut


def last_answer(segments: Sequence[Segment]) -> Given:
    """``segments`` of a conversation whose last answer is trained, with its place."""
    number = max(segment.answer for segment in segments if segment.answer is not None)
    start, places = 0, []
    for segment in segments:
        if segment.answer == number:
            places += [start, start + len(segment.text)]
        start += len(segment.text)
    return Given(list(segments), (min(places), max(places)))
