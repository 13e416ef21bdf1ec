"""What the launcher makes of its workers' ends: the first cause, not what followed from it."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from finetune_api.failures import ExitCode
from finetune_api.reports import TerminationReport
from finetune_api.trainer_config import COORDINATOR_ENV, NODE_RANK_ENV, TrainerConfig
from finetune_trainer.errors import TrainerError
from finetune_trainer.interruption import Interruption
from finetune_trainer.launch import await_name, find_place, needed
from finetune_trainer.peers import Ended, Peers, die_with_parent, lost_peer, verdict


def ended(rank: int, code: int, time: float = 0.0) -> Ended:
    return Ended(rank, time, TerminationReport(step="train", exit_code=code, message=f"of {rank}" if code else None))


OK, OOM, LOST, TOLD = (
    ExitCode.OK,
    ExitCode.CUDA_OUT_OF_MEMORY,
    ExitCode.COLLECTIVE_TIMEOUT,
    ExitCode.INTERRUPTED,
)


class TestName:
    """Of node 0, which has an address once its pod has."""

    def test_is_awaited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[str] = []

        def lookup(host: str, _port: None) -> list[Any]:
            asked.append(host)
            if len(asked) < 3:
                raise socket.gaierror(-2, "Name or service not known")
            return []

        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)
        await_name("job-0.job", 60)
        assert asked == ["job-0.job"] * 3

    def test_that_never_comes_is_a_time_out(self) -> None:
        with pytest.raises(TrainerError, match=r"no address by its name nowhere\.invalid after 0 s") as told:
            await_name("nowhere.invalid", 0)
        assert told.value.exit_code is ExitCode.COLLECTIVE_TIMEOUT


@pytest.mark.parametrize(
    ("ends", "told", "code", "rank"),
    [
        ([ended(0, OK, 2), ended(1, OK, 1)], False, OK, None),
        ([ended(0, LOST, 1), ended(1, OOM, 2)], False, OOM, 1),
        ([ended(0, OOM, 3), ended(1, OOM, 2)], False, OOM, 1),
        ([ended(0, LOST, 2), ended(1, LOST, 1), ended(2, TOLD, 0)], False, LOST, 1),
        ([ended(0, TOLD, 2), ended(1, TOLD, 1)], False, TOLD, 1),
        ([ended(0, TOLD, 2), ended(1, LOST, 1)], True, TOLD, 0),
        ([ended(0, TOLD, 1), ended(1, ExitCode.VOLUME_FULL, 2)], True, ExitCode.VOLUME_FULL, 1),
        ([ended(0, OK, 1), ended(1, ExitCode.TRAINER_CRASH, 2)], False, ExitCode.TRAINER_CRASH, 1),
    ],
)
def test_the_first_cause_is_told(ends: list[Ended], told: bool, code: int, rank: int | None) -> None:
    report = verdict(ends, told=told)
    assert (report.exit_code, report.rank) == (code, rank)


def test_a_process_that_died_without_a_word_is_named(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    peers.leave(0, TerminationReport(step="train", exit_code=LOST, message="peer gone"))
    report = verdict(peers.ended({0: (int(LOST), 5.0), 3: (-signal.SIGKILL, 4.0)}), told=False)
    assert (report.exit_code, report.rank) == (ExitCode.TRAINER_CRASH, 3)
    assert "rank 3 was killed (SIGKILL)" in (report.message or "")


def test_an_abort_of_nccl_is_no_cause_of_its_own(tmp_path: Path) -> None:
    ends = Peers(tmp_path).ended({0: (-signal.SIGABRT, 1.0), 1: (1, 2.0)})
    assert [one.report.exit_code for one in ends] == [LOST, ExitCode.TRAINER_CRASH]
    assert verdict(ends, told=False).rank == 1


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer."), True),
        (RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.1]:9885"), True),
        (RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 4"), False),
        (ConnectionResetError("Connection reset by peer"), False),
        (KeyError("gloo"), False),
    ],
)
def test_a_lost_peer_is_told_from_an_error_of_one_s_own(error: Exception, lost: bool) -> None:
    assert lost_peer(error) is lost


def test_a_lost_peer_is_found_behind_another_error() -> None:
    error = ValueError("wrapped")
    error.__cause__ = RuntimeError("[gloo/x.cc:1] Connection closed by peer")
    assert lost_peer(error)


def test_the_word_to_end_reaches_workers_that_are_there_and_those_that_come(tmp_path: Path) -> None:
    heard = Interruption()
    heard.defer(deferred=True)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    heard.listen()
    try:
        assert Peers(tmp_path).enter(0) is False  # this process
        Peers(tmp_path).tell()
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert heard.told
    assert Peers(tmp_path).enter(1) is True


def test_signals_are_passed_on_also_one_that_came_before() -> None:
    calls: list[int] = []
    interrupted = Interruption()
    interrupted.defer(deferred=True)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    interrupted.listen()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        interrupted.pass_on(lambda: calls.append(1))
        assert len(calls) == 1
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert len(calls) == 2


def test_a_worker_dies_with_its_launcher() -> None:
    read, write = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        if os.fork() == 0:
            die_with_parent()
            os.write(write, b"ready")
        while True:
            signal.pause()
    os.close(write)
    assert os.read(read, 5) == b"ready"
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    assert os.read(read, 1) == b""  # no process holds the other end
    os.close(read)


def config(**distributed: object) -> TrainerConfig:
    return TrainerConfig.model_validate(
        {
            "job": {"name": "tune"},
            "model": {"uri": "hf://org/tiny"},
            "sources": [],
            "method": {"lora": {}},
            "distributed": distributed,
        }
    )


@pytest.mark.parametrize(
    ("spread", "wanted"),
    [
        ({}, False),
        ({"gpusPerNode": 1}, False),
        ({"gpusPerNode": 1, "strategy": "ddp"}, False),
        ({"gpusPerNode": 2}, True),
        ({"nodes": 2}, True),
        ({"strategy": "zero2"}, True),
        ({"gpusPerNode": 1, "offload": "optimizer"}, True),
    ],
)
def test_one_device_alone_needs_no_workers(spread: dict[str, object], wanted: bool) -> None:
    assert needed(config(**spread)) is wanted


def test_one_node_meets_itself_on_a_free_port() -> None:
    place = find_place(config(gpusPerNode=2), {})
    assert place.node == 0
    assert place.coordinator.startswith("127.0.0.1:")


def test_several_nodes_meet_where_the_environment_says() -> None:
    environment = {NODE_RANK_ENV: "1", COORDINATOR_ENV: "job-0.job:29500"}
    place = find_place(config(nodes=2), environment)
    assert (place.node, place.coordinator) == (1, "job-0.job:29500")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, NODE_RANK_ENV),
        ({NODE_RANK_ENV: "2", COORDINATOR_ENV: "host:1"}, "0 to 1"),
        ({NODE_RANK_ENV: "one", COORDINATOR_ENV: "host:1"}, "one"),
        ({NODE_RANK_ENV: "1"}, COORDINATOR_ENV),
        ({NODE_RANK_ENV: "1", COORDINATOR_ENV: "host"}, "host:port"),
    ],
)
def test_a_node_that_does_not_know_its_place_says_what_is_missing(environment: dict[str, str], named: str) -> None:
    with pytest.raises(TrainerError, match=named) as raised:
        find_place(config(nodes=2), environment)
    assert raised.value.exit_code is ExitCode.CONFIG_INVALID
