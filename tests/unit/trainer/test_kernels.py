"""Fused loss, boundaries for attention, compiled layers: the same numbers as without them. Their speed and the GPU's
kernels are tried in tests/gpu."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.training import LoraMethod
from finetune_trainer import attention, fused_loss
from finetune_trainer.adapters import add_adapters, linear_names
from finetune_trainer.attention import FLASH, VARLEN, choose_attention, fits_varlen, takes_boundaries
from finetune_trainer.batches import Collator
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate import evaluating, fused_loss_agrees
from finetune_trainer.fp8 import check_fp8
from finetune_trainer.kernels import apply_kernels, check_kernels, compile_layers
from finetune_trainer.model import choose_device, load_model
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import IGNORED, Sequence, load_prepared
from torch.nn import functional
from trainings import configure, run
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

CPU = torch.device("cpu")


@pytest.fixture
def torch_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger's kernel is Triton's; what surrounds it is tried with torch's own."""

    def plain(hidden: Any, weight: Any, targets: Any, bias: Any) -> torch.Tensor:
        return functional.cross_entropy(functional.linear(hidden, weight, bias).float(), targets, reduction="sum")

    monkeypatch.setattr(fused_loss, "linear_cross_entropy", plain)


def sequence(*lengths: int, start: int = 0) -> Sequence:
    total = sum(lengths)
    ids = np.arange(start, start + total, dtype=np.int64) % 300
    labels = np.where(np.arange(total) % 3 == 0, IGNORED, ids)
    labels[np.cumsum([0, *lengths[:-1]])] = IGNORED
    return Sequence(ids, labels, np.asarray(lengths, dtype=np.int64))


class TestCollator:
    def test_flat_rows_lie_behind_one_another_with_their_boundaries(self) -> None:
        batch = Collator(0, packed=True, flat=True)([sequence(3, 4), sequence(5)])
        assert batch["input_ids"].shape == (1, 12)
        assert batch["cu_seq_lens_q"].tolist() == [0, 3, 7, 12]
        assert batch["cu_seq_lens_q"].dtype is torch.int32
        assert batch["max_length_q"] == 5
        assert batch["position_ids"][0].tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]
        assert "attention_mask" not in batch
        assert int(batch["tokens"]) == 12

    def test_rows_of_one_length_keep_padding_apart(self) -> None:
        batch = Collator(7, packed=True, flat=True, row_length=8)([sequence(3, 2), sequence(4)])
        assert batch["input_ids"].shape == (1, 16)
        assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 9, 16]
        assert batch["max_length_q"] == 8
        assert batch["input_ids"][0, 9:].tolist() == [7] * 7
        assert batch["labels"][0, 9:].tolist() == [IGNORED] * 7
        assert int(batch["tokens"]) == 9

    def test_predicting_tokens_are_those_before_a_supervised_one(self) -> None:
        batch = Collator(0, packed=False, fused_loss=True)([sequence(5), sequence(3, start=50)])
        labels = batch["labels"]
        expected = [(row, at - 1) for row in range(2) for at in range(1, 5) if labels[row, at] != IGNORED]
        assert [(int(p) // 5, int(p) % 5) for p in batch["loss_positions"]] == expected
        assert batch["targets"].tolist() == [int(labels[row, at + 1]) for row, at in expected]


@pytest.mark.usefixtures("torch_loss")
@pytest.mark.parametrize("packing", [False, True], ids=["plain", "packed"])
def test_the_fused_loss_and_its_gradients_are_the_models_own(tmp_path: Path, tiny: Path, packing: bool) -> None:
    config = configure(tmp_path, tiny, packing=packing)
    prepare(config)
    data = load_prepared(config).train
    model = load_model(config, tiny, CPU).model
    batch = Collator(0, packed=packing, fused_loss=True)([data[i] for i in range(min(3, len(data)))])
    batch.pop("tokens")
    gradients = []
    for fused in (False, True):
        if fused:
            fused_loss.fuse_loss(model.get_base_model())
        inputs = {k: v for k, v in batch.items() if fused or k not in ("loss_positions", "targets")}
        loss = model(**inputs, num_items_in_batch=torch.tensor(100)).loss
        model.zero_grad()
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for plain, fused_one in zip(*gradients, strict=True):
        torch.testing.assert_close(fused_one, plain, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("torch_loss")
def test_a_head_that_is_saved_with_the_adapter_is_trained_by_the_fused_loss(tiny: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny)
    fused_loss.fuse_loss(base)  # as the trainer does it, before there are adapters
    model = add_adapters(base, LoraMethod(rank=2, modules_to_save=["lm_head"]), linear_names(base))
    ids = torch.arange(20)[None]
    model(input_ids=ids, loss_positions=torch.arange(19), targets=torch.arange(1, 20)).loss.backward()
    trained = [part.grad for name, part in model.named_parameters() if "modules_to_save" in name]
    assert len(trained) == 1
    assert trained[0] is not None
    assert float(trained[0].norm()) > 0


@pytest.mark.usefixtures("torch_loss")
@pytest.mark.parametrize("liger", [None, True])
def test_a_model_that_scales_its_logits_is_found_before_the_first_step(
    tmp_path: Path, tiny: Path, liger: bool | None
) -> None:
    config = configure(tmp_path, tiny)
    prepare(config)
    wishes = config.acceleration.model_copy(update={"liger": liger})
    config = config.model_copy(update={"acceleration": wishes})
    data, collator = load_prepared(config).train, Collator(0, packed=False, fused_loss=True)
    model = load_model(configure(tmp_path, tiny), tiny, CPU).model
    base = model.get_base_model()
    fused_loss.fuse_loss(base)
    assert fused_loss_agrees(model, data[0], collator, config)
    base.lm_head.register_forward_hook(lambda _module, _inputs, logits: 30 * logits)
    if liger is None:  # nobody asked for it: the model's own loss is taken
        assert not fused_loss_agrees(model, data[0], collator, config)
        return
    with pytest.raises(TrainerError, match=r"leave acceleration\.liger unset") as raised:
        fused_loss_agrees(model, data[0], collator, config)
    assert raised.value.exit_code is ExitCode.ACCELERATION_UNAVAILABLE


@pytest.mark.usefixtures("torch_loss")
def test_a_loss_that_does_not_agree_is_given_up_and_told(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.kernels.fuses_loss", lambda _config, **_place: True)
    fused = run(configure(tmp_path, tiny))
    shutil.rmtree(tmp_path / "output")
    monkeypatch.setattr("finetune_trainer.train.fused_loss_agrees", lambda *_arguments: False)
    plain = run(configure(tmp_path, tiny))
    assert fused.acceleration is not None
    assert plain.acceleration is not None
    assert (fused.acceleration.kernels, plain.acceleration.kernels) == ([fused_loss.NAME], [])
    assert fused.progress is not None
    assert plain.progress is not None
    assert fused.progress.eval_loss == pytest.approx(plain.progress.eval_loss, rel=1e-5)
    assert fused.progress.loss == pytest.approx(plain.progress.loss, rel=1e-5)


def test_compiled_layers_say_the_same_and_keep_their_names(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny)
    model = load_model(config, tiny, CPU).model
    ids = torch.arange(20)[None]
    with evaluating(model, "fp32"):
        expected, names = model(input_ids=ids).logits, set(model.state_dict())
        compile_layers(model, backend="aot_eager")
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
    assert set(model.state_dict()) == names


def test_adafactor_learns(tmp_path: Path, tiny: Path) -> None:
    report = run(configure(tmp_path, tiny, hyperparameters={"optimizer": "adafactor", "maxSteps": 12}))
    assert report.progress is not None
    assert (report.progress.eval_loss or 9) < (report.progress.initial_eval_loss or 0) - 0.02


@pytest.mark.parametrize(
    ("edits", "field"),
    [
        ({"acceleration": {"flashAttention": "fa2"}}, "flashAttention"),
        ({"acceleration": {"liger": True}}, "liger"),
        ({"acceleration": {"activationOffload": True}}, "activationOffload"),
        ({"acceleration": {"unsloth": True}}, "unsloth"),
        ({"hyperparameters": {"optimizer": "adamw8bit"}}, "optimizer"),
    ],
)
def test_a_wish_that_the_cpu_cannot_meet_is_refused(
    tmp_path: Path, tiny: Path, edits: dict[str, Any], field: str
) -> None:
    with pytest.raises(TrainerError, match=field) as raised:
        prepare(configure(tmp_path, tiny, **edits))
    assert raised.value.exit_code is ExitCode.CONFIG_INVALID


def test_flash_attention_that_is_not_installed_is_refused(tmp_path: Path, tiny: Path) -> None:
    settings = AutoConfig.from_pretrained(tiny)
    for name in ("fa2", "fa3"):
        config = configure(tmp_path, tiny, acceleration={"flashAttention": name}, distributed={"gpusPerNode": 1})
        with pytest.raises(TrainerError, match=f"{name} needs a GPU and the package"):
            choose_attention(config, settings, torch.device("cuda"))


@pytest.mark.parametrize(
    "case",
    [
        ({"fa2", "fa3"}, (9, 0), {"precision": "bf16"}, "flash_attention_3"),
        ({"fa3"}, (9, 0), {"precision": "fp8", "packing": True}, "flash_attention_3"),
        ({"fa2", "fa3"}, (8, 0), {"precision": "bf16"}, "flash_attention_2"),
        ({"fa2"}, (9, 0), {"precision": "fp16", "packing": True}, "flash_attention_2"),
        ({"fa3"}, (8, 0), {"precision": "bf16", "packing": True}, VARLEN),
        ({"fa3"}, (8, 0), {"precision": "bf16"}, "sdpa"),
        (set(), (9, 0), {"precision": "bf16", "packing": True}, VARLEN),
        ({"fa2", "fa3"}, (9, 0), {"precision": "fp32", "packing": True}, "sdpa"),
    ],
)
def test_auto_takes_the_best_attention_that_is_installed_for_the_gpu_and_the_precision(
    tmp_path: Path,
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[set[str], tuple[int, int], dict[str, Any], str],
) -> None:
    installed, capability, fields, expected = case
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: "fa2" in installed)
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: "fa3" in installed)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    config = configure(tmp_path, tiny, distributed={"gpusPerNode": 1}, **fields)
    settings = AutoConfig.from_pretrained(tiny)
    assert choose_attention(config, settings, torch.device("cuda")) == expected
    assert choose_attention(config, settings, CPU) == "sdpa"


@pytest.mark.parametrize("name", ["fa2", "fa3"])
def test_flash_attention_by_name_is_taken_where_it_is_installed(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: name == "fa2")
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: name == "fa3")
    config = configure(tmp_path, tiny, acceleration={"flashAttention": name}, distributed={"gpusPerNode": 1})
    chosen = choose_attention(config, AutoConfig.from_pretrained(tiny), torch.device("cuda"))
    assert chosen == FLASH[name]
    assert takes_boundaries(chosen)


@pytest.mark.parametrize(("capability", "has"), [((8, 0), False), ((8, 9), True), ((9, 0), True), ((7, 5), False)])
def test_fp8_is_refused_on_gpus_without_its_products(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU of some age")
    if has:
        check_fp8(torch.device("cuda"))
        return
    with pytest.raises(TrainerError, match=r"a GPU of some age cannot multiply.*Use precision: bf16") as raised:
        check_fp8(torch.device("cuda"))
    assert raised.value.exit_code is ExitCode.ACCELERATION_UNAVAILABLE


def test_a_job_in_fp8_holds_the_gpu_against_it(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "older")
    config = configure(tmp_path, tiny, precision="fp8", distributed={"gpusPerNode": 1})
    with pytest.raises(TrainerError, match="precision fp8: older"):
        choose_device(config)


def test_liger_without_kernels_for_a_model_is_refused(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, acceleration={"liger": True}, distributed={"gpusPerNode": 1})
    check_kernels(config, LlamaConfig())
    with pytest.raises(TrainerError, match="'gptj'"):
        check_kernels(config, AutoConfig.for_model("gptj"))


def test_a_loss_that_cannot_be_fused_is_told(tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, gpu = AutoModelForCausalLM.from_pretrained(tiny), torch.device("cuda")
    config = configure(tmp_path, tiny, distributed={"gpusPerNode": 2, "strategy": "zero3"})
    assert apply_kernels(config, model, gpu, fused_loss=False) == []
    assert "the loss holds its logits" in caplog.text
    caplog.clear()
    refused = configure(tmp_path, tiny, acceleration={"liger": False}, distributed={"gpusPerNode": 2})
    assert apply_kernels(refused, model, gpu, fused_loss=False) == []
    assert caplog.text == ""


def test_auto_takes_the_varlen_kernel_only_where_it_is_the_models_attention(tmp_path: Path, tiny: Path) -> None:
    assert fits_varlen(LlamaConfig())
    assert fits_varlen(Qwen3Config())
    assert not fits_varlen(MistralConfig(sliding_window=4096))
    assert not fits_varlen(Gemma2Config())
    assert not fits_varlen(LlamaConfig(head_dim=512))
    settings = AutoConfig.from_pretrained(tiny)
    packed = configure(tmp_path, tiny, packing=True, precision="bf16")
    assert choose_attention(packed, settings, CPU) == "sdpa"
    assert not takes_boundaries("sdpa")
