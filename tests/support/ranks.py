"""Trainings by several processes: forks of this one, which has imported everything, as ranks of one world.

Below the launcher it is the code of a pod: :func:`finetune_trainer.worker.main` in each process, gloo between them.
"""

from __future__ import annotations

import os
import secrets
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import deepspeed  # noqa: F401 - imported once, before any fork
import torch
from finetune_api.reports import TerminationReport
from finetune_api.trainer_config import TrainerConfig
from finetune_trainer import launch, worker
from finetune_trainer.peers import DIRECTORY_ENV, Peers, verdict
from finetune_trainer.prepare import prepare
from finetune_trainer.train import train  # noqa: F401 - as above

# autograd starts its threads at the first backward pass, for each kind of device that there is. Fake tensors, which the
# compiler uses, bring GPUs that are not there; threads for these would forbid forks. So it starts now.
torch.ones(1, requires_grad=True).sum().backward()


def fork(work: Callable[[], object], log: Path, environment: dict[str, str]) -> int:
    """Do ``work`` in a fork of this process, whose output goes to ``log``; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        with log.open("w", buffering=1) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            sys.stdout = sys.stderr = output
            os.environ |= environment
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            work()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:  # noqa: BLE001 - pytest must not go on in a fork
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Exit code; negative: the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_ranks(config: TrainerConfig, directory: Path, size: int = 2) -> TerminationReport:
    """Prepare, and train in ``size`` processes; what the launcher of one node would say."""
    prepare(config)
    place = directory / f"ranks-{secrets.token_hex(4)}"
    place.mkdir(parents=True)
    (place / "config.json").write_text(config.to_json())
    shared = {
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": launch.find_place(
            config.model_copy(update={"distributed": type(config.distributed)()}), {}
        ).coordinator.rpartition(":")[2],
        "DS_ACCELERATOR": "cpu",
        DIRECTORY_ENV: str(place),
    }
    started = {
        rank: fork(
            lambda: worker.main(["--config", str(place / "config.json")]),
            place / f"{rank}.log",
            {**shared, "RANK": str(rank)},
        )
        for rank in range(size)
    }
    exits = {rank: wait(pid) for rank, pid in started.items()}
    ended = Peers(place).ended({rank: (code, 0.0) for rank, code in exits.items() if code})
    report = verdict(ended, told=False)
    if report.exit_code:
        for rank in range(size):
            print(f"--- rank {rank}\n{(place / f'{rank}.log').read_text()}")  # noqa: T201 - pytest shows it on a failure
    return report
