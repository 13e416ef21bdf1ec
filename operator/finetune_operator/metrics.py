"""Prometheus metrics of the operator, in a registry of their own."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class Metrics:
    """What is counted. No label takes a job's name: series stay few however many jobs there are."""

    def __init__(self, phases: Callable[[], Iterable[str]]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Phases(phases))
        self.reconcile_seconds = Histogram(
            "finetune_reconcile_seconds",
            "Time to reconcile one FineTuneJob, calls to the API server included.",
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        )
        self.reconcile_errors = Counter(
            "finetune_reconcile_errors", "Reconciles that ended in an error.", registry=self.registry
        )
        self.status_writes = Counter(
            "finetune_status_writes", "Writes of a FineTuneJob's status.", registry=self.registry
        )
        self.attempts = Counter("finetune_attempts", "Training attempts that were started.", registry=self.registry)
        self.failures = Counter(
            "finetune_failures", "Attempts and jobs that failed, by reason.", ["reason"], registry=self.registry
        )
        self.suspensions = Counter("finetune_suspensions", "Times that a job came to rest.", registry=self.registry)
        self.requeues = Counter(
            "finetune_requeues",
            "Times that a queue took back the place of a training that ran.",
            registry=self.registry,
        )
        self.expired = Counter(
            "finetune_expired_jobs", "Finished jobs deleted at the end of their time to live.", registry=self.registry
        )
        self.leader = Gauge(
            "finetune_leader", "1 for the replica that acts, 0 for one that stands by.", registry=self.registry
        )
        self.progress_posts = Counter(
            "finetune_progress_posts", "Posts of progress, by HTTP status.", ["code"], registry=self.registry
        )

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Phases(Collector):
    """Jobs by phase, counted when asked."""

    def __init__(self, phases: Callable[[], Iterable[str]]) -> None:
        self._phases = phases

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("finetune_jobs", "FineTuneJobs by phase.", labels=["phase"])
        for phase, count in sorted(Tally(self._phases()).items()):
            family.add_metric([phase], count)
        yield family
