"""What speed is measured on: models of random weights in real shapes, and prepared data of random tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROWS = 96
"""Of supervised tokens alone."""

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-8b": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1024, "tie_word_embeddings": True,
    },
}  # fmt: skip


def has_cuda() -> bool:
    """Whether there is a GPU."""
    import torch  # noqa: PLC0415

    return torch.cuda.is_available()


def make_model(directory: Path, shape: str) -> None:
    """Random weights in bf16 with a tokenizer of a few words, as a model on a claim would lie."""
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer, models  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM  # noqa: PLC0415

    if (directory / "config.json").exists():
        return
    torch.manual_seed(0)
    settings = Qwen3Config(**SHAPES[shape], max_position_embeddings=40960, dtype="bfloat16")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen3ForCausalLM(settings)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(directory)
    words = Tokenizer(models.WordLevel({"<end>": 0, "a": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>").save_pretrained(directory)


def set_name(kind: str, length: int, instructions: Path | None) -> str:
    """Of a folder for what is made of these samples."""
    return f"{kind}-{length}-{instructions.stem if instructions else 'random'}"


def samples(
    kind: str, length: int, vocabulary: int, instructions: Path | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids of each sample, and which of them are supervised."""
    random = np.random.default_rng(0)
    if kind == "rows":
        for _ in range(ROWS):
            yield random.integers(2, vocabulary, length), np.arange(length) >= 1
    elif instructions is not None:
        found = np.load(instructions)
        borders = np.cumsum(found["lengths"])[:-1]
        for ids, trained in zip(np.split(found["ids"], borders), np.split(found["trained"], borders), strict=True):
            yield ids[:length].astype(np.int64) % vocabulary, trained[:length]
    else:
        for size in np.clip(random.lognormal(5.6, 0.8, 3000), 24, length).astype(int).tolist():
            yield random.integers(2, vocabulary, size), np.arange(size) >= max(1, int(random.uniform(0.2, 0.7) * size))


def make_data(
    config: Any, model: Path, kind: str, length: int, *, vocabulary: int, instructions: Path | None = None
) -> None:
    """Prepared data: `rows` of ``length`` supervised tokens, or packed instructions of which answers are supervised:
    those of a file that instructions.py made, else random ones of the usual spread."""
    from finetune_api.status import DatasetStatus, ModelStatus  # noqa: PLC0415
    from finetune_trainer.packing import one_each, pack  # noqa: PLC0415
    from finetune_trainer.prepared import new_store, prepared_directory, write_handover  # noqa: PLC0415

    directory = prepared_directory(config, f"bench-{set_name(kind, length, instructions)}")
    with new_store(directory, vocabulary=vocabulary) as writer:
        for row, (ids, trained) in enumerate(samples(kind, length, vocabulary, instructions), start=1):
            writer.extend(ids, trained, [len(ids)], desirable=[], rows=[row])
        every = np.arange(len(writer.lengths))
        train = one_each(every) if kind == "rows" else pack(every, writer.lengths, length, seed=0)
        status = DatasetStatus(samples=len(every), sequences=len(train))
        writer.finish(
            train, one_each(every[:0]), {"dataset": status.to_dict(), "highestToken": vocabulary - 1, "longest": length}
        )
    handover = {
        "digest": directory.name,
        "dataset": status.to_dict(),
        "model": ModelStatus(digest="0").to_dict(),
        "chatTemplate": "",
        "stopTokenIds": [0],
        "replaceEos": False,
        "eosToken": "<end>",
    }
    Path(config.paths.output).mkdir(parents=True, exist_ok=True)
    write_handover(config, handover, model)
