"""Media of rows, read and tried before anything is trained: the file is there, opens, and has its text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from finetune_api.failures import ExitCode
from finetune_api.recipe import SHARDS_WEIGHTS
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.errors import TrainerError
from finetune_trainer.media_files import MediaError
from finetune_trainer.media_models import MEDIA_MODELS
from finetune_trainer.media_processor import MediaProcessor
from finetune_trainer.messages import Content, Conversation, Medium
from finetune_trainer.row_errors import MEDIA, MEDIA_FILE, RowError, invalid
from finetune_trainer.samples import Sample, sample_of
from finetune_trainer.sources import FoundSource


@dataclass(frozen=True)
class MediaReader:
    """Reads the media of samples for one model."""

    config: TrainerConfig
    processor: MediaProcessor | None
    """None for a model of text alone."""

    def read(self, number: int, sample: Sample) -> Sample:
        """``sample`` of source ``number``, each medium with its text and hash.

        Raises:
            RowError: MEDIA_FILE, or MEDIA where the model takes none of the kind; naming the row and the field.
            TrainerError: CONFIG_INVALID where the job cannot hold media.
        """
        if not isinstance(sample, Conversation) or not any(message.media for message in sample.messages):
            return sample
        self._check_job()
        messages = []
        for message in sample.messages:
            media = tuple(self._read(number, medium, sample.where) for medium in message.media)
            messages.append(replace(message, media=media) if media else message)
        return replace(sample, messages=tuple(messages))

    def _read(self, number: int, medium: Medium, where: str) -> Medium:
        kinds = () if self.processor is None else self.processor.known.kinds
        if self.processor is None or medium.kind not in kinds:
            takes = f"takes {', '.join(('text', *kinds))}" if kinds else "is trained on text alone"
            others = ", ".join(sorted(name for name, known in MEDIA_MODELS.items() if medium.kind in known.kinds))
            advice = f"models that take it: {others}" if others else "no model of this release takes it"
            raise invalid(
                where,
                f"{medium.place} is of type {medium.kind!r}, and the model ({self.config.model.uri}) {takes}; {advice}",
                MEDIA,
            )
        try:
            held = self.processor.read(self.config.sources[number], medium.kind, medium.content)
            text = self.processor.text_of(medium.kind, self.processor.open(medium.kind, held))
        except MediaError as error:
            named = f" ({medium.content})" if isinstance(medium.content, str) else ""
            raise invalid(where, f"{medium.place}{named}: {error}", MEDIA_FILE) from error
        return replace(medium, text=text, digest=held.sha256, source=number)

    def _check_job(self) -> None:
        if self.config.packing:
            raise TrainerError(
                ExitCode.CONFIG_INVALID,
                "spec.dataset.packing: rows with images or sounds are not packed, since their positions would not be "
                "those of the sample alone; set it to false",
            )
        if self.config.hyperparameters.micro_batch_size == "auto":
            raise TrainerError(
                ExitCode.CONFIG_INVALID,
                "spec.hyperparameters.microBatchSize: auto goes by a memory estimate that counts the language model "
                "alone, and rows have images or sounds; give a number",
            )
        if self.config.distributed.strategy in SHARDS_WEIGHTS:
            raise sharded(self.config.distributed.strategy)


def sharded(strategy: str) -> TrainerError:
    """The refusal of a strategy that shares out weights."""
    return TrainerError(
        ExitCode.CONFIG_INVALID,
        f"spec.distributed.strategy: {strategy} shares out the weights that see and hear, and a device whose batch has "
        "text alone would leave the others waiting for them; use ddp, zero1 or zero2",
    )


def media_facts(sources: Sequence[FoundSource], processor: MediaProcessor) -> list[list[str]]:
    """Names and hashes of all files that rows name, in their order: the data's identity beside the rows themselves.
    What cannot be read is left to the reader, which says where it is."""
    found: dict[tuple[int, Content], str] = {}
    for number, medium in _named_files(sources):
        if (number, medium.content) in found:
            continue
        try:
            held = processor.read(sources[number].source, medium.kind, medium.content)
            found[number, medium.content] = f"{held.of}:{held.sha256.hex()}"
        except MediaError as error:
            found[number, medium.content] = f"unreadable: {error}"
    return [[str(number), repr(content), digest] for (number, content), digest in found.items()]


def _named_files(sources: Sequence[FoundSource]) -> Iterator[tuple[int, Medium]]:
    """Media that are not in the rows whole, with the number of their source."""
    for number, source in enumerate(sources):
        for raw in source.rows():
            try:
                sample = sample_of(source.source, raw)
            except RowError:
                continue
            for message in sample.messages if isinstance(sample, Conversation) else ():
                yield from ((number, medium) for medium in message.media if _names_files(medium.content))


def _names_files(content: Content) -> bool:
    return isinstance(content, str) or (isinstance(content, tuple) and any(isinstance(one, str) for one in content))
