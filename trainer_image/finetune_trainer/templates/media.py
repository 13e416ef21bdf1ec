"""What stands for an image, video or sound in a rendered conversation, put where the template has its placeholder.

A processor replaces the one token of a placeholder by as many as the model has features for it, in the text, before
that is tokenized. So do we: the ids are those that the processor makes of the same conversation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from finetune_api.failures import ExitCode

from finetune_trainer.errors import TrainerError
from finetune_trainer.messages import MEDIA_KINDS, MediaKind, Medium
from finetune_trainer.templates.marks import Segment


def with_media(
    segments: Sequence[Segment], media: Sequence[Medium], tokens: Mapping[MediaKind, str], *, template: str, whole: bool
) -> tuple[list[Segment], tuple[Medium, ...]]:
    """``segments`` with the text of each medium for its placeholder, and the media that are in them.

    Args:
        segments: of a conversation, or of its beginning.
        media: of the whole conversation, in its order.
        tokens: the model's placeholder of each kind.
        template: its name.
        whole: whether the segments are the whole conversation, in which all media must be.

    Raises:
        TrainerError: TEMPLATE_INVALID where the template does not write a placeholder for each medium.
    """
    waiting = {kind: [medium for medium in media if medium.kind == kind] for kind in MEDIA_KINDS}
    counts = dict.fromkeys(MEDIA_KINDS, 0)
    kinds: dict[str, MediaKind] = {token: kind for kind, token in tokens.items()}
    found: list[Segment] = []
    split = re.compile(f"({'|'.join(map(re.escape, kinds))})")
    for segment in segments:
        if segment.literal:  # a person's text: tokens in it mean nothing
            found.append(segment)
            continue
        for piece in split.split(segment.text):
            if piece not in kinds:
                if piece:
                    found.append(segment._replace(text=piece))
                continue
            kind = kinds[piece]
            counts[kind] += 1
            if counts[kind] <= len(waiting[kind]):
                text = waiting[kind][counts[kind] - 1].text
                found.append(segment._replace(text=text, answer=None, medium=True))
    for kind, count in counts.items():
        there = len(waiting[kind])
        if count > there or (whole and count < there):
            raise TrainerError(
                ExitCode.TEMPLATE_INVALID,
                f"spec.template.name: a conversation has {there} of type {kind!r}, and template {template} writes "
                f"{count or 'no'} placeholder{'' if count == 1 else 's'} that the model knows ({tokens.get(kind)}); "
                "name the template of the model's family",
            )
    used = {id(medium) for kind in MEDIA_KINDS for medium in waiting[kind][: counts[kind]]}
    return found, tuple(medium for medium in media if id(medium) in used)
