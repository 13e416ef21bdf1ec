"""Adapters that are computed with their layers: the same losses, gradients and results as peft's. On a GPU, and under
the compiler that is used there, in tests/gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_trainer.errors import TrainerError
from finetune_trainer.fused_adapters import NAME, on_whole_weights, separate_adapters
from finetune_trainer.model import load_model
from finetune_trainer.picture import read_history
from finetune_trainer.progress import FILE
from safetensors.torch import load_file
from stage_data import PREFERENCE, stage_config
from tiny_model import make_tiny_model
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from trainings import configure, output_of, run
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config

CPU = torch.device("cpu")
STEPS = 6
IDS = torch.arange(40).reshape(2, 20)
LORA = {"lora": {"rank": 3}}  # no multiple of what memory wants, so that columns are added


def load(tmp_path: Path, base: Path, *, fused: bool, **edits: Any) -> Any:
    """The model as the trainer makes it, its B no longer zero."""
    acceleration = {"fusedAdapters": fused, **edits.pop("acceleration", {})}
    config = configure(tmp_path, base, method=LORA, acceleration=acceleration, **edits)
    torch.manual_seed(0)
    loaded = load_model(config, base, CPU)
    assert (NAME in loaded.acceleration.kernels) is fused
    chance = torch.Generator().manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.05, generator=chance)
    return loaded.model.train()


def learn(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients on one batch."""
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}


def alike(found: tuple[float, dict[str, torch.Tensor]], expected: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert set(found[1]) == set(expected[1])
    assert any(float(part.abs().max()) > 1e-4 for part in expected[1].values())
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A model whose queries, keys and values have a bias."""
    directory = tmp_path_factory.mktemp("biased")
    settings = AutoConfig.from_pretrained(tiny)
    wanted = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
              "num_key_value_heads", "eos_token_id", "pad_token_id")  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(Qwen2Config(**{name: getattr(settings, name) for name in wanted}))
    for part in model.modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.normal_(part.bias)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows are whole blocks of 4-bit weights, so that layers of one input can be one."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "wide", width=64, head_dim=16)


BASES: list[Any] = [
    pytest.param("tiny", {}, id="whole"),
    pytest.param("biased", {}, id="with a bias"),
    pytest.param("tiny", {"quantization": {"bits": 4}}, id="double quantized, some"),
    pytest.param("wide", {"quantization": {"bits": 4}}, id="double quantized"),
    pytest.param("wide", {"quantization": {"bits": 4, "type": "fp4", "doubleQuantization": False}}, id="fp4"),
]


@pytest.mark.parametrize(("base", "edits"), BASES)
def test_losses_and_gradients_are_pefts(
    tmp_path: Path, base: str, edits: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    directory: Path = request.getfixturevalue(base)
    fused = load(tmp_path, directory, fused=True, **edits)
    separate = load(tmp_path, directory, fused=False, **edits)
    assert on_whole_weights(fused) is ("quantization" not in edits)
    assert not on_whole_weights(separate)
    expected = learn(separate)
    alike(learn(fused), expected)
    separate_adapters(fused)
    alike(learn(fused), expected)
    assert all(parameter.is_contiguous() for parameter in fused.parameters())


def test_attention_is_given_whole_rows(tmp_path: Path, tiny: Path) -> None:
    """Its kernels on GPUs compute wrong gradients where values, or the gradient of its output, are parts of rows."""
    layer = load(tmp_path, tiny, fused=True).get_base_model().model.layers[1].self_attn
    inputs = torch.randn(2, 5, layer.q_proj.in_features, requires_grad=True)
    assert all(part(inputs).is_contiguous() for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    found: list[bool] = []
    attended = torch.randn(2, 5, layer.o_proj.in_features, requires_grad=True)
    attended.register_hook(lambda gradient: found.append(gradient.is_contiguous()))
    layer.o_proj(attended).sum().backward()
    assert found == [True]


@pytest.mark.filterwarnings("default::UserWarning")  # Dynamo warns within itself, where the warning is an error
def test_one_graph_serves_all_layers_also_where_they_are_recomputed(tmp_path: Path, tiny: Path) -> None:
    expected = learn(load(tmp_path, tiny, fused=False))
    for recomputed in (False, True):
        torch._dynamo.reset()
        model = load(tmp_path, tiny, fused=True, acceleration={"gradientCheckpointing": recomputed})
        if recomputed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        counter = CompileCounterWithBackend("aot_eager")
        with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
            for layer in model.get_base_model().model.layers:
                layer.compile(backend=counter, fullgraph=True)
            alike(learn(model), expected)
        # Inputs of the first layer need no gradient: a graph of its own, and one for all others.
        assert counter.frame_count <= 2


def test_steps_of_the_optimizer_reach_the_products(tmp_path: Path, tiny: Path) -> None:
    model = load(tmp_path, tiny, fused=True)
    before, _ = learn(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.sub_(3.0 * parameter.grad)
    after, gradients = learn(model)
    assert after < before - 0.01
    separate_adapters(model)
    alike(learn(model), (after, gradients))


def test_without_the_adapter_the_base_answers(tmp_path: Path, tiny: Path) -> None:
    model = load(tmp_path, tiny, fused=True)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with model.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, base(input_ids=IDS).logits)


def test_a_run_delivers_the_adapter_and_the_merge_that_peft_would(tmp_path: Path, tiny: Path) -> None:
    edits: dict[str, Any] = {"method": LORA, "merge": {"dtype": "fp32"}, "hyperparameters": {"maxSteps": 4}}
    reports = {}
    for fused in (False, True):
        (tmp_path / str(fused)).mkdir()
        config = configure(tmp_path / str(fused), tiny, acceleration={"fusedAdapters": fused}, **edits)
        reports[fused] = run(config)
    assert reports[True].acceleration is not None
    assert NAME in reports[True].acceleration.kernels
    for file in ("adapter/adapter_model.safetensors", "merged/model.safetensors"):
        plain, fused = (load_file(next((tmp_path / str(kind)).rglob(file))) for kind in (False, True))
        assert set(plain) == set(fused)
        for name, weight in plain.items():
            torch.testing.assert_close(fused[name], weight, atol=2e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("stage", PREFERENCE)
def test_a_stage_that_asks_the_model_more_than_once_learns_as_peft_would(
    tmp_path: Path, wide: Path, stage: Any, bits: int | None
) -> None:
    losses = {}
    for fused in (False, True):
        (directory := tmp_path / str(fused)).mkdir()
        edits: dict[str, Any] = {"quantization": {"bits": bits}} if bits else {}
        config = stage_config(directory, wide, stage, method=LORA, acceleration={"fusedAdapters": fused}, **edits)
        run(config)
        losses[fused] = [record.loss for record in read_history(output_of(config, FILE)) if record.loss is not None]
    assert len(losses[True]) >= STEPS
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)


def test_a_base_without_such_products_is_refused_where_they_are_a_wish(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, method=LORA, acceleration={"fusedAdapters": True})
    with pytest.raises(TrainerError, match="fusedAdapters") as raised:
        load_model(config, tiny, CPU, masters=False)
    assert raised.value.exit_code is ExitCode.ACCELERATION_UNAVAILABLE
