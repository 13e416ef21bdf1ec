"""Two replicas of the operator: one acts, and another takes its place, however the first goes."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from finetune_cli.kubectl import Kubectl
from finetune_operator.core import names
from kubernetes import client
from replicas import Replicas
from team import Team, has_saved
from tiny_jobs import long_job, tiny_job

WITHIN = 20
"""Seconds until somebody acts again."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two replicas, and a namespace with a job that trains."""

    replicas: Replicas
    team: Team


@pytest.fixture(scope="module")
def pair(make_team: Callable[[str], Team], operator: None, api: client.ApiClient, kubectl: Kubectl) -> Iterator[Pair]:
    """Scaled by helm, which waits for both to be Ready."""
    replicas = Replicas(api, kubectl)
    with replicas.of(2):
        team = make_team("e2e-replicas")
        team.start(long_job("goes-on"))
        team.until("goes-on", has_saved, "running with a checkpoint")
        yield Pair(replicas, team)


def test_one_acts_and_is_handed_what_the_other_is_sent(pair: Pair) -> None:
    replicas = pair.replicas
    leader, both = replicas.leader(), replicas.names()
    assert leader in both
    assert len(both) == 2
    (other,) = both - {leader}
    assert "finetune_leader 1.0" in replicas.metrics(leader)
    told = replicas.metrics(other)
    assert "finetune_leader 0.0" in told
    assert "finetune_status_writes_total 0.0" in told
    # Each post is a connection of its own, to either.
    pair.team.until("goes-on", lambda _: 'posts_total{code="200"}' in replicas.metrics(other), "posting to the other")
    assert "progress is not taken" not in pair.team.log(*pair.team.pods("goes-on", names.TRAIN))


def test_when_the_one_that_acts_is_killed_the_other_acts_within_twenty_seconds(pair: Pair) -> None:
    replicas, team = pair.replicas, pair.team
    before = replicas.leader()
    killed = replicas.kill(before, with_its_pod=True)
    team.start(tiny_job("in-the-gap"))
    team.until("in-the-gap", lambda status: bool(status.get("phase")), "taken up")
    took = time.monotonic() - killed
    assert replicas.leader() not in ("", before)
    assert took <= WITHIN
    logger.info("taken over %.1f s after the kill", took)


def test_an_upgrade_hands_over_at_once_and_ends_with_both_ready(pair: Pair) -> None:
    replicas = pair.replicas
    old, since = replicas.names(), replicas.lease().metadata.resource_version
    replicas.roll()
    new = replicas.names()
    assert len(new) == 2
    assert not new & old
    holders = replicas.changes(since, until=lambda holder: holder in new)
    gaps = [
        (now - left).total_seconds()
        for (holder, left), (_, now) in itertools.pairwise(holders)
        if not holder  # given up
    ]
    assert len(gaps) == sum(not holder for holder, _ in holders) > 0, "nobody let the Lease run out"
    assert max(gaps) < 5
    logger.info("handed over after %s s", gaps)


def test_nothing_was_lost_or_doubled(pair: Pair) -> None:
    team = pair.team
    for name in ("goes-on", "in-the-gap"):
        status = team.until_phase(name, "Succeeded")
        assert status["attempt"] == 1
        assert status["progress"]["step"] == status["progress"]["totalSteps"]
        assert team.train_jobs(name) == [names.train_job(name, 1)]
        events = team.events(name, until="Succeeded")
        assert events.count("Succeeded") == 1
