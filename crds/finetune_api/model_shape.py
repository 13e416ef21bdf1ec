"""A model's shape, read from its config.json: what its memory follows from, without loading a weight.

Known are decoder-only transformers of Llama's build (Touvron et al., arXiv 2302.13971): attention by q, k, v and o,
a gated feed-forward layer or a mixture of such experts, RMS norms. Llama, SmolLM, Mistral, Mixtral, Qwen 2 and 3, Gemma
and Phi 3 are of it. A config that lacks a field, or tells of another build, is refused with its name: a guess would be
worse than no figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Place = Literal["attention", "output", "mlp", "down"]


class ShapeError(ValueError):
    """config.json does not say what the estimate needs; the message names the field."""


@dataclass(frozen=True)
class Linear:
    """A linear layer of a block."""

    name: str
    """Its module's name, such as ``q_proj``."""
    place: Place
    """What it reads: the attention's or the feed-forward layer's input, or what they hand to their last layer."""
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights and bias."""
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Experts:
    """A mixture of experts. transformers holds their weights as parameters of three dimensions, not as linear layers:
    they are not quantized."""

    count: int
    chosen: int
    """Experts that a token goes to."""
    intermediate: int
    shared_intermediate: int = 0
    """Width of the expert that every token goes to; 0 where there is none."""


@dataclass(frozen=True)
class ModelShape:
    """Numbers of a decoder-only transformer. Sizes are elements, not bytes."""

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied_embeddings: bool = False
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    fused_projections: bool = False
    """q, k and v are one linear layer, gate and up another (Phi 3)."""
    norms: int = 2
    """Norms of the hidden state in a layer."""
    head_norms: bool = False
    """Whether queries and keys are normed a head (Qwen 3)."""
    experts: Experts | None = None
    dense_layers: int = 0
    """Of a mixture of experts, the layers that have one plain feed-forward layer instead."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape that a config.json tells of; of a model for text and images, that of its ``text_config``.

        Raises:
            ShapeError: it names the field that is missing, wrong, or tells of a build that is not known.
        """
        text = config.get("text_config")
        source = {**config, **text} if isinstance(text, Mapping) else dict(config)
        kind = str(source.get("model_type") or "unknown")
        _refuse_other_builds(source, kind)
        hidden, heads = _number(source, "hidden_size"), _number(source, "num_attention_heads")
        head_dim = _number(source, "head_dim", default=_HEAD_DIM.get(kind) or max(1, hidden // heads))
        layers = _number(source, "num_hidden_layers")
        experts = _experts(source)
        bias = bool(source.get("attention_bias", kind in _QKV_BIAS))
        return cls(
            model_type=kind,
            layers=layers,
            hidden=hidden,
            intermediate=_number(source, "intermediate_size", default=experts.intermediate if experts else None),
            heads=heads,
            kv_heads=_number(source, "num_key_value_heads", default=heads),
            head_dim=head_dim,
            vocabulary=_number(source, "vocab_size"),
            tied_embeddings=bool(source.get("tie_word_embeddings", kind.startswith("gemma") or kind == "smollm3")),
            attention_bias=bias,
            output_bias=bias and kind not in _QKV_BIAS,
            mlp_bias=bool(source.get("mlp_bias", False)),
            fused_projections=kind == "phi3",
            norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
            head_norms=kind.startswith(("qwen3", "gemma3")),
            experts=experts,
            dense_layers=_dense_layers(source, layers) if experts else 0,
        )

    @property
    def query_width(self) -> int:
        """Elements of a token's queries."""
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Elements of a token's keys, and of its values."""
        return self.kv_heads * self.head_dim

    def linears(self, *, dense: bool = True) -> tuple[Linear, ...]:
        """Linear layers of one block.

        Args:
            dense: False is for a block of experts: of its feed-forward layers only what every token goes to.
        """
        h, i, q, k, bias = self.hidden, self.intermediate, self.query_width, self.key_width, self.attention_bias
        output = Linear("o_proj", "output", q, h, self.output_bias)
        down = Linear("down_proj", "down", i, h, self.mlp_bias)
        if self.fused_projections:
            attention = (Linear("qkv_proj", "attention", h, q + 2 * k, bias), output)
            return (*attention, Linear("gate_up_proj", "mlp", h, 2 * i, self.mlp_bias), down)
        separate = (
            Linear("q_proj", "attention", h, q, bias),
            Linear("k_proj", "attention", h, k, bias),
            Linear("v_proj", "attention", h, k, bias),
            output,
        )
        if not dense:
            return (*separate, *self._shared_expert())
        gate, up = (Linear(name, "mlp", h, i, self.mlp_bias) for name in ("gate_proj", "up_proj"))
        return (*separate, gate, up, down)

    def _shared_expert(self) -> tuple[Linear, ...]:
        """Linear layers of the expert that every token goes to."""
        width = self.experts.shared_intermediate if self.experts else 0
        if not width:
            return ()
        gate, up = (Linear(name, "mlp", self.hidden, width) for name in ("gate_proj", "up_proj"))
        chooser = (Linear("shared_expert_gate", "mlp", self.hidden, 1),) if self.model_type == "qwen2_moe" else ()
        return (gate, up, Linear("down_proj", "down", width, self.hidden), *chooser)

    @property
    def norm_parameters(self) -> int:
        """Weights of one block's norms."""
        return self.norms * self.hidden + (2 * self.head_dim if self.head_norms else 0)

    @property
    def expert_parameters(self) -> int:
        """Weights of one block's chosen experts and of what chooses among them."""
        if self.experts is None:
            return 0
        return self.experts.count * (3 * self.hidden * self.experts.intermediate + self.hidden)

    def linear_parameters(self, *, dense: bool = True) -> int:
        """Weights and biases of one block's linear layers."""
        return sum(linear.parameters for linear in self.linears(dense=dense))

    def layer_parameters(self, *, dense: bool = True) -> int:
        """All of one block."""
        experts = 0 if dense else self.expert_parameters
        return self.linear_parameters(dense=dense) + self.norm_parameters + experts

    @property
    def blocks(self) -> tuple[tuple[bool, int], ...]:
        """Kinds of blocks as (dense, how many)."""
        if self.experts is None:
            return ((True, self.layers),)
        kinds = ((True, self.dense_layers), (False, self.layers - self.dense_layers))
        return tuple(kind for kind in kinds if kind[1])

    @property
    def embedding_parameters(self) -> int:
        """Weights of the embedding, which the output head shares where they are tied."""
        return self.vocabulary * self.hidden

    @property
    def head_parameters(self) -> int:
        """Weights that the output head has for itself."""
        return 0 if self.tied_embeddings else self.embedding_parameters

    @property
    def parameters(self) -> int:
        """All weights."""
        blocks = sum(count * self.layer_parameters(dense=dense) for dense, count in self.blocks)
        return self.embedding_parameters + self.head_parameters + self.hidden + blocks


def not_counted(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of a config.json whose parts of the model no shape has: towers that see or hear."""
    return tuple(field for field in ("vision_config", "audio_config") if config.get(field))


_QKV_BIAS = ("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl", "qwen2_vl_text", "qwen2_5_vl_text")
"""Families whose q, k and v have biases without a field that says so."""
_HEAD_DIM = {"qwen3": 128, "gemma": 256, "gemma2": 256, "gemma3": 256, "gemma3_text": 256}
"""Families whose head is not as wide as hidden size over heads, where the config leaves it out."""
_OTHER_FIELDS = {
    "kv_lora_rank": "multi-head latent attention",
    "linear_num_key_heads": "linear attention",
    "ssm_cfg": "state-space layers",
    "mamba_d_state": "state-space layers",
    "is_encoder_decoder": "an encoder",
}
_OTHER_TYPES = (
    "gpt_neox",
    "phi",
    "starcoder2",
    "nemotron",
    "falcon",
    "stablelm",
    "gemma3n",
    "olmo2",
    "olmo3",
    "cohere",
)


def _refuse_other_builds(config: Mapping[str, Any], kind: str) -> None:
    for field, what in _OTHER_FIELDS.items():
        if config.get(field):
            raise ShapeError(f"config.json: {field} tells of {what} (model_type {kind}), which is not estimated")
    if kind in _OTHER_TYPES:
        raise ShapeError(f"config.json: model_type {kind} is built otherwise than Llama, which is not estimated")
    for layer in config.get("layer_types") or ():
        if layer not in ("full_attention", "sliding_attention"):
            raise ShapeError(f"config.json: layer_types names {layer}, which is not estimated")


def _number(config: Mapping[str, Any], field: str, *, default: int | None = None) -> int:
    value = config.get(field)
    if value is None:
        value = default
    if value is None:
        raise ShapeError(f"config.json lacks {field} (model_type {config.get('model_type', 'unknown')})")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ShapeError(f"config.json: {field} must be a positive integer, not {value!r}")
    return value


def _experts(config: Mapping[str, Any]) -> Experts | None:
    count = next((config[f] for f in ("num_experts", "num_local_experts", "n_routed_experts") if config.get(f)), None)
    if count is None:
        return None
    intermediate = _number(config, "moe_intermediate_size", default=config.get("intermediate_size"))
    shared = config.get("shared_expert_intermediate_size") or (config.get("n_shared_experts") or 0) * intermediate
    return Experts(int(count), _number(config, "num_experts_per_tok"), intermediate, int(shared))


def _dense_layers(config: Mapping[str, Any], layers: int) -> int:
    """Blocks of a mixture that have no experts: the first ones, named ones, or all but each n-th."""
    first = int(config.get("first_k_dense_replace") or 0)
    named = set(config.get("mlp_only_layers") or ())
    every = int(config.get("decoder_sparse_step") or 1)
    return sum(index < first or index in named or (index + 1) % every != 0 for index in range(layers))
