"""Which attention runs: a library's by name where it is asked for, else the best there is for the job.

``varlen`` is torch's own attention over sequences of different lengths in one row (FlashAttention-2, Dao, arXiv
2307.08691), registered here with transformers: packed samples need neither a mask of n x n nor a wheel that has to be
compiled.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from finetune_trainer import unsloth_start
from finetune_trainer.errors import TrainerError

VARLEN = "varlen"
FLASH = {"fa2": "flash_attention_2", "fa3": "flash_attention_3"}
PLAIN = {"sdpa": "sdpa", "flex": "flex_attention", "disabled": "eager"}
_TAKEN = frozenset(inspect.signature(varlen_attn).parameters)
"""Options of this torch's varlen kernel, which has grown since it came with 2.10."""
_LONGEST_HEAD = 256
"""Values a head that the varlen kernel takes."""


def choose_attention(config: TrainerConfig, settings: PretrainedConfig, device: torch.device) -> str:
    """transformers' name of the attention to load the model with.

    ``auto`` takes flash-attn 3 or 2 where they are installed; else, for packed data on a GPU, torch's varlen kernel;
    else sdpa. In fp32, which none of these computes in, it is sdpa.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE where what is named is not there.
    """
    wanted = config.acceleration.flash_attention
    if wanted in FLASH:
        _demand_flash(wanted, device)
        return FLASH[wanted]
    if wanted in PLAIN:
        if wanted == "flex" and device.type == "cuda":
            AttentionInterface.register(PLAIN[wanted], flex_attention)
        return PLAIN[wanted]
    if device.type == "cuda" and config.precision != "fp32":
        if is_flash_attn_3_available() and torch.cuda.get_device_capability(device) == (9, 0):
            return FLASH["fa3"]
        if is_flash_attn_2_available():
            return FLASH["fa2"]
        if config.packing and fits_varlen(settings):
            register_varlen()
            return VARLEN
    return "sdpa"


def demand_kernel(config: TrainerConfig) -> None:
    """Refuse what a model cannot have whose attention is the plain one alone.

    Raises:
        TrainerError: ACCELERATION_UNAVAILABLE.
    """
    wishes = config.acceleration
    if wishes.flash_attention == "sdpa":
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            f"acceleration.flashAttention: {config.model.uri} has no sdpa attention; use auto",
        )
    if wishes.keep_attention:
        raise TrainerError(
            ExitCode.ACCELERATION_UNAVAILABLE,
            f"acceleration.keepAttention: {config.model.uri} has plain attention alone, which is not a kernel whose "
            "output could be kept; leave it false",
        )


def takes_boundaries(attention: str) -> bool:
    """Whether ``attention`` is told where samples begin, instead of by a mask."""
    return attention in (VARLEN, unsloth_start.NAME, *FLASH.values())


def fits_varlen(settings: PretrainedConfig) -> bool:
    """Whether a model's attention is plain and causal: no sliding window, no soft cap, no sinks, heads not too wide."""
    text = settings.get_text_config()
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    return (
        window is None
        and kinds == {"full_attention"}
        and getattr(text, "attn_logit_softcapping", None) is None
        and width <= _LONGEST_HEAD
        and text.model_type != "gpt_oss"
    )


def register_varlen() -> None:
    """Make ``attn_implementation="varlen"`` known to transformers."""
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, flash_attention_mask)


def varlen_attention(  # noqa: PLR0917 - transformers' signature
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample of a packed row.

    Args:
        module: the layer.
        query: (1, heads, tokens, width); key and value may have fewer heads.
        key: likewise.
        value: likewise.
        attention_mask: none; where boundaries are not given, as in generation, sdpa's.
        dropout: none is supported.
        scaling: of the scores.
        options: ``cu_seq_lens_q``, int32 (samples + 1), where each begins, and ``max_length_q``.

    Returns:
        (1, tokens, heads, width), and no weights.
    """
    starts, longest = options.get("cu_seq_lens_q"), options.get("max_length_q")
    if starts is None or longest is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    groups = query.shape[1] // key.shape[1]
    # A norm with fp32 weights leaves queries and keys in fp32 under autocast, where the product before it does not.
    rows = [part[0].transpose(0, 1).to(value.dtype).contiguous() for part in (query, key, value)]
    width = {"enable_gqa": True} if groups > 1 and "enable_gqa" in _TAKEN else {}
    if groups > 1 and not width:
        rows[1:] = [part.repeat_interleave(groups, dim=1) for part in rows[1:]]
    causal: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in _TAKEN else {"is_causal": True}
    output = varlen_attn(*rows, starts, starts, longest, longest, scale=scaling, **causal, **width)
    return output[None], None


def flex_attention(*inputs: Any, **options: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' flex attention by the kernel that trains. By itself torch takes the one for decoding where queries
    are few, and compiling that fails for narrow heads (NoValidChoicesError, torch 2.11)."""
    output: tuple[torch.Tensor, torch.Tensor | None] = flex_attention_forward(
        *inputs, kernel_options={"BACKEND": "TRITON"}, **options
    )
    return output


def _demand_flash(wanted: str, device: torch.device) -> None:
    there = {"fa2": is_flash_attn_2_available, "fa3": is_flash_attn_3_available}[wanted]()
    if there and device.type == "cuda":
        return
    package = {"fa2": "flash-attn", "fa3": "flash-attn-3"}[wanted]
    raise TrainerError(
        ExitCode.ACCELERATION_UNAVAILABLE,
        f"acceleration.flashAttention: {wanted} needs a GPU and the package {package}, which this trainer image does "
        "not have; use auto, which takes torch's own kernels, or an image with it (spec of the TrainingProfile)",
    )
