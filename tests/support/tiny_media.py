"""Models that take images or sounds, small enough to make in a test, with the processors of their families; images and
sounds to train them on."""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipVisionConfig,
    WhisperFeatureExtractor,
)

_CORPUS = (
    "What is this? It is a red square. Which colour? Green, blue, white. What do you hear? A high tone, a low tone.",
    "system user assistant You are a helpful assistant. USER: ASSISTANT: model",
)
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "image_size": 28, "patch_size": 14}  # fmt: skip
RATE = 16000


def image(colour: str | tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> Image.Image:
    """One of one colour, but for a white corner."""
    drawn = Image.new("RGB", size, colour)
    drawn.paste("white", (0, 0, size[0] // 4, size[1] // 4))
    return drawn


def image_bytes(drawn: Image.Image, kind: str = "PNG") -> bytes:
    """Its file."""
    file = io.BytesIO()
    drawn.save(file, kind)
    return file.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """``content`` as rows hold it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def tone(hertz: float, seconds: float = 0.5, rate: int = RATE, channels: int = 1) -> bytes:
    """A WAV file of 16 bits."""
    samples = np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.repeat((samples * 20000).astype("<i2"), channels).tobytes())
    return file.getvalue()


def _tokenizer(special: list[str], **roles: Any) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=4096, **roles)


def _chatml(*more: str) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *more]
    return _tokenizer(special, eos_token="<|im_end|>", pad_token="<|endoftext|>", extra_special_tokens=special[1:])


def _vicuna() -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>", "<image>"]
    return _tokenizer(
        special, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>",
        extra_special_tokens=["<image>"],
    )  # fmt: skip


def _write(directory: Path, kind: type, settings: Any, processor: ProcessorMixin) -> ProcessorMixin:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(settings)
        for parameter in model.parameters():  # tiny weights of a published start hide what is seen
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return processor


def _ids(tokenizer: PreTrainedTokenizerFast, **tokens: str) -> dict[str, Any]:
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return ends | {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}


def make_qwen2_vl(directory: Path) -> ProcessorMixin:
    """Qwen2-VL."""
    return _qwen(directory, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor, mlp_ratio=2, embed_dim=16)


def make_qwen2_5_vl(directory: Path) -> ProcessorMixin:
    """Qwen2.5-VL."""
    vision = {"intermediate_size": 32, "window_size": 56, "fullatt_block_indexes": [1], "out_hidden_size": 32}
    return _qwen(
        directory, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor,
        **(vision | {"hidden_size": 16}),
    )  # fmt: skip


def _qwen(directory: Path, settings: Any, kind: Any, processor: Any, **vision: Any) -> ProcessorMixin:
    tokenizer = _chatml("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    sees = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2,
            "temporal_patch_size": 2} | vision  # fmt: skip
    ids = _ids(
        tokenizer, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
        vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>",
    )  # fmt: skip
    ends = {name: ids.pop(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**_TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope, **ends}
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    made = processor(Qwen2VLImageProcessor(size=size), tokenizer, Qwen2VLVideoProcessor(size=size))
    return _write(directory, kind, settings(text_config=text, vision_config=sees, **ids), made)


def make_llava(directory: Path) -> ProcessorMixin:
    """LLaVA 1.5."""
    tokenizer = _vicuna()
    shape = {"height": 28, "width": 28}
    pixels = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=shape)
    made = LlavaProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    text = LlamaConfig(vocab_size=len(tokenizer), **_TEXT, **_ids(tokenizer))
    ids = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>")}
    settings = LlavaConfig(text_config=text, vision_config=CLIPVisionConfig(**_CLIP), **ids)
    return _write(directory, LlavaForConditionalGeneration, settings, made)


def make_llava_next(directory: Path) -> ProcessorMixin:
    """LLaVA-NeXT with Vicuna."""
    tokenizer = _vicuna()
    grid = [[28, 56], [56, 28], [56, 56]]
    pixels = LlavaNextImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grid
    )
    made = LlavaNextProcessor(
        pixels, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    text = LlamaConfig(vocab_size=len(tokenizer), **_TEXT, **_ids(tokenizer))
    ids = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>"), "image_grid_pinpoints": grid}
    settings = LlavaNextConfig(text_config=text, vision_config=CLIPVisionConfig(**_CLIP), **ids)
    return _write(directory, LlavaNextForConditionalGeneration, settings, made)


def make_gemma3(directory: Path) -> ProcessorMixin:
    """Gemma 3."""
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>",
               "<image_soft_token>"]  # fmt: skip
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = _tokenizer(
        special, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        extra_special_tokens=named | {"start_token": "<start_of_turn>", "end_token": "<end_of_turn>"},
    )  # fmt: skip
    pixels = Gemma3ImageProcessor(size={"height": 28, "width": 28})
    made = Gemma3Processor(pixels, tokenizer, image_seq_length=4)
    ids = _ids(
        tokenizer, image_token_index="<image_soft_token>", boi_token_index="<start_of_image>",
        eoi_token_index="<end_of_image>",
    )  # fmt: skip
    text = {**_TEXT, "head_dim": 8, "vocab_size": len(tokenizer), "sliding_window": 64} | {
        name: ids.pop(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    sees = SiglipVisionConfig(**_CLIP)
    settings = Gemma3Config(text_config=text, vision_config=sees.to_dict(), mm_tokens_per_image=4, **ids)
    return _write(directory, Gemma3ForConditionalGeneration, settings, made)


def make_qwen2_audio(directory: Path) -> ProcessorMixin:
    """Qwen2-Audio, which hears two seconds."""
    tokenizer = _chatml("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    made = Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=16, chunk_length=2, sampling_rate=RATE),
        tokenizer,
        chat_template="{{ '' }}",
    )
    hears = {"model_type": "qwen2_audio_encoder", "num_mel_bins": 16, "encoder_layers": 2, "encoder_attention_heads": 2,
             "encoder_ffn_dim": 32, "d_model": 16, "max_source_positions": 100}  # fmt: skip
    text = {"model_type": "qwen2", **_TEXT, "vocab_size": len(tokenizer), **_ids(tokenizer)}
    ids = {"audio_token_index": tokenizer.convert_tokens_to_ids("<|AUDIO|>")}
    settings = Qwen2AudioConfig(audio_config=hears, text_config=text, **ids)
    return _write(directory, Qwen2AudioForConditionalGeneration, settings, made)


MAKERS: dict[str, Callable[[Path], ProcessorMixin]] = {
    "qwen2_vl": make_qwen2_vl,
    "qwen2_5_vl": make_qwen2_5_vl,
    "llava": make_llava,
    "llava_next": make_llava_next,
    "gemma3": make_gemma3,
    "qwen2_audio": make_qwen2_audio,
}
"""By model type."""
TEMPLATES = {"qwen2_5_vl": "qwen2_vl"}
"""Names of the built-in templates that are not the model type's."""
