"""Packed checkpoints are made whole to the values that they stand for, and train."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_trainer import dequantize
from finetune_trainer.base_model import INDEX
from finetune_trainer.dequantize import packed_format, whole_weights
from finetune_trainer.errors import TrainerError
from peft import PeftModel
from safetensors.torch import load_file, save_file
from trainings import configure, held_out, output_of, run
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, GptOssConfig, GptOssForCausalLM, Mxfp4Config

GROUP = 16
BLOCK = 32
"""Weights that share an exponent in MXFP4."""
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the three bits below the sign stand for in a 4-bit float (OCP Microscaling Formats 1.0, table 5)."""
Tensors = dict[str, torch.Tensor]
Packer = Callable[[str, torch.Tensor], tuple[Tensors, torch.Tensor]]


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers (n, m) of ``bits`` each into int32 (n x bits / 32, m), the first in the lowest bits."""
    count = 32 // bits
    grouped = values.to(torch.int64).reshape(-1, count, values.shape[1])
    words = sum(grouped[:, i] << (bits * i) for i in range(count))
    assert isinstance(words, torch.Tensor)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def quantize(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers (in, out), and zero points and scales (groups, out), asymmetric by group of inputs."""
    grouped = weight.T.reshape(-1, GROUP, weight.shape[0])
    low, high = grouped.amin(1), grouped.amax(1)
    scales = ((high - low) / (2**bits - 1)).clamp(min=1e-6).to(torch.float16)
    zeros = (-low / scales.float()).round().clamp(1, 2**bits - 1)
    values = (grouped / scales.float()[:, None] + zeros[:, None]).round().clamp(0, 2**bits - 1)
    return values.reshape(weight.T.shape), zeros, scales


def gptq(bits: int) -> Packer:
    """As AutoGPTQ writes it: inputs of one output in one word, the first in the lowest bits; zero points of the groups
    in words along the outputs, each stored less one."""

    def packer(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        values, zeros, scales = quantize(weight, bits)
        # Inputs in another order, as with desc_act.
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(len(name)))
        groups = torch.arange(weight.shape[1]) // GROUP
        tensors = {
            f"{name}.qweight": pack(values[order], bits),
            f"{name}.qzeros": pack((zeros - 1).T, bits).T.contiguous(),
            f"{name}.scales": scales,
            f"{name}.g_idx": groups[order].to(torch.int32),
        }
        whole = (values - zeros.repeat_interleave(GROUP, 0)) * scales.float().repeat_interleave(GROUP, 0)
        return tensors, whole[order].T

    return packer


def awq(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """As AutoAWQ's GEMM kernel reads it: eight outputs of one input in one word, in the order 0, 2, 4, 6, 1, 3, 5, 7
    from the lowest bits on."""
    values, zeros, scales = quantize(weight, 4)

    def columns(integers: torch.Tensor) -> torch.Tensor:
        eight = integers.to(torch.int64).reshape(integers.shape[0], -1, 8)
        words = (
            eight[..., 0] | eight[..., 2] << 4 | eight[..., 4] << 8 | eight[..., 6] << 12
            | eight[..., 1] << 16 | eight[..., 3] << 20 | eight[..., 5] << 24 | eight[..., 7] << 28
        )  # fmt: skip
        return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).contiguous()

    tensors = {f"{name}.qweight": columns(values), f"{name}.qzeros": columns(zeros), f"{name}.scales": scales}
    whole = (values - zeros.repeat_interleave(GROUP, 0)) * scales.float().repeat_interleave(GROUP, 0)
    return tensors, whole.T


def fp8(name: str, weight: torch.Tensor, size: int = 24) -> tuple[Tensors, torch.Tensor]:
    blocks = torch.zeros(-(-weight.shape[0] // size), -(-weight.shape[1] // size))
    wide = torch.zeros_like(weight)
    for i in range(blocks.shape[0]):
        for j in range(blocks.shape[1]):
            part = (slice(i * size, (i + 1) * size), slice(j * size, (j + 1) * size))
            blocks[i, j] = weight[part].abs().max() / 448
            wide[part] = blocks[i, j]
    values = (weight / wide).to(torch.float8_e4m3fn)
    return {f"{name}.weight": values, f"{name}.weight_scale_inv": blocks}, values.float() * wide


def mxfp4(name: str, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    """As gpt-oss packs the weights of its experts (experts, in, out): blocks of 32 inputs of one output, two to a byte,
    the first in the low bits, with an exponent that is stored with 127 added."""
    blocks = weight.transpose(1, 2).reshape(weight.shape[0], weight.shape[2], -1, BLOCK)
    # The largest power of two that E2M1 has is 4.
    exponents = blocks.abs().amax(-1).clamp(min=2**-100).log2().floor() - 2
    scaled = blocks / exponents.exp2()[..., None]
    codes = (scaled.abs()[..., None] - torch.tensor(E2M1)).abs().argmin(-1)
    values = torch.tensor(E2M1)[codes] * scaled.sign()
    nibbles = codes + 8 * (scaled < 0)
    tensors = {
        f"{name}_blocks": (nibbles[..., 0::2] + 16 * nibbles[..., 1::2]).to(torch.uint8),
        f"{name}_scales": (exponents + 127).to(torch.uint8),
    }
    whole = (values * exponents.exp2()[..., None]).reshape(weight.transpose(1, 2).shape).transpose(1, 2)
    return tensors, whole.contiguous()


FORMATS: dict[str, tuple[Packer, dict[str, Any], dict[str, Any]]] = {
    "gptq8": (gptq(8), {"quant_method": "gptq", "bits": 8, "group_size": GROUP}, {"method": "gptq", "bits": 8}),
    "gptq4": (gptq(4), {"quant_method": "gptq", "bits": 4, "group_size": GROUP}, {"method": "gptq", "bits": 4}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "version": "gemm"}, {"method": "awq"}),
    # 24 does not divide the weights' sides; transformers reads only blocks that do.
    "fp8": (fp8, {"quant_method": "fp8", "weight_block_size": [24, 24]}, {"method": "fp8"}),
    "fp8 even": (partial(fp8, size=16), {"quant_method": "fp8", "weight_block_size": [16, 16]}, {"method": "fp8"}),
    "mxfp4": (
        mxfp4,
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
        {"method": "mxfp4"},
    ),
}


@pytest.fixture(scope="module")
def bases(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole model for each format: MXFP4 is for the experts of gpt-oss alone."""
    directory = tmp_path_factory.mktemp("models") / "gpt-oss"
    shutil.copytree(tiny, directory)
    numbers = json.loads((tiny / "config.json").read_text())
    settings = GptOssConfig(
        vocab_size=numbers["vocab_size"], hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=4096, sliding_window=64, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        bos_token_id=numbers["bos_token_id"], eos_token_id=numbers["eos_token_id"],
        pad_token_id=numbers["pad_token_id"],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GptOssForCausalLM(settings).save_pretrained(directory)
    return {kind: directory if kind == "mxfp4" else tiny for kind in FORMATS}


def make_packed(base: Path, directory: Path, kind: str) -> Tensors:
    """Write the model ``base``, packed, into ``directory``; the whole weights that it stands for."""
    packer, settings, _ = FORMATS[kind]
    shutil.copytree(base, directory)
    packed, whole = {}, {}
    for name, tensor in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith("_proj") and tensor.ndim == (3 if kind == "mxfp4" else 2):
            tensors, whole[name] = packer(module, tensor)
            packed |= tensors
        else:
            packed[name] = whole[name] = tensor
    save_file(packed, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return whole


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shard", [2**40, 4096], ids=["one file", "shards"])
def test_weights_are_those_that_were_packed(
    tmp_path: Path, bases: dict[str, Path], kind: str, shard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_packed(bases[kind], tmp_path / "packed", kind)
    monkeypatch.setattr(dequantize, "SHARD_BYTES", shard)
    packed = packed_format(json.loads((tmp_path / "packed/config.json").read_text()))
    assert packed is not None
    made = whole_weights(tmp_path / "packed", tmp_path / "cache", "sha256:1", packed)
    assert (made / INDEX).exists() == (shard == 4096)
    found = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32).state_dict()
    for name, weight in whole.items():
        torch.testing.assert_close(found[name], weight.float(), rtol=2**-8, atol=1e-3 * float(weight.abs().max()))
    before = (made / "config.json").stat().st_mtime_ns
    assert whole_weights(tmp_path / "packed", tmp_path / "cache", "sha256:1", packed) == made
    assert (made / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", FORMATS)
def test_packed_models_train(tmp_path: Path, bases: dict[str, Path], kind: str) -> None:
    whole = make_packed(bases[kind], tmp_path / "packed", kind)
    config = configure(tmp_path, tmp_path / "packed", quantization=FORMATS[kind][2])
    declared = run(config)
    assert declared.progress is not None
    assert declared.progress.eval_loss is not None
    assert declared.progress.eval_loss < (declared.progress.initial_eval_loss or 0) - 0.02
    # The adapter fits the packed model as it is served: on the values that it stands for it says the same.
    served = AutoModelForCausalLM.from_pretrained(bases[kind], dtype=torch.float32)
    loaded = served.load_state_dict({name: weight.float() for name, weight in whole.items()}, strict=False)
    assert not loaded.unexpected_keys
    tuned = PeftModel.from_pretrained(served, output_of(config, "adapter"))
    assert held_out(tuned, config) == pytest.approx(declared.progress.eval_loss, rel=2e-3)


def test_blocks_of_fp8_are_read_as_transformers_reads_them(tmp_path: Path, tiny: Path) -> None:
    make_packed(tiny, tmp_path / "packed", "fp8 even")
    config = json.loads((tmp_path / "packed/config.json").read_text())
    packed = packed_format(config)
    assert packed is not None
    made = whole_weights(tmp_path / "packed", tmp_path / "cache", "1", packed)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed", quantization_config=FineGrainedFP8Config(dequantize=True), dtype=torch.bfloat16
    ).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(made, dtype=torch.bfloat16).state_dict()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name].float(), weight.float(), rtol=2**-7, atol=1e-5)


def test_experts_in_mxfp4_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    settings = GptOssConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, num_local_experts=2, num_experts_per_tok=1,
        layer_types=["full_attention"],
    )  # fmt: skip
    model = GptOssForCausalLM(settings)
    tensors: Tensors = {}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inner, outer = tensor.shape
            tensors[f"{name}_blocks"] = torch.randint(
                0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8, generator=generator
            )
            tensors[f"{name}_scales"] = torch.randint(
                120, 128, (experts, outer, inner // 32), dtype=torch.uint8, generator=generator
            )
        else:
            tensors[name] = tensor.to(torch.bfloat16)
    (tmp_path / "packed").mkdir()
    save_file(tensors, tmp_path / "packed/model.safetensors", metadata={"format": "pt"})
    written = {**settings.to_dict(), "architectures": ["GptOssForCausalLM"]}
    written["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (tmp_path / "packed/config.json").write_text(json.dumps(written))
    packed = packed_format(written)
    assert packed is not None
    made = whole_weights(tmp_path / "packed", tmp_path / "cache", "1", packed)
    ours = AutoModelForCausalLM.from_pretrained(made, dtype=torch.bfloat16).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "packed", quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    ).state_dict()
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "gptq", "bits": 3}, "3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "GEMM"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "gptq", "bits": 4}, "is missing"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, tiny: Path, settings: dict[str, Any], said: str) -> None:
    make_packed(tiny, tmp_path / "packed", "gptq4")
    file = tmp_path / "packed/model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mlp.up_proj.scales"]
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((tmp_path / "packed/config.json").read_text())
    (tmp_path / "packed/config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    with pytest.raises(TrainerError, match=said):
        run(configure(tmp_path, tmp_path / "packed"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_wish_for_a_format_that_the_checkpoint_has_not_is_refused(tmp_path: Path, tiny: Path) -> None:
    with pytest.raises(TrainerError, match="weights are whole"):
        run(configure(tmp_path, tiny, quantization={"method": "awq", "bits": 4}))
