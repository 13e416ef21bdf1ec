"""What makes it fast, held against the plain path on the same GPU: losses, gradients, results."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer.batches import Collator
from finetune_trainer.evaluate import evaluating, token_losses
from finetune_trainer.fp8 import LEAST_CAPABILITY
from finetune_trainer.kernels import checkpoint_options
from finetune_trainer.model import load_model
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from tiny_model import make_tiny_model
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile
from trainings import configure, run
from transformers import AutoConfig
from transformers.models.llama import modeling_llama

# Dynamo warns within itself and hides that, which a warning that is an error escapes.
pytestmark = pytest.mark.filterwarnings("default::UserWarning")
CUDA = torch.device("cuda")
needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < LEAST_CAPABILITY,
    reason="this GPU has no products of 8-bit floats",
)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", head_dim=16)


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Whose rows are whole blocks of 4-bit weights, so that these can be one."""
    return make_tiny_model(tmp_path_factory.mktemp("model") / "wide", head_dim=16, width=64)


@pytest.fixture(autouse=True)
def _no_graphs() -> None:
    """Graphs of tests before count as this one's, and after eight of them there are no more."""
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _own_kernels() -> Iterator[None]:
    """Liger puts functions of its own into the module of the model, where the next test would find them."""
    before = dict(vars(modeling_llama))
    yield
    vars(modeling_llama).update(before)


KEPT = {"gradientCheckpointing": True, "keepAttention": True}
KERNELS: dict[str, dict[str, Any]] = {
    "plain": {"liger": False, "flashAttention": "sdpa", "fusedAdapters": False},
    "fused loss": {"flashAttention": "sdpa"},
    "liger": {"liger": True},
    "compile": {"compile": True},
    "recompute": {"compile": True, "gradientCheckpointing": True},
    "attention kept": {"compile": True, **KEPT},
    "attention kept, eager": KEPT,
    "offload": {"activationOffload": True},
    "offload, compiled": {"activationOffload": True, "compile": True},
    "offload, attention kept": {"activationOffload": True, "compile": True, **KEPT},
    "flex": {"flashAttention": "flex"},
    "eager": {"flashAttention": "disabled"},
}
USED = {
    "fused loss": ["fused-loss"],
    "liger": ["liger"],
    "compile": ["compile"],
    "recompute": ["compile", "gradient-checkpointing"],
    "attention kept": ["compile", "gradient-checkpointing", "attention-kept"],
    "attention kept, eager": ["gradient-checkpointing", "attention-kept"],
    "offload": ["activation-offload"],
    "offload, compiled": ["activation-offload", "compile"],
    "offload, attention kept": ["activation-offload", "compile", "attention-kept"],
}
"""Words of the status for what was asked for."""
ATTENTION = {"plain": "sdpa", "fused loss": "sdpa", "flex": "flex_attention", "eager": "eager"}
ATTENTIONS_FORWARD = re.compile("flash_fwd|fprop|cutlassF")
"""Kernels of torch's own flash attention, cuDNN's, and the memory-efficient one."""
FAST = ("fused loss", "liger", "compile", "attention kept")
QUANTIZED: dict[str, dict[str, Any]] = {
    "nf4": {"bits": 4},
    "fp4": {"bits": 4, "type": "fp4"},
    "int8": {"bits": 8},
    "hqq": {"method": "hqq", "bits": 4},
}


def job(tmp_path: Path, base: Path, **edits: Any) -> Any:
    numbers = {"maxSteps": 30, "seed": 1, **edits.pop("hyperparameters", {})}
    edits = {"precision": "bf16", "distributed": {"gpusPerNode": 1}, **edits}
    return configure(tmp_path, base, hyperparameters=numbers, **edits)


def learns(report: Any) -> None:
    assert report.progress.eval_loss < report.progress.initial_eval_loss - 0.1


def alike(found: dict[str, torch.Tensor], plain: dict[str, torch.Tensor], *, least: float) -> None:
    """Whether gradients point where plain ones do: a cosine of ``least``."""
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        if gradient.norm() > 1e-4:
            assert functional.cosine_similarity(gradient, found[name], dim=0) > least, name


def gradients_of(config: Any, base: Path) -> dict[str, torch.Tensor]:
    """Of each weight that is trained, from two rows of the data, flat."""
    torch.manual_seed(3)
    loaded = load_model(config, base, CUDA)
    model = loaded.model
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would leave A without gradients
            torch.nn.init.normal_(parameter, std=0.02)
    flat = loaded.acceleration.attention == "varlen"
    fused = "fused-loss" in loaded.acceleration.kernels
    collator = Collator(0, packed=config.packing, flat=flat, fused_loss=fused)
    data = load_prepared(config).train
    batch = {k: v.to(CUDA) if hasattr(v, "to") else v for k, v in collator([data[0], data[1]]).items()}
    batch.pop("tokens")
    if config.acceleration.gradient_checkpointing:
        model.train().activation_checkpointing_enable(checkpoint_options(config))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        model(**batch, num_items_in_batch=torch.tensor(64, device=CUDA)).loss.backward()
    return {name: p.grad.float().flatten() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_kernel_learns(tmp_path: Path, base: Path, kernel: str, packing: bool) -> None:
    report = run(job(tmp_path, base, packing=packing, acceleration=KERNELS[kernel]))
    learns(report)
    used = report.acceleration
    assert used is not None
    assert set(USED.get(kernel, ())) <= set(used.kernels)
    assert used.attention == ATTENTION.get(kernel, used.attention)
    if kernel == "plain":
        assert not used.kernels


@pytest.mark.parametrize("method", [{"lora": {"rank": 4}}, {"full": {}}, {"full": {"masterWeights": "none"}}])
@pytest.mark.parametrize("kernel", FAST)
def test_gradients_are_those_of_the_plain_path(tmp_path: Path, wide: Path, method: Any, kernel: str) -> None:
    gradients = {}
    for name in ("plain", kernel):
        config = job(tmp_path, wide, packing=True, method=method, acceleration=KERNELS[name])
        prepare(config)
        gradients[name] = gradients_of(config, wide)
    alike(gradients[kernel], gradients["plain"], least=0.999)


@pytest.mark.parametrize("kernel", FAST)
def test_a_training_ends_where_that_of_the_plain_path_does(tmp_path: Path, wide: Path, kernel: str) -> None:
    losses = {}
    for name in ("plain", kernel):
        (directory := tmp_path / name).mkdir()
        report = run(job(directory, wide, packing=True, acceleration=KERNELS[name], hyperparameters={"maxSteps": 50}))
        learns(report)
        losses[name] = report.progress.eval_loss
    assert losses[kernel] == pytest.approx(losses["plain"], rel=0.005)


@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_attention_that_is_kept_is_computed_once(tmp_path: Path, wide: Path, packing: bool, compiled: bool) -> None:
    """By the GPU's kernels of a step: twice a layer where all is made again."""
    counts = []
    for kept in (False, True):
        torch._dynamo.reset()
        wishes = {"compile": compiled, "gradientCheckpointing": True, "keepAttention": kept}
        config = job(tmp_path, wide, packing=packing, acceleration=wishes)
        prepare(config)
        gradients_of(config, wide)  # compiles
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as measured:
            gradients_of(config, wide)
        counts.append(sum(ATTENTIONS_FORWARD.search(event.key) is not None and event.count for event in
                          measured.key_averages()))  # fmt: skip
    layers = AutoConfig.from_pretrained(wide).num_hidden_layers
    assert counts == [2 * layers, layers]


def test_the_varlen_kernel_keeps_packed_samples_apart(tmp_path: Path, base: Path) -> None:
    config = job(tmp_path, base, packing=True)
    prepare(config)
    loaded = load_model(config, base, CUDA)
    assert loaded.acceleration.attention == "varlen"
    row = next(s for s in (load_prepared(config).train[i] for i in range(3)) if len(s.lengths) > 1)
    with evaluating(loaded.model, "bf16"):
        flat = token_losses(loaded.model, Collator(0, packed=True, flat=True, row_length=256)([row]))
        loaded.model.get_base_model().config._attn_implementation = "sdpa"
        masked = token_losses(loaded.model, Collator(0, packed=True)([row]))
    torch.testing.assert_close(flat, masked, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("optimizer", ["adamw8bit", "paged_adamw8bit", "adafactor"])
def test_each_optimizer_learns(tmp_path: Path, base: Path, optimizer: str) -> None:
    learns(run(job(tmp_path, base, method={"full": {}}, hyperparameters={"optimizer": optimizer})))


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("packing", [False, True], ids=["rows", "packed"])
def test_quantized_bases_learn_and_merge(tmp_path: Path, base: Path, kind: str, packing: bool) -> None:
    learns(run(job(tmp_path, base, packing=packing, quantization=QUANTIZED[kind], merge={"dtype": "bf16"})))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compile"])
@pytest.mark.parametrize(
    "edits",
    [{}, {"quantization": {"bits": 4}}, pytest.param({"precision": "fp8"}, marks=needs_fp8)],
    ids=["bf16", "nf4", "fp8"],
)
def test_fused_adapters_learn_as_separate_ones_do(tmp_path: Path, wide: Path, edits: Any, compiled: bool) -> None:
    gradients, losses = {}, {}
    for fused in (False, True):
        (tmp_path / str(fused)).mkdir()
        wishes = {"fusedAdapters": fused, "compile": compiled}
        config = job(tmp_path / str(fused), wide, acceleration=wishes, hyperparameters={"maxSteps": 50}, **edits)
        report = run(config)
        learns(report)
        assert ("fused-adapters" in report.acceleration.kernels) is fused
        losses[fused], gradients[fused] = report.progress.eval_loss, gradients_of(config, wide)
    assert losses[True] == pytest.approx(losses[False], rel=0.02 if "precision" in edits else 0.005)
    alike(gradients[True], gradients[False], least=0.98 if "precision" in edits else 0.999)


@needs_fp8
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compile"])
@pytest.mark.parametrize("method", [{"lora": {"rank": 4}}, {"full": {}}], ids=["lora", "full"])
def test_8_bit_floats_learn_like_16(tmp_path: Path, base: Path, method: Any, compiled: bool) -> None:
    learnt = {}
    for precision in ("bf16", "fp8"):
        (tmp_path / precision).mkdir()
        config = job(tmp_path / precision, base, method=method, precision=precision, packing=True,
                     acceleration={"compile": compiled}, hyperparameters={"maxSteps": 50})  # fmt: skip
        report = run(config)
        learns(report)
        learnt[precision] = report.progress.initial_eval_loss - report.progress.eval_loss
        assert any(kernel.startswith("fp8") for kernel in report.acceleration.kernels) == (precision == "fp8")
    # The model is 32 wide: the steps of 8-bit floats average out over more values in a real one.
    assert learnt["fp8"] > 0.9 * learnt["bf16"]


@needs_fp8
@pytest.mark.parametrize("method", [{"lora": {"rank": 4}}, {"full": {}}], ids=["lora", "full"])
def test_gradients_in_8_bit_floats_point_where_those_in_16_do(tmp_path: Path, base: Path, method: Any) -> None:
    gradients = {}
    for precision in ("bf16", "fp8"):
        config = job(tmp_path, base, precision=precision, method=method)
        prepare(config)
        gradients[precision] = gradients_of(config, base)
    alike(gradients["fp8"], gradients["bf16"], least=0.98)


@needs_fp8
def test_an_adapter_on_an_fp8_base_merges(tmp_path: Path, base: Path) -> None:
    learns(run(job(tmp_path, base, precision="fp8", merge={"dtype": "bf16"})))
