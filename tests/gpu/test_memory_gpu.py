"""The estimate against what a CUDA GPU measures, on a model large enough that its parts outweigh the workspaces."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_trainer import memory
from finetune_trainer.errors import TrainerError
from finetune_trainer.interruption import Interruption
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from finetune_trainer.train import train
from tiny_model import make_tiny_model
from trainings import configure, rows
from transformers import LlamaConfig, LlamaForCausalLM

# Dynamo warns within itself and hides that, which a warning that is an error escapes.
pytestmark = pytest.mark.filterwarnings("default::UserWarning")
GIB = 2**30


@pytest.fixture(scope="session")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 220 million random parameters, a vocabulary as real models have it, and the tiny model's tokenizer."""
    directory = make_tiny_model(tmp_path_factory.mktemp("model") / "large")
    config = LlamaConfig.from_pretrained(directory)
    config.update({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 10, "num_attention_heads": 16,
                   "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 50_000})  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def _no_graphs() -> None:
    """Graphs of tests before count as this one's, and after eight of them there are no more."""
    torch._dynamo.reset()


KEPT = {"gradientCheckpointing": True, "keepAttention": True}
CASES: dict[str, dict[str, Any]] = {
    "full": {"method": {"full": {}}},
    "full-checkpointing": {"method": {"full": {}}, "acceleration": {"gradientCheckpointing": True}},
    "full-accumulated": {"method": {"full": {}}, "hyperparameters": {"globalBatchSize": 4, "microBatchSize": 2}},
    "full-fp32": {"method": {"full": {}}, "precision": "fp32"},
    "lora": {"method": {"lora": {"rank": 16}}},
    "lora-checkpointing": {"method": {"lora": {"rank": 16}}, "acceleration": {"gradientCheckpointing": True}},
    "lora-attention-kept": {"method": {"lora": {"rank": 16}}, "acceleration": KEPT},
    "lora-attention-kept-compiled": {"method": {"lora": {"rank": 16}}, "acceleration": {"compile": True, **KEPT}},
    "full-attention-kept": {"method": {"full": {}}, "acceleration": KEPT},
    "lora-dropout": {"method": {"lora": {"rank": 16, "dropout": 0.1}}},
    "qlora": {"method": {"lora": {"rank": 16}}, "quantization": {"bits": 4}},
    "qlora-checkpointing": {
        "method": {"lora": {"rank": 16}},
        "quantization": {"bits": 4},
        "acceleration": {"gradientCheckpointing": True},
    },
    "lora-separate": {"method": {"lora": {"rank": 16}}, "acceleration": {"fusedAdapters": False}},
    "lora-compiled": {"method": {"lora": {"rank": 16}}, "acceleration": {"compile": True}},
    "lora-compiled-offload": {
        "method": {"lora": {"rank": 16}},
        "acceleration": {"compile": True, "gradientCheckpointing": True, "activationOffload": True},
    },
    "qlora-compiled": {
        "method": {"lora": {"rank": 16}},
        "quantization": {"bits": 4},
        "acceleration": {"compile": True},
    },
    "full-compiled": {"method": {"full": {}}, "acceleration": {"compile": True}},
    "eight-bits": {"method": {"lora": {"rank": 16}}, "quantization": {"bits": 8}},
}


def packed(tmp_path: Path, base: Path, **edits: Any) -> Any:
    """A job whose sequences are as long as they may be: 2,048 tokens, two of them a micro-batch."""
    numbers = {"maxSteps": 2, "globalBatchSize": 2, "microBatchSize": 2} | edits.pop("hyperparameters", {})
    fields = {"precision": "bf16", "packing": True, "maxLength": 2048, "validation": {"fraction": 0.0},
              "distributed": {"gpusPerNode": 1}} | edits  # fmt: skip
    config = configure(tmp_path, base, hyperparameters=numbers, **fields)
    Path(str(config.sources[0].path)).write_text(rows(400))
    return config


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_within_a_tenth_of_the_peak(tmp_path: Path, large: Path, name: str) -> None:
    config = packed(tmp_path, large, **CASES[name])
    told = prepare(config).memory
    assert told is not None
    assert told.estimate is not None
    sequences = load_prepared(config).train
    lengths = sorted(len(sequences[i].input_ids) for i in range(len(sequences)))
    assert lengths[1] > 1950  # packed to the brim, as the estimate takes it; the last one may not be
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    report = train(config, attempt=1, interrupted=Interruption(), known={})
    shutil.rmtree(config.paths.output)
    assert report.memory is not None
    assert report.memory.measured == pytest.approx(told.estimate.total, rel=0.1)


def test_auto_fills_the_gpu_that_is_there_and_no_more(
    tmp_path: Path, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device_memory", lambda _device: 12 * GIB)
    config = packed(tmp_path, large, hyperparameters={"globalBatchSize": 64, "microBatchSize": "auto"})
    prepare(config)
    torch.cuda.reset_peak_memory_stats()
    report = train(config, attempt=1, interrupted=Interruption(), known={})
    assert report.memory is not None
    assert report.memory.micro_batch_size is not None
    assert report.memory.micro_batch_size > 1
    assert (report.memory.measured or 0) < 12 * GIB


def test_a_job_that_is_far_too_large_ends_before_its_model_is_loaded(tmp_path: Path, large: Path) -> None:
    config = packed(tmp_path, large, method={"full": {}}, maxLength=1_048_576)
    prepare(config)
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    with pytest.raises(TrainerError, match="gradientCheckpointing") as raised:
        train(config, attempt=1, interrupted=Interruption(), known={})
    assert raised.value.exit_code is ExitCode.CUDA_OUT_OF_MEMORY
    assert torch.cuda.memory_allocated() == before
