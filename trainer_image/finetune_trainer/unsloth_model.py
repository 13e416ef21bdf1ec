"""A model as Unsloth's FastLanguageModel loads it, with its adapters: kernels for norms, rotary embeddings, attention,
gated units and LoRA's products (https://github.com/unslothai/unsloth). All around it stays ours: data, loop, loss,
checkpoints and exports see an ordinary model of peft's.

:func:`finetune_trainer.unsloth_start.start` comes first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from transformers import AutoConfig, AutoTokenizer, GenerationConfig

from finetune_trainer.adapters import check_names
from finetune_trainer.dtypes import DTYPES
from finetune_trainer.errors import TrainerError


def load_base(config: TrainerConfig, directory: Path, device: torch.device) -> Any:
    """The model in ``directory`` on ``device``, in ``precision`` or in 4 bits.

    Raises:
        TrainerError: MODEL_INVALID.
    """
    from unsloth import FastLanguageModel  # noqa: PLC0415 - of another image, and only after its start

    wanted = config.quantization
    with tempfile.TemporaryDirectory(prefix="unsloth-tokenizer-") as stand_in:
        _write_stand_in(directory, Path(stand_in))
        try:
            model, _ = FastLanguageModel.from_pretrained(
                str(directory),
                max_seq_length=config.max_length,
                dtype=DTYPES[config.precision],
                load_in_4bit=wanted is not None and wanted.method == "bitsandbytes",
                device_map={"": device.index or 0},
                tokenizer_name=stand_in,
                fix_tokenizer=False,
                use_exact_model_name=True,  # else it takes another upload of the model, by a table of its own
                use_gradient_checkpointing=_recomputed(config),
                offload_embedding=False,
                random_state=config.hyperparameters.seed,
                trust_remote_code=False,
                local_files_only=True,
                **({} if config.model.allow_pickle else {"use_safetensors": True}),
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError, NotImplementedError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0][:500]
            raise TrainerError(
                ExitCode.MODEL_INVALID, f"{config.model.uri} cannot be loaded by Unsloth: {first}"
            ) from error
    _restore_settings(model, directory)
    return model


def add_adapters(model: Any, config: TrainerConfig, linear: list[str]) -> Any:
    """``model``, of :func:`load_base`, with LoRA's adapters under the names that peft gives them, in fp32.

    Args:
        model: the base.
        config: the job's.
        linear: names of the layers that can take an adapter.

    Raises:
        TrainerError: METHOD_INVALID, with the names that there are.
    """
    from unsloth import FastLanguageModel  # noqa: PLC0415 - as above

    method = config.method.lora
    assert method is not None  # noqa: S101 - the rules' condition
    check_names("targetModules", method.target_modules, linear)
    model = FastLanguageModel.get_peft_model(
        model,
        r=method.rank,
        lora_alpha=method.alpha if method.alpha is not None else 2 * method.rank,
        lora_dropout=method.dropout,
        bias="none",
        target_modules=sorted(set(method.target_modules) or {name.rpartition(".")[2] for name in linear}),
        use_gradient_checkpointing=_recomputed(config),
        random_state=config.hyperparameters.seed,
        use_rslora=method.rslora,
        init_lora_weights="gaussian" if method.init == "gaussian" else True,
    )
    for settings in model.peft_config.values():
        settings.auto_mapping = None  # which Unsloth fills in; an adapter of a known task has none
    _rearm_after_generation(model)
    return model


def _recomputed(config: TrainerConfig) -> str | bool:
    """Its own gradient checkpointing holds what layers recompute from in host memory."""
    return "unsloth" if config.acceleration.gradient_checkpointing else False


def _write_stand_in(directory: Path, target: Path) -> None:
    """A tokenizer that Unsloth finds nothing to mend in. Where the model's own pads with what ends a text, as many do,
    it would give it another token and perhaps the model another row; ours, with its template, is loaded elsewhere."""
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    settings = AutoConfig.from_pretrained(directory, local_files_only=True)
    tokenizer.chat_template = None
    known = sorted(tokenizer.get_vocab().items(), key=lambda entry: int(entry[1]))
    tokenizer.pad_token = next(
        token for token, number in known if number < settings.vocab_size and number != tokenizer.eos_token_id
    )
    tokenizer.save_pretrained(target)


def _restore_settings(model: Any, directory: Path) -> None:
    """Set back what Unsloth writes into settings that are delivered: a pad token, a length of answers."""
    plain = AutoConfig.from_pretrained(directory, local_files_only=True)
    model.config.pad_token_id = plain.pad_token_id
    try:
        model.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)
    except OSError:  # the model came without
        model.generation_config = GenerationConfig.from_model_config(plain)


def _rearm_after_generation(model: Any) -> None:
    """Have gradient checkpointing on again when an answer is written: Unsloth puts it out for that, and back on only
    in a model that was in training."""
    plain = model.generate

    def generate(*arguments: Any, **options: Any) -> Any:
        training = model.training
        try:
            return plain(*arguments, **options)
        finally:
            model.for_training()
            model.train(training)

    model.generate = generate
