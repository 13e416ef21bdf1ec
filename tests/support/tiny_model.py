"""A causal language model small enough to make in a test: the Llama architecture, a byte-level BPE tokenizer that
encodes any text, ChatML tokens and a chat template, safetensors. The same bytes each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
DEFAULT_SYSTEM = "You are a tiny model."
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + DEFAULT_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2's: ChatML, with a system message of its own where the conversation has none."""

VOCABULARY = 384
_CORPUS = (
    "The capital of France is Paris. What is the capital of Italy? The capital of Italy is Rome.",
    "system user assistant You are a helpful assistant. You are a tiny model.",
    "Give me one more answer, and one more question. Name a colour: red, green, blue. Count: one two three four five.",
)


def make_tiny_model(
    directory: Path, *, chat_template: bool = True, head_dim: int = 8, width: int = 32, qwen3: bool = False
) -> Path:
    """Write model and tokenizer into ``directory`` and return it.

    Args:
        directory: made where it is missing.
        head_dim: values a head; flex attention wants 16 or more.
        width: of the hidden states; 4-bit kernels want blocks of 64.
        qwen3: Qwen3's architecture instead, which norms queries and keys.
        chat_template: False makes a base model, whose tokenizer has no template and ends text by ``<|endoftext|>``.
    """
    tokenizer = _tokenizer(chat_template=chat_template)
    tokenizer.save_pretrained(directory)
    end = tokenizer.eos_token_id
    config = (Qwen3Config if qwen3 else LlamaConfig)(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = (Qwen3ForCausalLM if qwen3 else LlamaForCausalLM)(config)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=end, pad_token_id=end, max_new_tokens=16
    )
    model.save_pretrained(directory)
    return directory


def _tokenizer(*, chat_template: bool) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    text_end, start, turn_end = SPECIAL_TOKENS
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start if chat_template else text_end,
        eos_token=turn_end if chat_template else text_end,
        pad_token=text_end,
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = CHAT_TEMPLATE if chat_template else None
    return wrapped
