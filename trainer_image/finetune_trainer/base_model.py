"""What prepare can know of a model without loading it: that it is a causal language model in safetensors, and whole."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.failures import ExitCode
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as _MULTIMODAL

from finetune_trainer.errors import TrainerError
from finetune_trainer.files import read_json, sha256_file
from finetune_trainer.media_models import media_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SUFFIXES = (".safetensors", ".json", ".model", ".txt", ".jinja")
PICKLES = (".bin", ".pt", ".pth")


@dataclass(frozen=True)
class BaseModel:
    """A model that can be trained."""

    architecture: str
    parameters: int | None
    """None where the weights are pickles, which have no header to read, or hold several values a number."""
    vocabulary: int | None
    longest: int | None
    """Positions that it was made for."""


def wanted_files(names: list[str], *, allow_pickle: bool, code: bool) -> list[str]:
    """Of a model's files those that training needs: weights in one form, configuration, tokenizer.

    Args:
        names: paths relative to the model.
        allow_pickle: take pickled weights where there are no safetensors.
        code: take Python code.
    """
    # Folders hold other forms (onnx/, original/), but for additional chat templates.
    top = [name for name in names if "/" not in name or name.startswith("additional_chat_templates/")]
    wanted = [name for name in top if name.endswith(SUFFIXES) and not name.startswith(".")]
    if allow_pickle and not any(name.endswith(".safetensors") for name in wanted):
        wanted += [name for name in top if name.endswith(PICKLES) and name.startswith("pytorch_model")]
    if code:
        wanted += [name for name in names if name.endswith(".py")]
    return sorted(wanted)


def ending_tokens(directory: Path) -> tuple[int, ...]:
    """Ids at which the model's ``generation_config.json`` stops; none where there is no such file, or it is broken."""
    try:
        settings = read_json(directory / "generation_config.json")
    except ValueError:
        return ()
    ends = settings.get("eos_token_id") if isinstance(settings, dict) else None
    found = ends if isinstance(ends, list) else [ends]
    return tuple(end for end in found if isinstance(end, int))


def inspect_model(directory: Path, *, trust_remote_code: bool, allow_pickle: bool) -> BaseModel:
    """Look at the model in ``directory``.

    Raises:
        TrainerError: MODEL_INVALID.
    """
    if not (directory / "config.json").is_file():
        raise _invalid(_why_no_config(directory))
    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # whatever a broken file makes the library raise
        if "trust_remote_code" in str(error):
            raise _invalid(
                "it needs Python code of its own: set spec.model.trustRemoteCode, if you trust it and the profile "
                "allows it"
            ) from error
        raise _invalid(f"its config.json cannot be used: {error}") from error
    parameters = _parameters(directory, allow_pickle=allow_pickle)
    packed = getattr(config, "quantization_config", None) is not None
    return BaseModel(
        architecture=_architecture(config),
        parameters=None if packed else parameters,
        vocabulary=getattr(config.get_text_config(), "vocab_size", None),
        longest=getattr(config.get_text_config(), "max_position_embeddings", None),
    )


def digest_of_files(directory: Path, *, allow_pickle: bool, code: bool) -> str:
    """`sha256:` over names and contents of what training reads of a model."""
    names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for name in wanted_files(names, allow_pickle=allow_pickle, code=code):
        digest.update(f"{name}\0{sha256_file(directory / name)}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _invalid(problem: str) -> TrainerError:
    return TrainerError(ExitCode.MODEL_INVALID, f"spec.model.source: the model cannot be trained: {problem}")


def _why_no_config(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    if "adapter_config.json" in names:
        return "this is an adapter, not a model; name the model that it was made for"
    if any(name.endswith(".gguf") for name in names):
        return "GGUF is for inference; name the model in safetensors form"
    listed = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"there is no config.json in {directory}; it holds: {listed or 'nothing'}"


def _architecture(config: Any) -> str:
    known: set[str] = set()
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        known.update([names] if isinstance(names, str) else names)
    if media_model(config) is not None:
        known.add(_MULTIMODAL[config.model_type])
    named = list(getattr(config, "architectures", None) or [])
    if not named:
        mapping = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if media_model(config) is None else _MULTIMODAL
        default = mapping.get(config.model_type)
        named = [default] if isinstance(default, str) else list(default or [])
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    for name in named:
        if name in known or own_code:
            return str(name)
    raise _invalid(
        f"it is {' or '.join(map(str, named)) or f'of type {config.model_type}'}, not a causal language model "
        "(…ForCausalLM) that this release knows"
    )


def _parameters(directory: Path, *, allow_pickle: bool) -> int | None:
    if (directory / INDEX).is_file():
        try:
            files = sorted(set(json.loads((directory / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise _invalid(f"its {INDEX} cannot be read: {error!r}") from error
    elif (directory / WEIGHTS).is_file():
        files = [WEIGHTS]
    else:
        pickled = sorted(path.name for path in directory.iterdir() if path.name.endswith(PICKLES))
        if not pickled:
            raise _invalid(f"there are no weights ({WEIGHTS} or {INDEX}) in {directory}")
        if allow_pickle:
            return None
        raise _invalid(
            f"its weights are pickles ({pickled[0]}), which can run code as they are loaded; name a revision with "
            "safetensors, or have the profile allow them (security.allowPickle)"
        )
    return sum(_parameters_in(directory / file) for file in files)


def _parameters_in(path: Path) -> int:
    """Parameters by the header of a safetensors file, whose tensors must all be there."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header: dict[str, Any] = json.loads(file.read(size))
        header.pop("__metadata__", None)
        end = 8 + size + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        count: int = sum(math.prod(tensor["shape"]) for tensor in header.values())
    except FileNotFoundError as error:
        raise _invalid(f"{path.name} is missing, which {INDEX} names; copy the model again") from error
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise _invalid(f"{path.name} is no safetensors file, or is damaged; copy the model again") from error
    if (found := path.stat().st_size) < end:
        raise _invalid(f"{path.name} is cut short: {found:,} of {end:,} bytes; copy the model again")
    return count
