"""The estimate's formulas against the truth: parameters, bytes of real tensors, and what autograd really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from finetune_api.memory import activations, fused_loss_scale, logit_bytes, trained_parameters
from finetune_api.model_shape import Linear, ModelShape
from finetune_api.recipe import BYTES, Recipe
from finetune_api.training import FullMethod, LoraMethod, MethodSpec, QuantizationSpec
from finetune_api.weights import Matrix, linear_bytes, quantized_bytes, state_bytes
from finetune_trainer import model as models
from finetune_trainer.dtypes import DTYPES
from live_memory import saved_for_backward
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)

NUMBERS: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LORA = MethodSpec(lora=LoraMethod(rank=8))
ATTENTION = MethodSpec(lora=LoraMethod(rank=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
FULL = MethodSpec(full=FullMethod())

# -- shapes --------------------------------------------------------------------------------------------------------

FAMILIES: list[tuple[type[PreTrainedConfig], dict[str, Any]]] = [
    (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    (LlamaConfig, {"head_dim": 32, "tie_word_embeddings": True}),
    (MistralConfig, {}),
    (MixtralConfig, {"num_local_experts": 4}),
    (Qwen2Config, {}),
    (Qwen3Config, {"head_dim": 16}),
    (Qwen2MoeConfig, {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48}),
    (Qwen3MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]}),
    (Gemma2Config, {"head_dim": 16}),
    (Gemma3TextConfig, {"head_dim": 16}),
    (Phi3Config, {}),
    (SmolLM3Config, {}),
]


@pytest.mark.parametrize(("kind", "extra"), FAMILIES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_a_shape_counts_the_parameters_of_the_real_model(
    kind: type[PreTrainedConfig], extra: dict[str, Any], method: MethodSpec
) -> None:
    config = kind(**NUMBERS, **extra)
    shape = ModelShape.from_config(config.to_diff_dict() | {"model_type": kind.model_type})
    if shape.experts is not None and method.lora is not None:
        method = ATTENTION  # what is estimated of experts
    with torch.device("meta"):
        model = models._with_method(AutoModelForCausalLM.from_config(config), method)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert trained_parameters(shape, Recipe(method, "bf16", 8, 1)) == trained
    assert shape.parameters == total - (trained if method.lora else 0)


# -- bytes a parameter -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_a_weight_and_its_gradient_take_what_the_type_takes(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(32, 16, dtype=DTYPES[name]))
    weight.sum().backward()
    assert weight.grad is not None
    expected = {"fp32": 4, "fp16": 2, "bf16": 2}[name]
    assert BYTES[name] == expected
    assert weight.untyped_storage().nbytes() / weight.numel() == expected
    assert weight.grad.untyped_storage().nbytes() / weight.numel() == expected


def _held(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@pytest.mark.parametrize(("double", "expected"), [(True, 0.516), (False, 0.5625)])
def test_four_bits_take_half_a_byte_and_their_constants(double: bool, expected: float) -> None:
    weight = Params4bit(torch.randn(512, 512), quant_type="nf4", compress_statistics=double, requires_grad=False)
    layer = Linear4bit(512, 512, bias=False)
    layer.weight = weight.to("cpu")
    state = layer.weight.quant_state
    constants = [state.absmax, *([state.state2.absmax] if double else [])]
    each = _held([layer.weight.data, *constants]) / 512**2
    settings = QuantizationSpec(bits=4, double_quantization=double)
    assert quantized_bytes(settings) == pytest.approx(expected, abs=1e-3)
    assert each == pytest.approx(quantized_bytes(settings), rel=0.01)


def test_eight_bits_take_a_byte_and_a_scale_a_row() -> None:
    layer = Linear8bitLt(256, 128, bias=False, has_fp16_weights=False)
    layer.weight.data = torch.randn(128, 256)
    layer = layer.to("cpu")
    assert layer.weight.dtype == torch.int8
    held = _held([layer.weight.data, layer.weight.SCB])
    recipe = Recipe(LORA, "bf16", 8, 1, quantization=QuantizationSpec(bits=8))
    assert linear_bytes(Linear("x", "mlp", 256, 128), recipe) == held


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_adamw_keeps_two_moments_in_the_weights_type(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(64, 128, dtype=DTYPES[name]))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    held = _held([value for key, value in optimizer.state[weight].items() if key != "step"])
    assert state_bytes(Matrix(64, 128), "adamw", BYTES[name]) == held


def test_adamw_in_eight_bits_keeps_two_bytes_and_constants() -> None:
    from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 - slow, and for this test alone

    weights = [torch.nn.Parameter(torch.ones(128, 64)), torch.nn.Parameter(torch.ones(64))]
    optimizer = AdamW8bit(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for weight, matrix in zip(weights, (Matrix(128, 64), Matrix(1, 64)), strict=True):
        state = optimizer.state[weight]
        held = _held([state[key] for key in ("state1", "state2", "absmax1", "absmax2") if key in state])
        assert held == state_bytes(matrix, "adamw8bit", 4)


def test_adafactor_keeps_rows_and_columns() -> None:
    from transformers import Adafactor  # noqa: PLC0415

    weights = [torch.nn.Parameter(torch.ones(128, 64)), torch.nn.Parameter(torch.ones(64))]
    optimizer = Adafactor(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    for weight, matrix in zip(weights, (Matrix(128, 64), Matrix(1, 64)), strict=True):
        tensors = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
        held = _held([tensor for tensor in tensors if tensor.ndim])
        assert held == state_bytes(matrix, "adafactor", 4)


# -- what autograd keeps -----------------------------------------------------------------------------------------------

LLAMA = {"model_type": "llama", "head_dim": 16, "max_position_embeddings": 512}
QWEN3 = {"model_type": "qwen3", "head_dim": 16, "max_position_embeddings": 512, "tie_word_embeddings": True}
WIDE = {**LLAMA, "hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 6, "num_key_value_heads": 6,
        "num_hidden_layers": 5, "vocab_size": 300}  # fmt: skip
SHAPES = {"llama": {**NUMBERS, **LLAMA}, "qwen3": {**NUMBERS, **QWEN3}, "wide": {**NUMBERS, **WIDE}}


def kept(numbers: dict[str, Any], recipe: Recipe) -> int:
    """Bytes that a forward pass with a loss keeps for the backward pass, but for weights and inputs."""
    trained_in_full = recipe.method.full is not None
    dtype = torch.float32 if trained_in_full and recipe.master_weights == "fp32" else DTYPES[recipe.precision]
    attention = "eager" if recipe.eager else "sdpa"
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**numbers), dtype=dtype, attn_implementation=attention
    )
    model.config.use_cache = False
    model = models._with_method(model, recipe.method).train()
    if recipe.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    ids = torch.randint(0, numbers["vocab_size"], (recipe.micro_batch, recipe.length))
    mask = torch.ones_like(ids)
    if recipe.masked:
        mask[0, -3:] = 0
    with (
        saved_for_backward(list(model.parameters())) as saved,
        torch.autocast("cpu", torch.bfloat16, enabled=recipe.autocast),
    ):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids).loss
    assert loss.requires_grad  # and its graph is alive
    return saved.bytes


def expected(shape: ModelShape, recipe: Recipe) -> float:
    """The same by the formula. Of the logits, the log-softmax is what is kept."""
    acts = activations(shape, recipe)
    cast = acts.head_copy + (0 if recipe.checkpointing else acts.copies)
    return acts.kept + cast + 4 * recipe.tokens * shape.vocabulary


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "rebuilt"])
def test_activations_are_what_autograd_keeps(
    shape: str, method: MethodSpec, precision: Any, checkpointing: bool
) -> None:
    recipe = Recipe(method, precision, 96, 2, checkpointing=checkpointing, on_gpu=False)
    truth = kept(SHAPES[shape], recipe)
    assert expected(ModelShape.from_config(SHAPES[shape]), recipe) == pytest.approx(truth, rel=0.1)


VARIANTS: dict[str, dict[str, Any]] = {
    "padded": {"masked": True},
    "eager": {"eager": True, "masked": True},
    "some-modules": {"method": MethodSpec(lora=LoraMethod(rank=4, target_modules=["q_proj", "v_proj"]))},
    "dropout": {"method": MethodSpec(lora=LoraMethod(rank=4, dropout=0.1))},
    "dora": {"method": MethodSpec(lora=LoraMethod(rank=4, dora=True))},
    "modules-to-save": {"method": MethodSpec(lora=LoraMethod(rank=4, modules_to_save=["lm_head"]))},
    "frozen": {"method": MethodSpec.model_validate({"freeze": {"trainableLayers": 2}})},
    "frozen-first": {"method": MethodSpec.model_validate({"freeze": {"trainableLayers": -1}})},
    "half-masters": {"method": FULL, "master_weights": "none"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_of_variants(variant: str, precision: Any) -> None:
    choices = {"method": LORA, "on_gpu": False} | VARIANTS[variant]
    recipe = Recipe(precision=precision, length=96, micro_batch=2, **choices)
    truth = kept(SHAPES["wide"], recipe)
    assert expected(ModelShape.from_config(SHAPES["wide"]), recipe) == pytest.approx(truth, rel=0.1)


def test_the_fused_loss_holds_a_few_times_the_hidden_states() -> None:
    shape = ModelShape.from_config(SHAPES["llama"])
    tokens = 65_536
    plain, fused = (
        logit_bytes(shape, Recipe(LORA, "bf16", tokens // 4, 4, fused_loss=fused)) for fused in (False, True)
    )
    assert plain.backward == 12 * tokens * shape.vocabulary
    assert fused.forward <= 2 * (4 + 2) * tokens * shape.hidden


@pytest.mark.parametrize(("tokens", "hidden"), [(8192, 1024), (16_384, 1024), (8192, 4096), (1500, 2048)])
def test_the_fused_loss_takes_a_thousand_tokens_at_a_time_or_more(tokens: int, hidden: int) -> None:
    """By Liger's reckoning (ops/fused_linear_cross_entropy.py); with fewer a narrow model is a fifth slower in full."""
    vocabulary = 151_936
    chunks = -(-vocabulary // (fused_loss_scale(tokens, hidden, vocabulary) * hidden))
    assert 512 < -(-tokens // chunks) <= 2048  # the next power of two is taken
