"""Modules that are trained in full beside adapters: those that are named, in fp32, and delivered as trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_trainer.adapters import full_names
from finetune_trainer.batches import Collator
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate import evaluating, token_losses
from finetune_trainer.model import count_parameters, load_model
from finetune_trainer.prepared import load_prepared
from peft import PeftModel
from safetensors.torch import load_file
from trainings import assert_same_result, at, configure, output_of, run, run_interrupted
from transformers import AutoModelForCausalLM

CPU = torch.device("cpu")
PREFIX = "base_model.model."
TIED = ["model.embed_tokens.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        (["norm"], ["model.norm"]),
        (["model.norm"], ["model.norm"]),
        (["layers.1.mlp"], ["model.layers.1.mlp"]),
        (["mlp", "lm_head"], ["model.layers.1.mlp", "model.layers.11.mlp", "lm_head"]),
    ],
)
def test_a_name_means_a_module_or_the_last_parts_of_one(wanted: list[str], meant: list[str]) -> None:
    names = ["model.layers.1.mlp", "model.layers.11.mlp", "model.layers.1.input_layernorm", "model.norm", "lm_head"]
    assert full_names(wanted, names) == meant


def test_a_module_that_peft_would_train_too_is_named() -> None:
    names = ["model.norm", "vision_model.norm", "vision_model.layers.0.norm"]
    with pytest.raises(TrainerError, match=r"cannot tell vision_model\.norm from model\.norm") as raised:
        full_names(["model.norm"], names)
    assert raised.value.exit_code is ExitCode.METHOD_INVALID
    assert full_names(["norm"], names) == names


def test_a_module_in_fewer_bits_cannot_be_trained(tmp_path: Path, tiny: Path) -> None:
    method = {"lora": {"rank": 4, "targetModules": ["q_proj"], "modulesToSave": ["layers.1.mlp", "norm"]}}
    config = configure(tmp_path, tiny, method=method, quantization={"bits": 4})
    with pytest.raises(TrainerError, match=r"model\.layers\.1\.mlp is held in fewer bits") as raised:
        load_model(config, tiny, CPU)
    assert raised.value.exit_code is ExitCode.METHOD_INVALID


@pytest.mark.parametrize(
    ("named", "changed"),
    [
        (["norm"], ["model.norm.weight"]),
        (["layers.1.input_layernorm"], ["model.layers.1.input_layernorm.weight"]),
        (["lm_head"], TIED),
        (["embed_tokens", "norm"], [*TIED, "model.norm.weight"]),
    ],
    ids=["norm", "one of a layer", "head", "embedding"],
)
def test_what_is_named_is_trained_in_fp32_and_nothing_else(
    tmp_path: Path, tiny: Path, named: list[str], changed: list[str]
) -> None:
    """At a learning rate that moves a weight of bf16 by less than half of its last bit."""
    config = configure(
        tmp_path,
        tiny,
        method={"lora": {"rank": 4, "modulesToSave": named}},
        precision="bf16",
        merge={"dtype": "fp32"},
        hyperparameters={"learningRate": 1e-5, "weightDecay": 0.0, "schedule": "constant"},
    )
    report = run(config)
    assert report.model is not None
    assert report.model.trainable_parameters == count_parameters(config, tiny)[1]
    base = {name: value.bfloat16().float() for name, value in
            AutoModelForCausalLM.from_pretrained(tiny).state_dict().items()}  # fmt: skip
    saved = load_file(output_of(config, "adapter", "adapter_model.safetensors"))
    whole = {name.removeprefix(PREFIX): value for name, value in saved.items() if "lora_" not in name}
    assert sorted(whole) == sorted(changed)
    for name, value in whole.items():
        assert value.dtype == torch.float32
        moved = (value - base[name]).abs()
        assert moved.max() > 0
        assert moved.max() < 1e-4
        assert "norm" not in name or (moved > 0).all()

    tuned = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).float(), output_of(config, "adapter")
    )
    loaded = tuned.state_dict()
    for name, value in whole.items():
        module, _, own = name.rpartition(".")
        assert torch.equal(loaded[f"{PREFIX}{module}.modules_to_save.default.{own}"], value)
    merged = AutoModelForCausalLM.from_pretrained(output_of(config, "merged"))
    state = merged.state_dict()
    for name, value in base.items():
        if name in whole:
            assert torch.equal(state[name], whole[name])
        elif "_proj" not in name:
            assert torch.equal(state[name], value)
    held = load_prepared(config).validation
    batch = Collator(0, packed=False)([held[i] for i in range(len(held))])
    with evaluating(tuned, "fp32"):
        expected = token_losses(tuned, batch)
    with evaluating(merged, "fp32"):
        torch.testing.assert_close(token_losses(merged, batch), expected, rtol=1e-4, atol=1e-5)


def test_what_saved_modules_give_has_the_type_that_the_rest_of_the_model_computes_in(
    tmp_path: Path, tiny: Path
) -> None:
    method = {"lora": {"rank": 4, "modulesToSave": ["embed_tokens", "input_layernorm"]}}
    config = configure(tmp_path, tiny, method=method, precision="bf16")
    model = load_model(config, tiny, CPU).model
    found: list[torch.dtype] = []
    for layer in model.get_base_model().model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: found.append(output.dtype))
    with evaluating(model, "bf16"):
        model(input_ids=torch.arange(4)[None])
    assert found == [torch.bfloat16] * 2


@pytest.mark.parametrize(("masters", "expected"), [(True, torch.float32), (False, torch.bfloat16)])
def test_masters_are_left_to_a_strategy_that_makes_its_own(
    tmp_path: Path, tiny: Path, masters: bool, expected: torch.dtype
) -> None:
    method = {"lora": {"rank": 4, "modulesToSave": ["norm"]}}
    model = load_model(configure(tmp_path, tiny, method=method, precision="bf16"), tiny, CPU, masters=masters).model
    kinds: set[Any] = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    assert kinds == {expected}


def test_an_interrupted_run_of_saved_modules_ends_with_the_same_weights(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"lora": {"rank": 4, "modulesToSave": ["norm", "lm_head"]}}
    config = configure(tmp_path, tiny, method=method, precision="bf16", hyperparameters={"maxSteps": 8})
    whole = at(config, tmp_path / "whole")
    run(whole)
    run_interrupted(config, 3, monkeypatch)
    run(config, attempt=2)
    assert_same_result(whole, config)
