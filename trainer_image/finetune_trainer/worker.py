"""One process of several: the launcher starts it, it trains as its rank, and leaves its report with the launcher."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from finetune_api.failures import ExitCode

from finetune_trainer import cli
from finetune_trainer import log as logs
from finetune_trainer.interruption import Interruption
from finetune_trainer.peers import DIRECTORY_ENV, Peers, die_with_parent


def main(arguments: list[str] | None = None) -> None:
    """Entry point; never returns."""
    parser = argparse.ArgumentParser(prog="finetune-train worker", description="One rank of a training.")
    parser.add_argument("--config", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    die_with_parent()
    rank = int(os.environ["RANK"])
    logs.set_up(rank)
    interrupted = Interruption()
    interrupted.listen()
    peers = Peers(Path(os.environ[DIRECTORY_ENV]))
    if peers.enter(rank):
        interrupted.tell()
    report = cli.run("train", chosen.config, interrupted)
    if report.message:  # the launcher says it, once for the node
        report = report.model_copy(update={"log_tail": report.log_tail or logs.tail(), "rank": rank})
    peers.leave(rank, report)
    sys.stdout.flush()
    sys.stderr.flush()
    if report.exit_code == ExitCode.OK:
        _part()
    # Not sys.exit: what torch and NCCL do at the end of a process waits for peers that may be gone.
    os._exit(report.exit_code)


def _part() -> None:
    """Take leave of the peers, which NCCL complains of otherwise."""
    from torch import distributed  # noqa: PLC0415 - imported by now, where it was needed

    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
