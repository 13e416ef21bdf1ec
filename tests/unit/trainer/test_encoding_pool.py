"""Several processes make what one makes, in the same order, and are no more than there is room for."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import row_batches
from finetune_trainer.encoding_pool import WORKER_BYTES, WORTH_BYTES, encoded_batches, processes_for
from finetune_trainer.errors import TrainerError
from finetune_trainer.row_batches import BatchEncoder, EncodedBatch, RowBatch, batched
from finetune_trainer.row_files import RawRow, raw_rows
from finetune_trainer.tokenizer import load_tokenizer
from finetune_trainer.wording import find_wording
from trainer_configs import local_model, local_source, make_config, write_rows

ROWS: list[dict[str, Any]] = [
    {"instruction": f"What is {number} and one more?", "output": f"It is {number + 1}. " * (number % 40 + 1)}
    for number in range(300)
]


@pytest.fixture
def job(tiny: Path, tmp_path: Path) -> TrainerConfig:
    rows = [*ROWS[:150], {"instruction": "Where is the answer?"}, *ROWS[150:]]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    return make_config(tmp_path, model=local_model(tiny), sources=[local_source(file)], max_length=300, on_error="skip")


def encoded(job: TrainerConfig, tiny: Path, processes: int) -> Iterator[EncodedBatch]:
    tokenizer = load_tokenizer(tiny, trust_remote_code=False)
    here = BatchEncoder(job, find_wording(job, tokenizer).encoder, [2])
    batches = batched(0, raw_rows(Path(str(job.sources[0].path))))
    return encoded_batches(job, tiny, here, batches, processes)


def test_several_processes_make_what_one_makes(job: TrainerConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_batches, "BATCH_ROWS", 7)
    alone, shared = list(encoded(job, tiny, 1)), list(encoded(job, tiny, 2))
    assert len(alone) == len(shared) == 43
    for one, other in zip(alone, shared, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.trained, other.trained)
        assert (one.rows, one.units, one.dropped, one.truncated) == (
            other.rows, other.units, other.dropped, other.truncated
        )  # fmt: skip
    dropped = [row.where for batch in shared for row in batch.dropped]
    assert "rows.jsonl:151" in dropped
    assert len(dropped) > 1


def test_the_first_fault_in_the_data_is_the_one_that_is_told(
    job: TrainerConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_batches, "BATCH_ROWS", 7)
    with Path(str(job.sources[0].path)).open("a") as file:
        file.write("{broken\n")
    with pytest.raises(
        TrainerError, match=r"sources\[0\]\.uri \(configmap://rows/rows\.jsonl\): rows\.jsonl:151: has no"
    ):
        list(encoded(job.model_copy(update={"on_error": "fail"}), tiny, 2))


def test_a_process_that_is_killed_is_told_of(job: TrainerConfig, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_batches, "BATCH_ROWS", 7)
    batches = encoded(job, tiny, 2)
    next(batches)
    for child in _workers():
        os.kill(child, signal.SIGKILL)
    with pytest.raises(TrainerError, match=r"most often because memory ran out: raise prepare\.memory") as failure:
        list(batches)
    assert failure.value.exit_code is ExitCode.TRAINER_CRASH


def _workers() -> list[int]:
    """Processes below the fork server, which is our child."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    return [pid for pid, parent in parents.items() if parents.get(parent) == os.getpid()]


def test_no_more_batches_are_read_than_are_under_way(job: TrainerConfig, tiny: Path) -> None:
    read = 0

    def rows() -> Iterator[RowBatch]:
        nonlocal read
        for raw in raw_rows(Path(str(job.sources[0].path))):
            read += 1
            yield RowBatch(0, (raw,))

    tokenizer = load_tokenizer(tiny, trust_remote_code=False)
    here = BatchEncoder(job, find_wording(job, tokenizer).encoder, [2])
    results = encoded_batches(job, tiny, here, rows(), 2)
    next(results)
    assert read <= 6
    results.close()  # type: ignore[attr-defined] # it is a generator


def test_batches_are_bounded_by_rows_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_batches, "BATCH_BYTES", 100)
    rows = [RawRow(f"a:{number}", b"x" * size) for number, size in enumerate([10, 95, 300, 1])]
    assert [[len(row.content) for row in batch.rows] for batch in batched(3, rows)] == [[10, 95], [300], [1]]
    monkeypatch.setattr(row_batches, "BATCH_ROWS", 1)
    assert [batch.source for batch in batched(3, rows)] == [3] * 4


@pytest.mark.parametrize(
    ("size", "cores", "memory", "expected"),
    [
        (WORTH_BYTES - 1, 8, 2**40, 1),
        (WORTH_BYTES, 8, 2**40, 8),
        (WORTH_BYTES, 8, 3 * WORKER_BYTES, 3),
        (WORTH_BYTES, 1, 2**40, 1),
        (WORTH_BYTES, 8, 0, 1),
    ],
)
def test_as_many_processes_as_are_worth_while(size: int, cores: int, memory: int, expected: int) -> None:
    assert processes_for(size, cores=cores, memory=memory) == expected
