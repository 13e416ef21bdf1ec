"""``train`` on several devices: this process starts one worker a device by torch's elastic launcher, passes on the
word to end, and says how it went.

Nothing is restarted here: the ranks of an attempt live and die together, and the operator starts the next attempt.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.failures import ExitCode
from finetune_api.reports import TerminationReport
from finetune_api.trainer_config import ATTEMPT_ENV, COORDINATOR_ENV, NODE_RANK_ENV, TrainerConfig

from finetune_trainer.errors import TrainerError
from finetune_trainer.interruption import Interruption
from finetune_trainer.log import log
from finetune_trainer.peers import DIRECTORY_ENV, Peers, verdict
from finetune_trainer.strategy import choose, processes, processes_per_node

RENDEZVOUS_SECONDS = 900
"""Longest wait for the other nodes: their images may still be pulled."""
_STOP_SECONDS = 15
"""A worker that waits for a dead peer hears no SIGTERM; it is killed after this."""
_ASK_AGAIN = 0.5
"""Seconds between two questions to the name server, which cannot be told to call back."""
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Place:
    """This node among all."""

    node: int
    coordinator: str
    """`host:port` where the processes meet."""


def needed(config: TrainerConfig) -> bool:
    """Whether ``config`` runs in workers: on several devices, or on one under DeepSpeed or FSDP2."""
    return processes(config) > 1 or choose(config).name != "none"


def find_place(config: TrainerConfig, environment: dict[str, str]) -> Place:
    """This node's place, from the environment.

    Raises:
        TrainerError: CONFIG_INVALID.
    """
    nodes = config.distributed.nodes
    node, coordinator = environment.get(NODE_RANK_ENV), environment.get(COORDINATOR_ENV)
    if nodes == 1 and coordinator is None:
        return Place(0, f"{_LOOPBACK}:{_free_port()}")
    if node is None or not node.isdigit() or int(node) >= nodes:
        raise TrainerError(
            ExitCode.CONFIG_INVALID, f"{NODE_RANK_ENV} must be 0 to {nodes - 1} for {nodes} nodes, not {node!r}"
        )
    host, _, port = (coordinator or "").rpartition(":")
    if not host or not port.isdigit():
        raise TrainerError(
            ExitCode.CONFIG_INVALID, f"{COORDINATOR_ENV} must be host:port on node 0, not {coordinator!r}"
        )
    return Place(int(node), f"{host}:{port}")


def launch(config: TrainerConfig, path: Path, interrupted: Interruption) -> TerminationReport:
    """Run the workers of this node to their end.

    Args:
        config: the job's.
        path: the file that it came from; workers read it again.
        interrupted: of this process; it is passed on.

    Raises:
        TrainerError: CONFIG_INVALID; COLLECTIVE_TIMEOUT where the nodes did not find each other.
    """
    place = find_place(config, dict(os.environ))
    await_name(place.coordinator.rpartition(":")[0], RENDEZVOUS_SECONDS)
    local = processes_per_node(config)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    os.environ["OMP_NUM_THREADS"] = str(max(1, threads // local))
    if config.distributed.gpus_per_node == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory(prefix="finetune-peers-") as directory:
        peers = Peers(Path(directory))
        os.environ[DIRECTORY_ENV] = directory
        interrupted.defer(deferred=True)
        interrupted.pass_on(peers.tell)
        log.info("starting %d processes, node %d of %d, meeting at %s", local, place.node, config.distributed.nodes,
                 place.coordinator)  # fmt: skip
        try:
            exits = _run(config, place, local, path)
        finally:
            del os.environ[DIRECTORY_ENV]
        return _told(peers, exits, interrupted)


def await_name(host: str, seconds: float) -> None:
    """Wait until ``host`` has an address: node 0's pod may have none yet.

    Raises:
        TrainerError: COLLECTIVE_TIMEOUT.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.getaddrinfo(host, None)
        except socket.gaierror as error:
            if time.monotonic() > deadline:
                raise TrainerError(
                    ExitCode.COLLECTIVE_TIMEOUT,
                    f"node 0 has no address by its name {host} after {seconds:.0f} s ({error.strerror}): its pod did "
                    "not start, or the cluster's DNS does not serve headless Services",
                ) from error
            time.sleep(_ASK_AGAIN)
        else:
            return


def _told(peers: Peers, exits: dict[int, tuple[int, float]], interrupted: Interruption) -> TerminationReport:
    ended = peers.ended(exits)
    if not ended:
        return TerminationReport(step="train", exit_code=ExitCode.TRAINER_CRASH, message="no process left word")
    return verdict(ended, told=interrupted.told)


def _run(config: TrainerConfig, place: Place, local: int, path: Path) -> dict[int, tuple[int, float]]:
    """Exit code and time of each process that failed, by rank."""
    # Late: a second of imports that a job on one device can do without.
    from torch.distributed import DistError  # noqa: PLC0415
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # noqa: PLC0415
    from torch.distributed.elastic.rendezvous.api import RendezvousError  # noqa: PLC0415
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch  # noqa: PLC0415

    # It tells of every exit code at length; the reports say more.
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    nodes = config.distributed.nodes
    settings: dict[str, Any] = {"rank": place.node, "timeout": RENDEZVOUS_SECONDS}
    elastic = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=local,
        run_id=f"{config.job.namespace}.{config.job.name}.{os.environ.get(ATTEMPT_ENV, '1')}",
        role="train",
        rdzv_backend="static",  # ranks follow from the node's number, so rank 0 is on node 0
        rdzv_endpoint=place.coordinator,
        rdzv_configs=settings,
        max_restarts=0,
        monitor_interval=0.2,
        signals_to_handle="SIGQUIT",  # the rest is ours: torch would kill the workers before they have saved
        **({"shutdown_timeout": _STOP_SECONDS} if "shutdown_timeout" in LaunchConfig.__dataclass_fields__ else {}),
    )
    command = ("-m", "finetune_trainer.worker", "--config", str(path))
    try:
        elastic_launch(elastic, sys.executable)(*command)
    except ChildFailedError as error:
        now = time.time()
        return {
            rank: (failure.exitcode, min(float(failure.timestamp), now)) for rank, failure in error.failures.items()
        }
    except (RendezvousError, DistError, TimeoutError) as error:
        raise TrainerError(
            ExitCode.COLLECTIVE_TIMEOUT,
            f"the {nodes} nodes did not meet at {place.coordinator} within {RENDEZVOUS_SECONDS} s: {error}",
        ) from error
    return {}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
