"""What this release trains. The API refuses the rest at apply; a configuration made by other means is refused here, by
the same table of rules, never trained with a wish left out."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.failures import ExitCode
from finetune_api.stages import PREFERENCE_NUMBERS
from finetune_api.trainer_config import TrainerConfig
from finetune_api.validation import validate_config

from finetune_trainer import unsloth_start
from finetune_trainer.deepspeed_config import owned_keys
from finetune_trainer.errors import TrainerError
from finetune_trainer.strategy import choose


def check_supported(config: TrainerConfig) -> None:
    """Refuse a configuration that asks for what this trainer cannot do.

    Raises:
        TrainerError: CONFIG_INVALID or ACCELERATION_UNAVAILABLE, with every field at fault.
    """
    problems = [*map(str, validate_config(config)), *_unresolved(config)]
    if problems:
        raise TrainerError(ExitCode.CONFIG_INVALID, "; ".join(problems))
    choose(config)  # refuses where `auto` has nothing to choose from
    missing = list(unsloth_start.missing(config))
    if missing:
        raise TrainerError(ExitCode.ACCELERATION_UNAVAILABLE, "not to be had here: " + "; ".join(missing))


def _unresolved(config: TrainerConfig) -> Iterator[str]:
    """What a plan hands over whatever the spec says, and what rules on the spec cannot look into."""
    method = config.method
    if method.full is None and method.freeze is None and method.lora is None:
        yield "spec.method: set one of full, freeze and lora"
    if (config.preference is not None) != (config.stage in PREFERENCE_NUMBERS):
        yield f"spec.preference: is for stages {', '.join(PREFERENCE_NUMBERS)}, and for each of them"
    if config.template.ref is not None and config.chat_template is None:
        yield f"spec.template.ref: {config.template.ref} was not handed over; operator and trainer image do not match"
    if not config.sources:
        yield "spec.dataset.sources: names no data"
    yield from owned_keys(config.distributed.deepspeed or {})
