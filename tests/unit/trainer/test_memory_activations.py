"""The estimate's formulas against the truth: parameters, bytes of real tensors, and what autograd really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt, Params4bit
from finetune_api.heads import fused_loss_scale, logit_bytes
from finetune_api.memory import activations, trained_parameters
from finetune_api.model_shape import Linear, ModelShape
from finetune_api.recipe import BYTES, Recipe
from finetune_api.training import FullMethod, LoraMethod, MethodSpec, QuantizationSpec
from finetune_api.weights import Matrix, linear_bytes, quantized_bytes, state_bytes
from finetune_trainer import model as models
from finetune_trainer.dtypes import DTYPES
from finetune_trainer.fp8 import VALUES, Fp8Linear, scale_of
from finetune_trainer.fused_adapters import fuse_adapters, on_whole_weights
from finetune_trainer.kernels import compile_layers
from live_memory import saved_for_backward
from partitions import uncompiled
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


def test_eight_bit_floats_take_a_byte_and_a_scale() -> None:
    layer = torch.nn.Linear(256, 128, bias=False, dtype=torch.bfloat16)
    packed = Fp8Linear(layer, scale_of(layer.weight.detach(), VALUES))
    assert not list(packed.parameters())  # the weight in bf16 is not kept beside it
    weight, scale = packed.get_buffer("weight"), packed.get_buffer("scale")
    assert (weight.dtype, _held([weight]) / weight.numel(), _held([scale])) == (torch.float8_e4m3fn, 1, 4)
    assert linear_bytes(Linear("x", "mlp", 256, 128), Recipe(LORA, "fp8", 8, 1)) == _held([weight, scale])


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
QWEN3 = {"model_type": "qwen3", "head_dim": 16, "max_position_embeddings": 1024, "tie_word_embeddings": True}
WIDE = {**LLAMA, "hidden_size": 96, "intermediate_size": 384, "num_attention_heads": 6, "num_key_value_heads": 6,
        "num_hidden_layers": 5, "vocab_size": 300}  # fmt: skip
BROAD = {
    **QWEN3,
    "hidden_size": 256,
    "intermediate_size": 768,
    "head_dim": 64,
    "num_hidden_layers": 6,
    "vocab_size": 300,
}
SHAPES = {
    "broad": {**NUMBERS, **BROAD},
    "llama": {**NUMBERS, **LLAMA},
    "qwen3": {**NUMBERS, **QWEN3},
    "wide": {**NUMBERS, **WIDE},
}


def kept(numbers: dict[str, Any], recipe: Recipe) -> int:
    """Bytes that a forward pass with a loss keeps for the backward pass, but for weights and inputs."""
    trained_in_full = recipe.method.full is not None
    dtype = torch.float32 if trained_in_full and recipe.master_weights == "fp32" else DTYPES[recipe.precision]
    attention = "eager" if recipe.eager else "sdpa"
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**numbers), dtype=dtype, attn_implementation=attention
    )
    model.config.use_cache = False
    if recipe.quantization is not None:
        in_four_bits(model)
    model = models._with_method(model, recipe.method).train()
    if recipe.fused_adapters:
        assert fuse_adapters(model)
    if recipe.compiled:
        torch._dynamo.reset()
        compile_layers(
            model, recomputed=recipe.checkpointing, attention=recipe.keeps_attention, joint=on_whole_weights(model),
            backend=uncompiled(),
        )  # fmt: skip
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


COMPILED: dict[str, dict[str, Any]] = {
    "full": {"method": FULL, "master_weights": "none"},
    "separate": {},
    "fused": {"fused_adapters": True},
    "fused in 4 bits": {"fused_adapters": True, "quantization": QuantizationSpec(bits=4)},
    "fused and padded": {"fused_adapters": True, "masked": True},
    "some fused": {**VARIANTS["some-modules"], "fused_adapters": True},
    "dropout": VARIANTS["dropout"],
    "dora": VARIANTS["dora"],
    "full with masters": {"method": FULL, "length": 768},
    "frozen": {**VARIANTS["frozen"], "length": 768},
}


def in_four_bits(model: Any) -> None:
    """As bitsandbytes holds the linear layers of the blocks."""
    for block in model.model.layers:
        for name, part in list(block.named_modules()):
            if isinstance(part, torch.nn.Linear):
                layer = Linear4bit(part.in_features, part.out_features, bias=False, compute_dtype=torch.bfloat16,
                                   quant_type="nf4", compress_statistics=True)  # fmt: skip
                layer.weight = Params4bit(part.weight.data, quant_type="nf4", requires_grad=False).to("cpu")
                block.set_submodule(name, layer)


@pytest.mark.filterwarnings("default::UserWarning")  # Dynamo warns within itself
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("variant", COMPILED)
def test_activations_of_compiled_layers_and_fused_adapters(variant: str, compiled: bool) -> None:
    choices = {"method": LORA, "on_gpu": False, "compiled": compiled, "length": 96} | COMPILED[variant]
    recipe = Recipe(precision="bf16", micro_batch=2, **choices)
    truth = kept(SHAPES["broad"], recipe)
    assert expected(ModelShape.from_config(SHAPES["broad"]), recipe) == pytest.approx(truth, rel=0.1)


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("keeps", [False, True], ids=["all again", "attention kept"])
@pytest.mark.parametrize("variant", ["full", "fused"])
def test_activations_of_compiled_layers_that_are_made_again(variant: str, keeps: bool) -> None:
    choices = {"method": LORA, "on_gpu": False, "compiled": True, "checkpointing": True} | COMPILED[variant]
    recipe = Recipe(precision="bf16", length=96, micro_batch=2, keeps_attention=keeps, **choices)
    truth = kept(SHAPES["broad"], recipe)
    assert expected(ModelShape.from_config(SHAPES["broad"]), recipe) == pytest.approx(truth, rel=0.1)


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
