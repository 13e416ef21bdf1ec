"""Batches encoded by several processes, given back in their order: the result is that of one process.

No more batches are under way than a few a process, so that memory does not grow with the data.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from finetune_api.failures import ExitCode
from finetune_api.trainer_config import TrainerConfig

from finetune_trainer.errors import TrainerError
from finetune_trainer.log import log
from finetune_trainer.row_batches import BatchEncoder, EncodedBatch, RowBatch, encode_in_worker, start_worker
from finetune_trainer.surroundings import threads

WORTH_BYTES = 32 * 2**20
"""Data of less are tokenized before a second process has started."""
WORKER_BYTES = 700 * 2**20
"""Memory that a process takes, with the libraries that the tokenizer needs."""
_UNDER_WAY = 3


def processes_for(data_bytes: int, *, cores: int | None = None, memory: int | None = None) -> int:
    """How many processes are worth while for ``data_bytes``.

    Args:
        data_bytes: of all files.
        cores: processors; those that are to be had unless given.
        memory: bytes; those that are free unless given.
    """
    if data_bytes < WORTH_BYTES:
        return 1
    room = (memory if memory is not None else _free_memory()) // WORKER_BYTES
    return max(1, min(cores if cores is not None else threads(os.environ), room))


def encoded_batches(
    config: TrainerConfig, tokenizer_directory: Path, here: BatchEncoder, batches: Iterable[RowBatch], processes: int
) -> Iterator[EncodedBatch]:
    """``batches``, encoded, in their order.

    Args:
        config: the job's.
        tokenizer_directory: from which further processes load the tokenizer.
        here: this process's own encoder, where it is the only one.
        batches: read as they are needed.
        processes: how many.

    Raises:
        TrainerError: as :meth:`BatchEncoder.encode`, of the first batch at fault.
    """
    if processes == 1:
        yield from map(here.encode, batches)
        return
    log.info("tokenizing in %d processes", processes)
    # A server that has the libraries is forked from: they are loaded once, and no thread of ours is copied.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetune_trainer.row_batches", "finetune_trainer.wording"])
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process is one processor's
    pool = ProcessPoolExecutor(
        processes,
        context,
        initializer=start_worker,
        initargs=(config.to_json(), str(tokenizer_directory), tuple(here.stops)),
    )
    try:
        yield from _in_order(pool, batches, processes * _UNDER_WAY)
    except BrokenProcessPool as error:
        raise TrainerError(
            ExitCode.TRAINER_CRASH,
            "a process that tokenizes was ended from outside, most often because memory ran out: raise prepare.memory "
            "in the profile",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        if before is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def _in_order(pool: ProcessPoolExecutor, batches: Iterable[RowBatch], most: int) -> Iterator[EncodedBatch]:
    under_way: deque[Future[EncodedBatch]] = deque()
    for batch in batches:
        under_way.append(pool.submit(encode_in_worker, batch))
        if len(under_way) >= most:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _free_memory() -> int:
    """Bytes that the machine has free and that the cgroup still allows."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(facts["MemAvailable"].removesuffix("kB")) * 1024
    except (OSError, KeyError, ValueError):
        log.debug("no word of the memory that is free; all of it is counted")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return free
    return free if limit == "max" else min(free, int(limit) - used)
