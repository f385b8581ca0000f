"""Metrics for Prometheus, made of the engine's events and, when they are asked for, of the store's kept counts.

Labels are names of queues and tasks, of which the first 200 are told apart, and fixed words; never a job id.
"""

from __future__ import annotations

import platform
from collections import Counter as Tally
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from semtask.model.disk import DiskState
from semtask.model.schedule import queued_since
from semtask.model.state import EndCause, State
from semtask.telemetry import counters, events
from semtask.telemetry.events import Events, Hold, Levels

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4.encode()  # what every scraper reads
OTHER = "_other"
MAX_NAMES = 200
MAX_PAIRS = 1000

# Seconds. A short command takes a few milliseconds; a build takes hours.
_DURATIONS = (0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)
_WAITS = (0.005, 0.025, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400, 86400)
_COMMITS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_REQUESTS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 1, 5, 30, 60)

# The persistent counters: the name of the metric, and what it counts.
_KEPT = {
    counters.ORPHANED_JOBS: ("semantica_recovery_orphaned_jobs", "Jobs found running that a former daemon left."),
    counters.ZOMBIES_CLEANED: ("semantica_orphans_killed", "Processes killed that a dead process had left behind."),
    counters.RETRY_COUNT: ("semantica_worker_retry_count", "Attempts that were followed by a retry."),
    counters.LOOP_STALLS: (
        "semantica_loop_stalls",
        "How often the event loop of the daemon was blocked for more than a second.",
    ),
    counters.CPU_THROTTLE_EVENTS: ("semantica_system_cpu_throttle_events", "How often background work was paused."),
}


class Metrics:
    """Counts from the moment it is attached. `render` may run in another thread than the events."""

    def __init__(self, *, version: str, sqlite: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each counter that nobody reads
        self._registry = CollectorRegistry()
        self._names = _Names()
        ProcessCollector(registry=self._registry)
        build = Info("semantica_build", "What this daemon is made of.", registry=self._registry)
        build.info({"version": version, "python": platform.python_version(), "sqlite": sqlite})
        self._enqueued = self._counter("jobs_enqueued", "Jobs that were stored.", "queue", "task", "kind")
        self._finished = self._counter("jobs_finished", "Jobs that reached their end.", "queue", "task", "outcome")
        self._retried = self._counter("jobs_retried", "Attempts that a retry follows.", "queue", "task")
        self._superseded = self._counter("jobs_superseded", "Jobs that a newer one of their subject made obsolete.")
        self._wait = self._histogram("job_queue_wait_seconds", "From being due to being started.", _WAITS, "queue")
        self._duration = self._histogram("job_duration_seconds", "How long attempts ran.", _DURATIONS, "task")
        self._requests = self._counter("rpc_requests", "Requests that were answered.", "method", "code")
        self._answer = self._histogram("rpc_request_duration_seconds", "Until the answer.", _REQUESTS, "method")
        self._commit = self._histogram("db_commit_seconds", "From asking for a write to its commit.", _COMMITS)

    def attach(self, source: Events) -> None:
        source.attach(events.JobsEnqueued, self._on_enqueued)
        source.attach(events.JobsEnded, self._on_ended)
        source.attach(events.JobsRetried, self._on_retried)
        source.attach(events.AttemptStarted, self._on_attempt_started)
        source.attach(events.AttemptEnded, self._on_attempt_ended)
        source.attach(events.Committed, self._on_committed)
        source.attach(events.RequestAnswered, self._on_answered)

    def render(self, levels: Levels) -> bytes:
        """The text format of Prometheus (`CONTENT_TYPE`)."""
        return generate_latest(_Scrape(self._registry, self._families(levels)))

    # --- events ----------------------------------------------------------------------------------------------------

    def _on_enqueued(self, event: events.JobsEnqueued) -> None:
        queue, task = self._names.pair(event.queue, event.task)
        self._enqueued.labels(queue, task, event.kind.value).inc(event.count)

    def _on_ended(self, event: events.JobsEnded) -> None:
        queue, task = self._names.pair(event.queue, event.task)
        self._finished.labels(queue, task, event.outcome.value).inc(event.count)
        if event.outcome is EndCause.SUPERSEDED:
            self._superseded.inc(event.count)

    def _on_retried(self, event: events.JobsRetried) -> None:
        self._retried.labels(*self._names.pair(event.queue, event.task)).inc(event.count)

    def _on_attempt_started(self, event: events.AttemptStarted) -> None:
        job = event.job
        if job.started_at is None or job.interruptions:  # what was interrupted has not waited since it was due
            return
        self._wait.labels(self._names.queue(job.queue)).observe(max(job.started_at - queued_since(job), 0) / 1000)

    def _on_attempt_ended(self, event: events.AttemptEnded) -> None:
        if event.ran_s is not None:
            self._duration.labels(self._names.task(event.job.job_type)).observe(event.ran_s)

    def _on_committed(self, event: events.Committed) -> None:
        self._commit.observe(event.seconds)

    def _on_answered(self, event: events.RequestAnswered) -> None:
        method = event.method or OTHER
        self._requests.labels(method, str(event.code)).inc()
        self._answer.labels(method).observe(event.seconds)

    # --- levels ----------------------------------------------------------------------------------------------------

    def _families(self, levels: Levels) -> Iterator[Metric]:
        yield self._jobs(levels.jobs)
        yield self._oldest_ready(levels)
        yield GaugeMetricFamily(
            "semantica_db_size_bytes", "Database with its write-ahead log.", value=levels.db_size_bytes
        )
        yield GaugeMetricFamily("semantica_db_wal_bytes", "Write-ahead log.", value=levels.db_wal_bytes)
        throttled = GaugeMetricFamily(
            "semantica_throttled", "1 while jobs are held back for this reason.", labels=["reason"]
        )
        for reason in get_args(Hold):
            throttled.add_metric([reason], reason in levels.holds)
        yield throttled
        disk = GaugeMetricFamily("semantica_disk_state", "1 for the state that the disk is in.", labels=["state"])
        for state in DiskState:
            disk.add_metric([state.value], state is levels.disk_state)
        yield disk
        if levels.disk_free_bytes is not None:
            free = "What is free on the disk of the home."
            yield GaugeMetricFamily("semantica_disk_free_bytes", free, value=levels.disk_free_bytes)
        for kept, (name, what) in _KEPT.items():
            yield CounterMetricFamily(name, what, value=levels.counters.get(kept, 0))

    def _jobs(self, by_queue: Mapping[str, Mapping[State, int]]) -> Metric:
        sums: Tally[tuple[str, str]] = Tally()
        for queue, counts in by_queue.items():
            name = self._names.queue(queue)
            for state, count in counts.items():
                sums[name, state.value] += count
        family = GaugeMetricFamily("semantica_jobs", "Stored jobs by state.", labels=["queue", "state"])
        for labels, count in sums.items():
            family.add_metric(labels, count)
        return family

    def _oldest_ready(self, levels: Levels) -> Metric:
        ages: dict[str, float] = {}
        for queue in levels.jobs:
            name = self._names.queue(queue)
            ages[name] = max(ages.get(name, 0), levels.oldest_ready_s.get(queue, 0))
        family = GaugeMetricFamily(
            "semantica_queue_oldest_ready_age_seconds",
            "How long the oldest job has been waiting that could run; 0 if none waits.",
            labels=["queue"],
        )
        for name, age in ages.items():
            family.add_metric([name], age)
        return family

    # --- pieces ----------------------------------------------------------------------------------------------------

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(f"semantica_{name}", what, labels, registry=self._registry)

    def _histogram(self, name: str, what: str, buckets: Iterable[float], *labels: str) -> Histogram:
        return Histogram(f"semantica_{name}", what, labels, buckets=tuple(buckets), registry=self._registry)


class _Names:
    """Whoever may enqueue can invent names without end: those that come first are told apart."""

    def __init__(self) -> None:
        self._queues = _FirstFew(MAX_NAMES)
        self._tasks = _FirstFew(MAX_NAMES)
        self._pairs = _FirstFew(MAX_PAIRS)

    def queue(self, name: str) -> str:
        return name if self._queues.admits(name) else OTHER

    def task(self, name: str) -> str:
        return name if self._tasks.admits(name) else OTHER

    def pair(self, queue: str, task: str) -> tuple[str, str]:
        pair = (self.queue(queue), self.task(task))
        return pair if self._pairs.admits(pair) else (OTHER, OTHER)


class _FirstFew:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._admitted: set[Hashable] = set()

    def admits(self, name: Hashable) -> bool:
        if name not in self._admitted:
            if len(self._admitted) >= self._limit:
                return False
            self._admitted.add(name)
        return True


class _Scrape(Collector):
    """The lasting metrics, and those of this moment."""

    def __init__(self, lasting: Collector, momentary: Iterable[Metric]) -> None:
        self._lasting = lasting
        self._momentary = momentary

    def collect(self) -> Iterable[Metric]:
        yield from self._lasting.collect()
        yield from self._momentary
