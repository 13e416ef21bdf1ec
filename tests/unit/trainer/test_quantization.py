"""A quantized base really is in fewer bits, trains through adapters, and delivers what loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.training import QuantizationSpec
from finetune_trainer.dequantize import as_packed
from finetune_trainer.errors import TrainerError
from finetune_trainer.model import load_model
from finetune_trainer.prepare import prepare
from finetune_trainer.quantization import is_packed, whole_layer
from peft import PeftModel
from torch import nn
from trainings import configure, output_of, run
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

CPU = torch.device("cpu")
KINDS = {
    "nf4": {"bits": 4},
    "fp4": {"bits": 4, "type": "fp4", "doubleQuantization": False},
    "int8": {"bits": 8},
    "hqq": {"method": "hqq", "bits": 4},
}
ERRORS = {"nf4": 0.12, "fp4": 0.16, "int8": 0.02, "hqq": 0.12}
"""Relative error of normally distributed weights that each is known for, with room."""


def base_layers(model: Any) -> dict[str, nn.Module]:
    """The layers that adapters sit on, by their names in the base."""
    found = {}
    for name, part in model.named_modules():
        if name.endswith(".base_layer"):
            found[name.removeprefix("base_model.model.").removesuffix(".base_layer")] = part
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_packed_and_stand_for_the_originals(tmp_path: Path, tiny: Path, kind: str) -> None:
    model = load_model(configure(tmp_path, tiny, quantization=KINDS[kind]), tiny, CPU).model
    original = AutoModelForCausalLM.from_pretrained(tiny)
    layers = base_layers(model)
    assert len(layers) == 14
    for name, layer in layers.items():
        assert is_packed(layer)
        weight = original.get_submodule(name).weight
        error = (whole_layer(layer).weight - weight).norm() / weight.norm()
        assert 0 < error < ERRORS[kind], name
    assert not is_packed(model.get_base_model().lm_head)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_through_adapters_and_merges(tmp_path: Path, tiny: Path, kind: str) -> None:
    config = configure(
        tmp_path, tiny, quantization=KINDS[kind], merge={"dtype": "fp32"}, hyperparameters={"maxSteps": 20}
    )
    report = run(config)
    assert report.progress is not None
    assert report.progress.eval_loss is not None
    assert report.progress.eval_loss < (report.progress.initial_eval_loss or 0) - 0.1
    assert report.model is not None
    assert report.model.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny).parameters())
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), output_of(config, "adapter"))
    merged = AutoModelForCausalLM.from_pretrained(output_of(config, "merged"))
    assert not getattr(merged.config, "quantization_config", None)
    assert merged.model.layers[0].mlp.up_proj.weight.dtype is torch.float32


HQQ_ERRORS = {1: 1.2, 2: 0.47, 3: 0.2, 4: 0.1, 5: 0.045, 6: 0.022, 8: 0.0055}
"""Relative error of normally distributed weights by bits, in groups of 64, with room. With one bit little is left of
them: HQQ keeps a group's least and largest value."""


@pytest.mark.parametrize("bits", HQQ_ERRORS)
def test_hqq_trains_with_any_of_its_bits(tmp_path: Path, tiny: Path, bits: int) -> None:
    model = load_model(configure(tmp_path, tiny, quantization={"method": "hqq", "bits": bits}), tiny, CPU).model
    original = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for name, layer in base_layers(model).items():
        assert is_packed(layer)
        weight = original.get_submodule(name).weight
        error = (whole_layer(layer).weight - weight).norm() / weight.norm()
        assert HQQ_ERRORS[bits] / 2 < error < HQQ_ERRORS[bits], name
    ids = torch.arange(5, 37)[None]
    with torch.no_grad():
        expected = original.eval()(input_ids=ids).logits
        assert (model(input_ids=ids).logits - expected).norm() < HQQ_ERRORS[bits] * expected.norm()
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=0.02)
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients = [part.grad for part in model.parameters() if part.requires_grad]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1


def test_dora_works_on_a_quantized_base(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, quantization={"bits": 4}, method={"lora": {"rank": 4, "dora": True}})
    assert run(config).output is not None


def test_bits_alone_are_nf4_with_double_quantization(tmp_path: Path, tiny: Path) -> None:
    model = load_model(configure(tmp_path, tiny, quantization={"bits": 4}), tiny, CPU).model
    layer: Any = next(iter(base_layers(model).values()))
    assert layer.weight.quant_state.quant_type == "nf4"
    assert layer.weight.quant_state.nested
    assert layer.compute_dtype is torch.float32  # the job's precision


@pytest.fixture(scope="module")
def packed_by_bitsandbytes(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as published with its weights in nf4."""
    directory = tmp_path_factory.mktemp("packed")
    model = AutoModelForCausalLM.from_pretrained(
        tiny, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    )
    model.save_pretrained(directory)
    for file in tiny.iterdir():
        if file.name.startswith(("tokenizer", "chat_template")):
            (directory / file.name).write_bytes(file.read_bytes())
    return directory


@pytest.mark.parametrize("quantization", [None, {"bits": 4}])
def test_checkpoints_of_bitsandbytes_are_trained_on_as_they_are(
    tiny: Path, tmp_path: Path, packed_by_bitsandbytes: Path, quantization: Any
) -> None:
    report = run(configure(tmp_path, packed_by_bitsandbytes, quantization=quantization))
    assert report.output is not None
    assert report.model is not None
    assert report.model.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny).parameters())


def test_rules_and_memory_go_by_what_a_checkpoint_of_bitsandbytes_is(
    tmp_path: Path, packed_by_bitsandbytes: Path
) -> None:
    """Also where the job leaves it unset."""
    config = configure(tmp_path, packed_by_bitsandbytes)
    assert as_packed(config, packed_by_bitsandbytes).quantization == QuantizationSpec(bits=4, double_quantization=False)
    merged = configure(tmp_path, packed_by_bitsandbytes, merge={}).spread(nodes=2, strategy="zero3")
    with pytest.raises(TrainerError, match=r"spec\.output\.merge: .*quantized") as raised:
        prepare(merged)
    assert raised.value.exit_code is ExitCode.CONFIG_INVALID


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"method": {"full": {}}}, "use lora"),
        ({"quantization": {"bits": 8}}, "to 4 bits by bitsandbytes already"),
        ({"quantization": {"method": "gptq"}}, "bitsandbytes with 4 bits"),
    ],
)
def test_what_checkpoints_of_bitsandbytes_cannot_is_said_before_training(
    tmp_path: Path, packed_by_bitsandbytes: Path, edits: dict[str, Any], said: str
) -> None:
    with pytest.raises(TrainerError, match=said) as raised:
        run(configure(tmp_path, packed_by_bitsandbytes, **edits))
    assert raised.value.exit_code in (ExitCode.METHOD_INVALID, ExitCode.MODEL_INVALID)
