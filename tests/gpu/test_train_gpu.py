"""The trainer on a CUDA GPU: what the CPU tests show of the logic, shown here of the device."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import pytest
import torch
from finetune_api.failures import ExitCode
from finetune_trainer.batches import Collator
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate import check_packing, evaluating, token_losses
from finetune_trainer.model import load_model
from finetune_trainer.prepare import prepare
from finetune_trainer.prepared import load_prepared
from tiny_model import make_tiny_model
from trainings import configure, output_of, run


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize(
    "method",
    [{"lora": {"rank": 4}}, {"lora": {"rank": 4, "dora": True}}, {"freeze": {"trainableLayers": 1}}, {"full": {}}],
    ids=["lora", "dora", "freeze", "full"],
)
@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("packing", [False, True], ids=["plain", "packed"])
def test_it_learns(tmp_path: Path, base: Path, method: dict[str, object], precision: str, packing: bool) -> None:
    config = configure(
        tmp_path,
        base,
        method=method,
        precision=precision,
        packing=packing,
        hyperparameters={"maxSteps": 30},
        distributed={"gpusPerNode": 1},
    )
    report = run(config)
    assert report.progress is not None
    assert report.progress.eval_loss is not None
    assert report.progress.eval_loss < (report.progress.initial_eval_loss or 0) - 0.1
    assert report.acceleration is not None
    assert report.acceleration.device == torch.cuda.get_device_name()
    assert 0 < (report.progress.peak_memory_bytes or 0) < 2**32


def test_merged_weights_say_what_the_adapter_says(tmp_path: Path, base: Path) -> None:
    config = configure(tmp_path, base, precision="bf16", merge={"dtype": "bf16"}, distributed={"gpusPerNode": 1})
    report = run(config)
    assert report.output is not None
    assert (output_of(config, "merged") / "model.safetensors").exists()


def test_losses_are_those_of_the_cpu(tmp_path: Path, base: Path) -> None:
    config = configure(tmp_path, base)
    prepare(config)
    found = []
    for device in ("cpu", "cuda"):
        model = load_model(config, base, torch.device(device)).model
        with evaluating(model, "fp32"):
            sequence = load_prepared(config).train[0]
            found.append(token_losses(model, Collator(0, packed=False)([sequence])).cpu())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_packed_samples_keep_apart(tmp_path: Path, base: Path) -> None:
    config = configure(tmp_path, base, packing=True, precision="bf16", distributed={"gpusPerNode": 1})
    prepare(config)
    model = load_model(config, base, torch.device("cuda")).model
    check_packing(model, load_prepared(config).train, Collator(0, packed=True), config)


def filled() -> list[torch.Tensor]:
    """Tensors that fill what the allocator has room for without asking the device."""
    tensors = []
    for size in (2**power for power in range(30, 8, -1)):
        with contextlib.suppress(torch.OutOfMemoryError):
            while True:
                tensors.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    return tensors


def test_an_allocation_that_does_not_fit_says_what_to_lower(tmp_path: Path, base: Path) -> None:
    config = configure(tmp_path, base, distributed={"gpusPerNode": 1})
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    fillers = filled()
    try:
        with pytest.raises(TrainerError, match="microBatchSize") as raised:
            run(config)
    finally:
        fillers.clear()
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert raised.value.exit_code is ExitCode.CUDA_OUT_OF_MEMORY
