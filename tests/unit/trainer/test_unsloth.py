"""What is ours of training by Unsloth: when it is imported, how it is asked, what is set right behind it. Unsloth
itself needs a GPU (tests/unsloth); here a module that does as little stands in its place."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.reports import TERMINATION_PATH_ENV
from finetune_trainer import unsloth_start
from finetune_trainer.adapters import linear_names
from finetune_trainer.batches import Collator
from finetune_trainer.errors import TrainerError
from finetune_trainer.kernels import check_kernels
from finetune_trainer.model import Loaded, load_model
from finetune_trainer.prepared import Sequence
from finetune_trainer.supported import check_supported
from finetune_trainer.unsloth_model import load_base
from peft import LoraConfig, get_peft_model
from trainings import configure
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
)

CPU = torch.device("cpu")
ONE_GPU = {"acceleration": {"unsloth": True}, "distributed": {"gpusPerNode": 1}, "precision": "bf16"}


class Stand(ModuleType):
    """A module in Unsloth's place: loads by transformers and peft, and leaves behind what Unsloth does."""

    def __init__(self) -> None:
        super().__init__("unsloth")
        self.loaded: dict[str, Any] = {}
        self.adapted: dict[str, Any] = {}
        self.tokenizer: Any = None
        self.rearmed = 0
        self.FastLanguageModel = SimpleNamespace(from_pretrained=self.load, get_peft_model=self.adapt)

    def load(self, directory: str, **options: Any) -> tuple[Any, Any]:
        self.loaded = options
        self.tokenizer = AutoTokenizer.from_pretrained(options["tokenizer_name"])
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=options["dtype"])
        model.config.pad_token_id = 77
        model.generation_config.max_length = 4096
        return model, self.tokenizer

    def adapt(self, model: Any, **options: Any) -> Any:
        self.adapted = dict(options)
        settings = LoraConfig(
            task_type="CAUSAL_LM",
            r=options["r"],
            lora_alpha=options["lora_alpha"],
            target_modules=options["target_modules"],
            init_lora_weights=options["init_lora_weights"],
        )
        settings.auto_mapping = {"unsloth_fixed": True}
        adapted: Any = get_peft_model(model, settings)
        adapted.for_training = functools.partial(self.rearm, adapted)
        return adapted

    def rearm(self, model: Any) -> None:
        self.rearmed += 1
        model.train()


@pytest.fixture
def unsloth(monkeypatch: pytest.MonkeyPatch) -> Stand:
    stand = Stand()
    monkeypatch.setitem(sys.modules, "unsloth", stand)
    return stand


def load(tmp_path: Path, tiny: Path, **edits: Any) -> Loaded:
    return load_model(configure(tmp_path, tiny, **ONE_GPU | edits), tiny, CPU)


def test_the_adapter_is_the_one_that_peft_makes(tmp_path: Path, tiny: Path, unsloth: Stand) -> None:
    own, plain = load(tmp_path, tiny), load_model(configure(tmp_path, tiny, precision="bf16"), tiny, CPU)
    shapes = [
        {name: (part.shape, part.dtype, part.requires_grad) for name, part in loaded.model.named_parameters()}
        for loaded in (own, plain)
    ]
    assert shapes[0] == shapes[1]
    own.model.save_pretrained(tmp_path / "own")
    plain.model.save_pretrained(tmp_path / "plain")
    settings = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("own", "plain")]
    for one in settings:
        one["target_modules"].sort()
    assert settings[0] == settings[1]
    assert own.status == plain.status


def test_the_wishes_reach_it(tmp_path: Path, tiny: Path, unsloth: Stand) -> None:
    lora = {"rank": 2, "alpha": 7, "dropout": 0.5, "targetModules": ["q_proj"], "rslora": True, "init": "gaussian"}
    acceleration = {"unsloth": True, "gradientCheckpointing": True}
    loaded = load(tmp_path, tiny, method={"lora": lora}, acceleration=acceleration, hyperparameters={"seed": 5})
    asked = unsloth.loaded
    assert (asked["max_seq_length"], asked["dtype"], asked["load_in_4bit"]) == (256, torch.bfloat16, False)
    assert (asked["local_files_only"], asked["use_safetensors"], asked["use_exact_model_name"]) == (True, True, True)
    assert asked["trust_remote_code"] is False
    asked = unsloth.adapted
    assert (asked["r"], asked["lora_alpha"], asked["lora_dropout"], asked["use_rslora"]) == (2, 7, 0.5, True)
    assert (asked["target_modules"], asked["init_lora_weights"]) == (["q_proj"], "gaussian")
    for asked in (unsloth.loaded, unsloth.adapted):
        assert (asked["use_gradient_checkpointing"], asked["random_state"]) == ("unsloth", 5)
    assert loaded.acceleration.kernels == ["unsloth", "gradient-checkpointing"]
    assert loaded.acceleration.attention == "unsloth"


def test_without_checkpointing_it_recomputes_nothing(tmp_path: Path, tiny: Path, unsloth: Stand) -> None:
    load(tmp_path, tiny, quantization={"bits": 4})
    assert unsloth.loaded["use_gradient_checkpointing"] is unsloth.adapted["use_gradient_checkpointing"] is False
    assert unsloth.loaded["load_in_4bit"] is True


def test_a_layer_that_is_not_there_is_named(tmp_path: Path, tiny: Path, unsloth: Stand) -> None:
    with pytest.raises(TrainerError, match="no module 'w_pack'") as raised:
        load(tmp_path, tiny, method={"lora": {"targetModules": ["w_pack"]}})
    assert raised.value.exit_code is ExitCode.METHOD_INVALID


def test_what_it_changes_of_delivered_settings_is_set_back(tmp_path: Path, tiny: Path, unsloth: Stand) -> None:
    base = load(tmp_path, tiny).model.get_base_model()
    assert base.config.pad_token_id == AutoConfig.from_pretrained(tiny).pad_token_id
    assert base.generation_config.to_dict() == GenerationConfig.from_pretrained(tiny).to_dict()
    assert base.config.use_cache is False


def test_it_finds_nothing_to_mend_in_the_tokenizer(tmp_path: Path, tiny: Path, unsloth: Stand) -> None:
    model = shutil.copytree(tiny, tmp_path / "pads-with-its-end")
    own = AutoTokenizer.from_pretrained(tiny)
    own.pad_token = own.eos_token  # for which it would add a token, and perhaps a row to the model
    own.save_pretrained(model)
    load(tmp_path, model)
    seen = unsloth.tokenizer
    assert seen.pad_token_id not in (None, seen.eos_token_id)
    assert len(seen) == len(own)
    assert seen.chat_template is None
    assert not Path(unsloth.loaded["tokenizer_name"]).exists()


def test_gradient_checkpointing_is_on_again_after_an_answer(tmp_path: Path, tiny: Path, unsloth: Stand) -> None:
    model = load(tmp_path, tiny).model.eval()
    ids = torch.tensor([[5, 6, 7]])
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
    assert unsloth.rearmed == 1
    assert not model.training
    model.train().generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
    assert model.training


def test_what_it_says_of_a_model_that_it_cannot_load_is_told(tmp_path: Path, tiny: Path, unsloth: Stand) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("Unsloth: no\nmore")

    unsloth.FastLanguageModel.from_pretrained = fail
    with pytest.raises(TrainerError, match=r"hf://org/tiny cannot be loaded by Unsloth: Unsloth: no$") as raised:
        load_base(configure(tmp_path, tiny, **ONE_GPU), tiny, CPU)
    assert raised.value.exit_code is ExitCode.MODEL_INVALID


def test_packed_samples_are_told_by_their_lengths() -> None:
    one, two = (
        Sequence(*(torch.arange(n).numpy() for _ in range(2)), torch.tensor(lengths).numpy())
        for n, lengths in ((5, [2, 3]), (4, [4]))
    )
    batch = Collator(0, packed=True, flat=True, lengths=True)([one, two])
    assert batch["packed_seq_lengths"].tolist() == [2, 3, 4]
    assert batch["packed_seq_lengths"].dtype == torch.int32
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 2, 3]]
    assert "cu_seq_lens_q" not in batch


# -- refusals --------------------------------------------------------------------------------------------------


def test_an_image_without_it_is_named_with_the_one_that_has_it(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    config = configure(tmp_path, tiny, **ONE_GPU)
    with pytest.raises(TrainerError, match=r"does not have Unsloth.*trainer-unsloth.*docs/unsloth\.md") as raised:
        check_supported(config)
    assert raised.value.exit_code is ExitCode.ACCELERATION_UNAVAILABLE


@pytest.mark.parametrize(
    ("edits", "told"),
    [
        ({"distributed": {"gpusPerNode": 2}, "hyperparameters": {"microBatchSize": 1}}, "spec.acceleration.unsloth"),
        ({"precision": "fp32"}, "spec.precision"),
        ({"quantization": {"bits": 8}}, "spec.quantization"),
        ({"method": {"full": {}}}, "spec.acceleration.unsloth"),
        ({"merge": {}}, "spec.output.merge"),
        ({"acceleration": {"unsloth": True, "compile": True}}, "spec.acceleration.compile"),
    ],
)
def test_what_the_api_refuses_with_it_is_refused_here(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, edits: dict[str, Any], told: str
) -> None:
    monkeypatch.setattr(unsloth_start, "missing", lambda _config: iter(()))
    check_supported(configure(tmp_path, tiny, **ONE_GPU))
    with pytest.raises(TrainerError, match=told) as raised:
        check_supported(configure(tmp_path, tiny, **ONE_GPU | edits))
    assert raised.value.exit_code is ExitCode.CONFIG_INVALID


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (AutoConfig.for_model("gptj"), "'gptj'; leave it false. It is for: gemma, llama"),
        (MistralConfig(sliding_window=4096), "'mistral' with windows"),
        (LlamaConfig(max_position_embeddings=255), "maxLength 256 is more than the model's positions, 255"),
    ],
    ids=["type", "window", "positions"],
)
def test_a_model_that_it_has_no_kernels_for_is_refused(tmp_path: Path, tiny: Path, settings: Any, told: str) -> None:
    config = configure(tmp_path, tiny, **ONE_GPU)
    check_kernels(config, LlamaConfig(max_position_embeddings=256))
    check_kernels(config, MistralConfig(sliding_window=None))
    with pytest.raises(TrainerError, match=told) as raised:
        check_kernels(config, settings)
    assert raised.value.exit_code is ExitCode.ACCELERATION_UNAVAILABLE


# -- import ----------------------------------------------------------------------------------------------------


def test_it_is_imported_before_what_it_changes_and_says_why_it_cannot_be(tmp_path: Path, tiny: Path) -> None:
    package, seen = tmp_path / "packages" / "unsloth", tmp_path / "seen.json"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "import json, os, pathlib, sys\n"
        "changed = [name for name in ('torch', 'transformers', 'peft', 'trl') if name in sys.modules]\n"
        f"facts = {{'imported': changed, 'environment': dict(os.environ)}}\n"
        f"pathlib.Path({str(seen)!r}).write_text(json.dumps(facts))\n"
        "raise NotImplementedError('no accelerator')\n"
    )
    config = tmp_path / "config.json"
    config.write_text(configure(tmp_path, tiny, **ONE_GPU).to_json())
    termination = tmp_path / "termination-log"
    path = os.pathsep.join([str(package.parent), *sys.path])
    ended = subprocess.run(
        [sys.executable, "-m", "finetune_trainer.cli", "train", "--config", str(config)],
        env=os.environ | {TERMINATION_PATH_ENV: str(termination), "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == ExitCode.ACCELERATION_UNAVAILABLE, ended.stderr
    assert "Unsloth cannot be imported: NotImplementedError: no accelerator" in ended.stdout
    facts = json.loads(seen.read_text())
    assert facts["imported"] == []
    environment = facts["environment"]
    assert (environment["UNSLOTH_DISABLE_STATISTICS"], environment["HF_HUB_OFFLINE"]) == ("1", "1")
    assert Path(environment["UNSLOTH_COMPILE_LOCATION"]).is_absolute()


def test_the_wrong_order_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "unsloth", raising=False)
    with pytest.raises(RuntimeError, match=r"before .*transformers"):
        unsloth_start.start()
    monkeypatch.setitem(sys.modules, "unsloth", ModuleType("unsloth"))
    unsloth_start.start()  # it is there


def test_what_unsloth_adapts_is_what_peft_would(tmp_path: Path, tiny: Path, unsloth: Stand) -> None:
    loaded = load(tmp_path, tiny)
    base = AutoModelForCausalLM.from_pretrained(tiny)
    assert unsloth.adapted["target_modules"] == sorted({name.rpartition(".")[2] for name in linear_names(base)})
    assert loaded.model.peft_config["default"].lora_alpha == 8
