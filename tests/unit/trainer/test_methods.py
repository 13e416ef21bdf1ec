"""Every method and variant really trains what it says, and nothing else, and delivers what loads."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.status import ModelStatus
from finetune_trainer import merging
from finetune_trainer.card import Facts
from finetune_trainer.dtypes import DTYPES
from finetune_trainer.errors import TrainerError
from finetune_trainer.model import count_parameters, load_model
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from trainings import configure, held_out, output_of, run
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

LAYERS = "model.layers"


def changed(config: Any, tiny: Path) -> set[str]:
    """Names of the weights of the delivered model that differ from the base's."""
    before = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    after = AutoModelForCausalLM.from_pretrained(output_of(config, "model")).state_dict()
    return {name for name, value in after.items() if not torch.equal(value.to(before[name].dtype), before[name])}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"trainableLayers": 1}, lambda name: name.startswith(f"{LAYERS}.1.")),
        ({"trainableLayers": -1}, lambda name: name.startswith(f"{LAYERS}.0.")),
        ({"trainableLayers": 2}, lambda name: name.startswith(f"{LAYERS}.")),
        (
            {"trainableLayers": 1, "trainableModules": ["mlp", "q_proj"]},
            lambda name: name.startswith(f"{LAYERS}.1.") and (".mlp." in name or ".q_proj." in name),
        ),
        (
            {"trainableLayers": 1, "trainableModules": ["o_proj"], "extraModules": ["norm"]},
            lambda name: name in (f"{LAYERS}.1.self_attn.o_proj.weight", "model.norm.weight"),
        ),
    ],
    ids=["last", "first", "both", "modules", "extra"],
)
def test_freeze_trains_what_it_names(tmp_path: Path, tiny: Path, method: dict[str, Any], expected: Any) -> None:
    config = configure(tmp_path, tiny, method={"freeze": method})
    report = run(config)
    names = AutoModelForCausalLM.from_pretrained(tiny).state_dict()
    assert changed(config, tiny) == {name for name in names if expected(name)}
    assert report.model is not None
    assert report.model.trainable_parameters == count_parameters(config, tiny)[1]
    assert report.model.trainable_parameters < (report.model.parameters or 0)


@pytest.mark.parametrize(
    ("method", "field", "valid"),
    [
        ({"trainableLayers": 3}, "trainableLayers", "2 layers"),
        ({"trainableModules": ["qq_proj"]}, "trainableModules", "q_proj"),
        ({"extraModules": ["head"]}, "extraModules", "lm_head"),
        ({"extraModules": ["q_proj"]}, "extraModules", "lm_head"),
    ],
)
def test_freeze_names_what_there_is(tmp_path: Path, tiny: Path, method: dict[str, Any], field: str, valid: str) -> None:
    with pytest.raises(TrainerError, match=field) as raised:
        count_parameters(configure(tmp_path, tiny, method={"freeze": method}), tiny)
    assert raised.value.exit_code is ExitCode.METHOD_INVALID
    assert valid in str(raised.value)


def test_frozen_weights_are_held_in_the_precision_and_trained_ones_in_fp32(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, method={"freeze": {"trainableLayers": 1}}, precision="bf16")
    model = load_model(config, tiny, torch.device("cpu")).model
    kinds = {(parameter.requires_grad, parameter.dtype) for parameter in model.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


def test_full_without_masters_is_held_in_the_precision(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, method={"full": {"masterWeights": "none"}}, precision="bf16")
    report = run(config)
    assert report.progress is not None
    assert (report.progress.eval_loss or 9) < (report.progress.initial_eval_loss or 0) - 0.1
    model = load_model(config, tiny, torch.device("cpu")).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "named targets": {"targetModules": ["q_proj", "v_proj"], "alpha": 4},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "gaussian": {"init": "gaussian"},
    "lora+": {"loraPlusRatio": 8.0},
    "modules to save": {"modulesToSave": ["norm"]},
    "dropout": {"dropout": 0.2},
    "pissa": {"init": "pissa"},
    "olora": {"init": "olora"},
}


@pytest.mark.parametrize(
    ("variant", "precision"), [*((name, "fp32") for name in VARIANTS), ("plain", "bf16"), ("dora", "bf16")]
)
def test_a_variant_of_lora_learns_and_its_adapter_loads(
    tmp_path: Path, tiny: Path, variant: str, precision: str
) -> None:
    config = configure(
        tmp_path,
        tiny,
        method={"lora": {"rank": 4, **VARIANTS[variant]}},
        precision=precision,
        hyperparameters={"maxSteps": 12},
    )
    report = run(config)
    assert report.progress is not None
    assert report.progress.eval_loss is not None
    assert report.progress.eval_loss < (report.progress.initial_eval_loss or 0) - 0.02
    adapter = output_of(config, "adapter")
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), adapter)
    loss = held_out(tuned, config)
    assert loss == pytest.approx(report.progress.eval_loss, rel=1e-3 if precision == "fp32" else 2e-2)
    scale = VARIANTS[variant].get("alpha", 8) / (2 if variant == "rslora" else 4)
    assert set(scales(tuned)) == {scale}  # also where a start is delivered at twice the rank


def scales(model: Any) -> list[float]:
    """What each adapter's output is multiplied by."""
    return [part.scaling["default"] for part in model.modules() if isinstance(part, LoraLayer)]


@pytest.mark.parametrize(
    ("lora", "alpha", "scale"),
    [
        ({}, 32, 2.0),  # twice the rank
        ({"alpha": 8}, 8, 0.5),
        ({"rslora": True}, 32, 8.0),  # alpha / sqrt(rank)
        ({"rslora": True, "alpha": 6}, 6, 1.5),
    ],
    ids=["default", "alpha", "rslora", "rslora and alpha"],
)
def test_adapters_are_scaled_by_alpha_and_rank(
    tmp_path: Path, tiny: Path, lora: dict[str, Any], alpha: int, scale: float
) -> None:
    config = configure(tmp_path, tiny, method={"lora": {"rank": 16, **lora}})
    model = load_model(config, tiny, torch.device("cpu")).model
    assert set(scales(model)) == {scale}
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.nn.init.normal_(b)
    inputs = torch.randn(3, layer.in_features)
    torch.testing.assert_close(layer(inputs) - layer.base_layer(inputs), scale * inputs @ a.T @ b.T)
    model.save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    found = (settings["r"], settings["lora_alpha"], settings["use_rslora"])
    assert found == (16, alpha, bool(lora.get("rslora")))


def test_lora_plus_gives_b_the_higher_learning_rate(tmp_path: Path, tiny: Path) -> None:
    """With the same seed and gradients, the first step moves B by as much more as the ratio says."""
    moved = {}
    for ratio in (None, 8.0):
        directory = tmp_path / str(ratio)
        directory.mkdir()
        config = configure(
            directory,
            tiny,
            method={"lora": {"rank": 4, "loraPlusRatio": ratio}},
            hyperparameters={"maxSteps": 1, "warmupRatio": 0.0, "schedule": "constant", "learningRate": 1e-4},
        )
        run(config)
        weights = load_file(output_of(config, "adapter/adapter_model.safetensors"))
        moved[ratio] = torch.cat([value.flatten() for name, value in weights.items() if "lora_B" in name])
    torch.testing.assert_close(moved[8.0], 8 * moved[None], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        ("plain", "bf16"),
        ("plain", "fp16"),
        ("plain", "fp32"),
        ("dora", "bf16"),
        ("modules to save", "fp32"),
        ("pissa", "fp32"),
    ],
)
def test_merged_weights_say_what_the_adapter_says(tmp_path: Path, tiny: Path, dtype: str, variant: str) -> None:
    config = configure(tmp_path, tiny, method={"lora": {"rank": 4, **VARIANTS[variant]}}, merge={"dtype": dtype})
    report = run(config)
    assert report.output is not None
    assert (report.output.path, report.output.merged) == ("adapter", "merged")
    directory = output_of(config, "merged")
    merged = AutoModelForCausalLM.from_pretrained(directory)
    assert merged.dtype == DTYPES[dtype]
    assert report.progress is not None
    assert held_out(merged.float(), config) == pytest.approx(report.progress.eval_loss, rel=1e-2)
    assert AutoTokenizer.from_pretrained(directory).chat_template == load_prepared(config).chat_template
    assert (
        GenerationConfig.from_pretrained(directory).eos_token_id
        == GenerationConfig.from_pretrained(output_of(config, "adapter")).eos_token_id
    )
    assert not list(directory.glob("*.bin"))


def test_a_merge_that_changes_nothing_is_an_error(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, merge={"dtype": "fp32"})
    prepare(config)
    untrained = load_model(config, tiny, torch.device("cpu")).model
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    with pytest.raises(TrainerError, match="changed no weight") as raised:
        merging.merge(untrained, tokenizer, config, Facts(load_prepared(config), None, ModelStatus(), []))
    assert raised.value.exit_code is ExitCode.EXPORT_INVALID
    assert not output_of(config, "merged").exists()


@pytest.mark.parametrize(
    ("small", "verdict"),
    [(14, "refused"), (8, "refused"), (1, "warned"), (14, "written in fp32")],
)
def test_a_merge_is_judged_by_what_is_written(
    tmp_path: Path, tiny: Path, small: int, verdict: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 14 adapters some change weights by less than half of the last bit that bf16 has."""
    merge = {"dtype": "fp32" if "fp32" in verdict else "bf16"}
    config = configure(tmp_path, tiny, precision="bf16", merge=merge)
    prepare(config)
    model = load_model(config, tiny, torch.device("cpu")).model
    added = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    assert len(added) == 14
    for number, parameter in enumerate(added):
        parameter.data.fill_(1e-9 if number < small else 1e-2)
    arguments = (
        model,
        AutoTokenizer.from_pretrained(tiny),
        config,
        Facts(load_prepared(config), None, ModelStatus(), []),
    )
    told = f"{small} of 14 trained modules are the base's again once they are rounded to bf16"
    if verdict == "refused":
        with pytest.raises(TrainerError, match=told) as raised:
            merging.merge(*arguments)
        assert raised.value.exit_code is ExitCode.EXPORT_INVALID
        assert "output.merge.dtype: fp32, or serve the adapter" in str(raised.value)
        assert not output_of(config, "merged").exists()
        return
    with caplog.at_level(logging.WARNING):
        merging.merge(*arguments)
    assert (told in caplog.text) == (verdict == "warned")
    assert output_of(config, "merged", "model.safetensors").exists()


def test_a_merge_of_saved_modules_alone_changes_something(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, merge={"dtype": "fp32"}, method={"lora": {"rank": 4, "modulesToSave": ["norm"]}})
    prepare(config)
    model = load_model(config, tiny, torch.device("cpu")).model
    model.get_base_model().model.norm.weight.data.mul_(1.5)
    merging.merge(
        model, AutoTokenizer.from_pretrained(tiny), config, Facts(load_prepared(config), None, ModelStatus(), [])
    )
    merged = AutoModelForCausalLM.from_pretrained(output_of(config, "merged"))
    base = AutoModelForCausalLM.from_pretrained(tiny)
    torch.testing.assert_close(merged.model.norm.weight, 1.5 * base.model.norm.weight)


def test_a_merge_that_says_something_else_is_an_error(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path, tiny, merge={"dtype": "fp32"})
    spoil = merging._merge_layers

    def spoiled(model: Any, dtype: torch.dtype) -> Any:
        count = spoil(model, dtype)
        with torch.no_grad():
            model.get_base_model().model.norm.weight.mul_(1.5)
        return count

    monkeypatch.setattr(merging, "_merge_layers", spoiled)
    with pytest.raises(TrainerError, match="logits differ") as raised:
        run(config)
    assert raised.value.exit_code is ExitCode.EXPORT_INVALID
    assert json.loads((output_of(config, "adapter") / "adapter_config.json").read_text())["r"] == 4
