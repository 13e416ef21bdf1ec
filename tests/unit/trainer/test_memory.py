"""Memory in prepare and train: an estimate in the report, a micro-batch by the device, a refusal before the model is
loaded, and the peak of a real training."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import memory
from finetune_trainer import train as training
from finetune_trainer.errors import TrainerError
from finetune_trainer.interruption import Interruption
from finetune_trainer.loop import FineTuner
from finetune_trainer.memory import device_memory, fit_to_device, memory_limit
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from finetune_trainer.train import train
from live_memory import LiveTensors
from trainer_configs import write_rows
from trainings import configure, run
from transformers import LlamaConfig, LlamaForCausalLM

MIB = 2**20
AUTO = {"maxSteps": 2, "globalBatchSize": 8, "microBatchSize": "auto"}


@pytest.fixture
def device_has(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the memory of the device that is found."""

    def set_to(count: int) -> None:
        monkeypatch.setattr(memory, "device_memory", lambda _device: count)

    return set_to


@pytest.fixture
def odd(tmp_path: Path, tiny: Path) -> Path:
    """A model that can be trained and whose config tells of a build that is not estimated."""
    directory = tmp_path / "odd"
    shutil.copytree(tiny, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "kv_lora_rank": 8}))
    return directory


def test_prepare_reports_the_estimate_for_the_longest_sequence_there_is(tmp_path: Path, tiny: Path) -> None:
    report = prepare(configure(tmp_path, tiny, maxLength=256))
    allowed = prepare(configure(tmp_path, tiny, maxLength=4096))
    assert report.memory is not None
    assert report.memory.estimate is not None
    assert report.memory.estimate.micro_batch_size == 2
    assert report.memory == allowed.memory  # the data is as short as before
    packed = prepare(configure(tmp_path, tiny, maxLength=4096, packing=True))
    assert packed.memory is not None
    assert packed.memory.estimate is not None
    assert packed.memory.estimate.activations > 4 * report.memory.estimate.activations


def test_prepare_tells_on_how_few_gpus_of_a_size_the_job_fits(
    tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        prepare(configure(tmp_path, tiny))
    (line,) = [record.getMessage() for record in caplog.records if "GPUs that hold" in record.getMessage()]
    assert line.startswith("GPUs that hold the job: 1 (ddp, micro-batch 2) of 24Gi, 1 (ddp,")
    assert line.endswith("of 80Gi")


def test_a_build_that_is_not_known_is_not_estimated_and_the_log_says_so(
    tmp_path: Path, odd: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        report = prepare(configure(tmp_path, odd))
    assert report.memory is None
    assert "memory is not estimated" in caplog.text
    assert "kv_lora_rank" in caplog.text


def test_a_config_that_belongs_to_other_weights_is_not_believed(
    tmp_path: Path, tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert memory.read_shape(tiny, configure(tmp_path, tiny).method, 10**9) is None
    assert "the weights have 1,000,000,000" in caplog.text


def test_auto_without_an_estimate_is_refused_before_rows_are_read(tmp_path: Path, odd: Path) -> None:
    config = configure(tmp_path, odd, hyperparameters=AUTO)
    with pytest.raises(TrainerError, match="give a number") as raised:
        prepare(config)
    assert raised.value.exit_code is ExitCode.CONFIG_INVALID
    assert not (Path(config.paths.cache) / "prepared").exists()


@pytest.mark.parametrize(("room", "micro"), [(2**40, 8), (1, 1)], ids=["much", "none"])
def test_auto_takes_what_the_device_holds_and_reports_it(
    tmp_path: Path, tiny: Path, device_has: Any, room: int, micro: int
) -> None:
    device_has(room)
    report = run(configure(tmp_path, tiny, hyperparameters=AUTO))
    assert report.memory is not None
    assert report.memory.micro_batch_size == micro
    assert report.memory.estimate is not None
    assert report.memory.estimate.micro_batch_size == micro
    assert report.memory.measured
    assert report.progress is not None
    assert report.progress.step == 2


def fitted(tmp_path: Path, base: Path, **edits: Any) -> tuple[TrainerConfig, Any]:
    config = configure(tmp_path, base, **edits)
    prepare(config)
    return config, load_prepared(config)


def test_a_gpu_that_is_clearly_too_small_is_said_before_the_model_is_loaded(
    tmp_path: Path, tiny: Path, device_has: Any
) -> None:
    config, prepared = fitted(tmp_path, tiny)
    told = fit_to_device(config, prepared, torch.device("cpu"))[1].estimate
    assert told is not None
    device_has(int(told.total / 1.2))
    with pytest.raises(TrainerError, match="weights") as raised:
        fit_to_device(config, prepared, torch.device("cuda"))
    assert raised.value.exit_code is ExitCode.CUDA_OUT_OF_MEMORY
    for wanted in (
        "microBatchSize, down to 1",
        "gradientCheckpointing",
        "quantization.bits: 4",
        "activations",
    ):
        assert wanted in str(raised.value)
    device_has(int(told.total / 1.05))  # within what an estimate may be wrong by
    assert fit_to_device(config, prepared, torch.device("cuda"))[0] == config


def test_an_allocation_that_fails_tells_of_the_parts(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_arguments: Any, **_options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has less.")

    monkeypatch.setattr(FineTuner, "train", full)
    config = configure(tmp_path, tiny, hyperparameters=AUTO)
    known: dict[str, object] = {}
    prepare(config)
    with pytest.raises(TrainerError, match="microBatchSize 8: CUDA out of memory") as raised:
        train(config, attempt=1, interrupted=Interruption(), known=known)
    assert raised.value.exit_code is ExitCode.CUDA_OUT_OF_MEMORY
    assert "activations" in str(raised.value)
    assert "gradientCheckpointing" in str(raised.value)
    assert known["memory"]


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"memory.max": "8589934592\n"}, 8589934592),
        ({"memory.max": "max\n"}, None),
        ({"memory/memory.limit_in_bytes": "4294967296\n"}, 4294967296),
        ({"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ({}, None),
    ],
)
def test_the_limit_of_a_container(tmp_path: Path, files: dict[str, str], limit: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == limit
    whole = device_memory(torch.device("cpu"), tmp_path / "nowhere")
    found = device_memory(torch.device("cpu"), tmp_path)
    assert found == (whole if limit is None else min(whole, limit - 2**30))


# -- the peak of a real training ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A model of which weights, activations and logits are all a part that counts."""
    directory = tmp_path_factory.mktemp("models") / "small"
    shutil.copytree(tiny, directory)
    config = LlamaConfig.from_pretrained(tiny)
    config.update({"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 8,
                   "num_key_value_heads": 4, "head_dim": 16, "vocab_size": 1024})  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


LONG_ROWS = [{"instruction": f"Row {n:02}?", "output": "red and green " * (24 + n % 2)} for n in range(12)]
"""Of nearly one length, so that a batch is as long as the longest, and padded."""
PEAKS: dict[str, dict[str, Any]] = {
    "full": {"method": {"full": {}}},
    "full-checkpointing": {"method": {"full": {}}, "acceleration": {"gradientCheckpointing": True}},
    "full-accumulated": {"method": {"full": {}}, "hyperparameters": {"globalBatchSize": 2, "microBatchSize": 1}},
    "full-padded": {"method": {"full": {}}, "hyperparameters": {"globalBatchSize": 2, "microBatchSize": 2}},
    "full-bf16": {"method": {"full": {}}, "precision": "bf16"},
    "lora": {"precision": "bf16"},
    "lora-checkpointing": {"precision": "bf16", "acceleration": {"gradientCheckpointing": True}},
    "lora-attention-kept": {
        "precision": "bf16",
        "acceleration": {"gradientCheckpointing": True, "keepAttention": True},
    },
    "freeze": {"method": {"freeze": {"trainableLayers": 2}}},
}


@pytest.mark.parametrize("name", PEAKS)
def test_the_estimate_is_the_peak_of_live_tensors(tmp_path: Path, base: Path, name: str) -> None:
    edits = {"validation": {"fraction": 0.0}} | PEAKS[name]
    numbers = {"maxSteps": 3, "globalBatchSize": 1, "microBatchSize": 1} | edits.pop("hyperparameters", {})
    config = configure(tmp_path, base, hyperparameters=numbers, **edits)
    write_rows(Path(str(config.sources[0].path)), LONG_ROWS)
    report = prepare(config)
    assert report.memory is not None
    assert report.memory.estimate is not None
    with LiveTensors() as live:
        train(config, attempt=1, interrupted=Interruption(), known={})
    assert report.memory.estimate.total == pytest.approx(live.peak, rel=0.1)


def test_the_attempt_passes_the_estimate_on(tmp_path: Path, tiny: Path) -> None:
    report = run(configure(tmp_path, tiny))
    assert report.memory is not None
    assert report.memory.micro_batch_size is None  # it was said
    assert report.memory.estimate is not None
    assert training.RESULT in {path.name for path in Path(configure(tmp_path, tiny).paths.output).iterdir()}
