"""What can be known of a model by its files alone, and each model that cannot be trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetune_api.failures import ExitCode
from finetune_trainer.base_model import digest_of_files, inspect_model, wanted_files
from finetune_trainer.errors import TrainerError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "model")


def configure(model: Path, **values: Any) -> None:
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | values))


def inspect(model: Path, *, allow_pickle: bool = False) -> Any:
    return inspect_model(model, trust_remote_code=False, allow_pickle=allow_pickle)


def test_parameters_are_counted_without_loading(tiny: Path) -> None:
    found = inspect(tiny)
    assert found.parameters == AutoModelForCausalLM.from_pretrained(tiny).num_parameters()
    assert (found.architecture, found.vocabulary, found.longest) == ("LlamaForCausalLM", 384, 4096)


def shard(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, members in parts.items():
        save_file({name: tensors[name] for name in members}, model / file, metadata={"format": "pt"})
    weight_map = {name: file for file, members in parts.items() for name in members}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (model / "model.safetensors").unlink()


def test_shards_are_counted_together_and_all_must_be_there(model: Path) -> None:
    whole = inspect(model).parameters
    shard(model)
    assert inspect(model).parameters == whole
    (model / "model-2.safetensors").unlink()
    with pytest.raises(TrainerError, match=r"model-2\.safetensors is missing, which .*index\.json names"):
        inspect(model)


def cut(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(data[:-100])


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def adapter(model: Path) -> None:
    (model / "config.json").rename(model / "adapter_config.json")


def gguf(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "model.safetensors").rename(model / "model.gguf")


BAD: list[tuple[Callable[[Path], Any], str]] = [
    (lambda model: (model / "config.json").unlink(), r"there is no config\.json in .*; it holds: chat_template\.jinja"),
    (lambda model: (model / "config.json").write_text("{"), r"its config\.json cannot be used"),
    (lambda model: configure(model, model_type="wizard"), r"its config\.json cannot be used: .*wizard"),
    (
        lambda model: configure(model, architectures=["LlamaForSequenceClassification"]),
        r"it is LlamaForSequenceClassification, not a causal language model",
    ),
    (
        lambda model: configure(
            model, model_type="wizard", auto_map={"AutoConfig": "wizard.Config", "AutoModelForCausalLM": "wizard.Model"}
        ),
        r"it needs Python code of its own: set spec\.model\.trustRemoteCode",
    ),
    (lambda model: (model / "model.safetensors").unlink(), r"there are no weights"),
    (lambda model: (model / "model.safetensors").write_bytes(b"<html>no</html>"), r"is no safetensors file"),
    (lambda model: (model / "model.safetensors").write_bytes(b""), r"is no safetensors file"),
    (lambda model: (model / "model.safetensors.index.json").write_text("{}"), r"index\.json cannot be read"),
    (cut, r"model\.safetensors is cut short: .* copy the model again"),
    (pickled, r"its weights are pickles \(pytorch_model\.bin\), which can run code .*\(security\.allowPickle"),
    (adapter, r"this is an adapter, not a model"),
    (gguf, r"GGUF is for inference"),
]


@pytest.mark.parametrize(("damage", "message"), BAD)
def test_a_model_that_cannot_be_trained_is_refused(model: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(model)
    with pytest.raises(TrainerError, match=message) as failure:
        inspect(model)
    assert failure.value.exit_code is ExitCode.MODEL_INVALID


def test_pickles_pass_where_they_are_allowed(model: Path) -> None:
    pickled(model)
    assert inspect(model, allow_pickle=True).parameters is None


def test_the_digest_follows_what_is_read_and_nothing_else(model: Path) -> None:
    def digest() -> str:
        return digest_of_files(model, allow_pickle=False, code=False)

    before = digest()
    (model / "README.md").write_text("changed")
    (model / "pytorch_model.bin").write_text("a pickle beside safetensors")
    assert digest() == before
    configure(model, rope_theta=5.0)
    assert digest() != before


def test_what_training_needs_of_a_repository() -> None:
    names = ["config.json", "model.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja", "a.py"]
    names += [".gitattributes", ".hidden.json", "onnx/config.json", "additional_chat_templates/tool.jinja"]
    names += ["pytorch_model.bin", "training_args.bin", "README.md", "model.gguf"]
    safe = {"config.json", "model.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"}
    safe |= {"additional_chat_templates/tool.jinja"}
    assert set(wanted_files(names, allow_pickle=True, code=False)) == safe
    assert set(wanted_files(names, allow_pickle=False, code=True)) == safe | {"a.py"}
    names.remove("model.safetensors")
    assert set(wanted_files(names, allow_pickle=True, code=False)) == safe - {"model.safetensors"} | {
        "pytorch_model.bin"
    }
