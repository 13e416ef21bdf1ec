"""What layers keep from their forward to their backward pass, by the graphs of compiled ones and by the operations of
others, and the gradients that they still have."""

from __future__ import annotations

import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import varlen_on_cpu
from finetune_api.failures import ExitCode
from finetune_trainer.attention import VARLEN, register_varlen
from finetune_trainer.batches import Collator
from finetune_trainer.errors import TrainerError
from finetune_trainer.fused_adapters import on_whole_weights
from finetune_trainer.kernels import checkpoint_options, compile_layers
from finetune_trainer.model import count_parameters, load_model
from finetune_trainer.prepared import Sequence
from partitions import uncompiled
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import configure
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    Qwen3Config,
)

CPU = torch.device("cpu")
IDS = torch.arange(20)[None]
BATCH = {"input_ids": IDS, "labels": IDS}
ATTENTION = "aten._scaled_dot_product_flash_attention_for_cpu.default"


@pytest.mark.parametrize("attention", [False, True], ids=["all again", "attention kept"])
@pytest.mark.parametrize("fused", [False, True], ids=["by peft", "fused"])
@pytest.mark.parametrize("quantization", [None, {"bits": 4}], ids=["lora", "qlora"])
def test_compiled_layers_that_are_recomputed_keep_their_inputs_alone_or_attention_beside_them(
    tmp_path: Path, tiny: Path, quantization: Any, fused: bool, attention: bool
) -> None:
    """torch 2.11 kept the outputs of 4-bit products, 40 GiB of an 8B model at 16,384 tokens."""
    wishes = {"gradientCheckpointing": True, "fusedAdapters": fused}
    config = configure(tmp_path, tiny, quantization=quantization, precision="bf16", acceleration=wishes)
    model = load_model(config, tiny, CPU).model.train()
    model.activation_checkpointing_enable({"use_reentrant": False})
    kept = kept_by_layers(model, recomputed=True, attention=attention)
    assert kept
    for nodes in kept:
        assert bool(nodes) is attention
        assert all("attention" in source(node) for node in nodes), nodes


@pytest.mark.filterwarnings("default::UserWarning")  # Dynamo warns within itself, where the warning is an error
def test_compiled_layers_keep_what_attention_gave(tmp_path: Path, tiny: Path) -> None:
    config = configure(tmp_path, tiny, precision="bf16", acceleration={"fusedAdapters": True})
    kept = kept_by_layers(load_model(config, tiny, CPU).model.train(), recomputed=False)
    assert kept
    assert all(any("attention" in source(node) for node in nodes) for nodes in kept), kept


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A model whose queries and keys have norms of their own."""
    directory = tmp_path_factory.mktemp("qwen3")
    settings = AutoConfig.from_pretrained(tiny)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(
            Qwen3Config(
                vocab_size=settings.vocab_size, hidden_size=64, intermediate_size=192, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, head_dim=16, eos_token_id=settings.eos_token_id,
                pad_token_id=settings.pad_token_id,
            )
        ).save_pretrained(directory)  # fmt: skip
    AutoTokenizer.from_pretrained(tiny).save_pretrained(directory)
    return directory


@pytest.mark.filterwarnings("default::UserWarning")
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_compiled_layers_with_fused_adapters_keep_products_and_attention_alone(
    tmp_path: Path, qwen3: Path, packed: bool
) -> None:
    """Of packed rows torch 2.11 kept gates and what they are multiplied with, and inputs of products, beside the
    products that they come from: 16 GiB of an 8B model at 8,192 tokens."""
    config = configure(tmp_path, qwen3, precision="bf16", acceleration={"fusedAdapters": True})
    model = load_model(config, qwen3, CPU).model.train()
    batch = BATCH
    if packed:
        varlen_on_cpu.install()
        register_varlen()
        model.get_base_model().config._attn_implementation = VARLEN
        ids = IDS[0].numpy()
        found = Collator(0, packed=True, flat=True)([Sequence(ids, ids, np.asarray((9, 11)))])
        batch = {key: value for key, value in found.items() if key not in ("tokens", "rows")}
    kept = kept_by_layers(model, batch, recomputed=False, joint=on_whole_weights(model))
    assert kept
    for nodes in kept:
        assert any("attention" in source(node) or "varlen" in source(node) for node in nodes)
        values = sum(node.meta["val"].numel() for node in nodes) / IDS.numel()
        products = 64 + 2 * 32 + 64 + 2 * 192  # queries, keys and values; what attention puts out; gates and others
        assert values < 1.3 * (products + 64), nodes  # with attention's own output, sums and adapters


@pytest.mark.filterwarnings("default::UserWarning")
def test_compiled_layers_repeat_no_product_under_fp32_masters(tmp_path: Path, qwen3: Path) -> None:
    """Whose casts are part of what the compiler is to save a share of; it saved four of a layer's seven products."""
    config = configure(tmp_path, qwen3, method={"full": {}}, precision="bf16")
    model = load_model(config, qwen3, CPU).model.train()
    ids = IDS.flatten().repeat(64)[None, :64]
    seen: list[tuple[int, int]] = []
    torch._dynamo.reset()
    compile_layers(model, backend=uncompiled(lambda *graphs: seen.append(tuple(map(products, graphs)))))
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=ids, labels=ids).loss.backward()
    assert seen
    assert all((forward, backward) == (7, 14) for forward, backward in seen)


class Forwards(TorchDispatchMode):
    """Counts how often attention is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += str(operation) == ATTENTION
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize("method", [{"lora": {"rank": 4}}, {"full": {}}], ids=["lora", "full"])
def test_attention_that_is_kept_is_not_computed_again(tmp_path: Path, tiny: Path, method: Any) -> None:
    found = {}
    layers = AutoConfig.from_pretrained(tiny).num_hidden_layers
    for kept in (False, True):
        wishes = {"gradientCheckpointing": True, "keepAttention": kept}
        config = configure(tmp_path, tiny, precision="bf16", method=method, acceleration=wishes)
        torch.manual_seed(0)
        model = load_model(config, tiny, CPU).model.train()
        noise(model)
        model.activation_checkpointing_enable(checkpoint_options(config))
        with Forwards() as forwards:
            found[kept] = gradients(model, BATCH)
        assert forwards.count == (layers if kept else 2 * layers)
    assert found[True].keys() == found[False].keys()
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name], msg=name)


@pytest.mark.parametrize(
    ("wishes", "field"),
    [({"gradientCheckpointing": True, "keepAttention": True}, "keepAttention"), ({"flashAttention": "sdpa"}, "sdpa")],
)
def test_a_model_with_plain_attention_alone_is_refused_before_and_when_it_is_loaded(
    tmp_path: Path, tiny: Path, wishes: Any, field: str
) -> None:
    plain = tmp_path / "bloom"
    settings = BloomConfig(vocab_size=AutoConfig.from_pretrained(tiny).vocab_size, hidden_size=32, n_layer=1, n_head=2)
    BloomForCausalLM(settings).save_pretrained(plain)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(plain)
    config = configure(tmp_path, plain, acceleration=wishes)
    for refusing in (lambda: count_parameters(config, plain), lambda: load_model(config, plain, CPU)):
        with pytest.raises(TrainerError, match=f"{field}.*leave it false|{field} attention; use auto") as raised:
            refusing()
        assert raised.value.exit_code is ExitCode.ACCELERATION_UNAVAILABLE
    loaded = load_model(configure(tmp_path, plain, acceleration={"gradientCheckpointing": True}), plain, CPU)
    assert loaded.acceleration.attention == "eager"


def noise(model: Any) -> None:
    """Give B values, which is zero at first, so that A has gradients."""
    for name, part in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(part, std=0.1)


def products(graph: Any) -> int:
    """How many a graph computes."""
    return sum(str(node.target) == "aten.mm.default" for node in graph.graph.nodes)


def kept_by_layers(
    model: Any, batch: dict[str, Any] = BATCH, *, recomputed: bool, attention: bool = False, joint: bool = False
) -> list[list[Node]]:
    """By the graph of a layer, what it computes forward and keeps for the backward pass; its gradients are those of
    layers that are not compiled."""
    kept: list[list[Node]] = []
    noise(model)
    expected = gradients(model, batch)

    def see(forward: Any, _backward: Any) -> None:
        results = next(node for node in forward.graph.nodes if node.op == "output").args[0]
        kept.append([node for node in results[1:] if getattr(node, "op", "placeholder") != "placeholder"])

    torch._dynamo.reset()
    compile_layers(model, recomputed=recomputed, attention=attention, joint=joint, backend=uncompiled(see))
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=0.02, msg=name)
    return kept


def source(node: Node) -> str:
    """The operation that ``node`` is an output of."""
    return str((node.args[0] if node.target is operator.getitem else node).target)  # type: ignore[union-attr]


def gradients(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Of what is trained, in bf16 arithmetic."""
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch).loss.backward()
    return {name: part.grad.clone() for name, part in model.named_parameters() if part.requires_grad}
