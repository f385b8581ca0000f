"""What becomes of events and levels in the text that Prometheus reads."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest

from semtask.model.job import ExecutionMode, Job, OnInterrupt
from semtask.model.retry import Decision
from semtask.model.state import EndCause, Event, State
from semtask.telemetry import events as ev
from semtask.telemetry.metrics import MAX_NAMES, MAX_PAIRS, OTHER, Metrics
from tests.telemetry.scraped import Scraped

NOTHING = ev.Levels(jobs={}, oldest_ready_s={}, counters={}, db_size_bytes=0, db_wal_bytes=0)
JOB_ID = "018f0000-0000-7000-8000-00000000abcd"


class Exporter:
    def __init__(self) -> None:
        self.events = ev.Events()
        self.metrics = Metrics(version="1.2.3", sqlite="3.54.1")
        self.metrics.attach(self.events)

    def scrape(self, levels: ev.Levels = NOTHING) -> Scraped:
        return Scraped(self.metrics.render(levels))


@pytest.fixture
def exporter(caplog: pytest.LogCaptureFixture) -> Iterator[Exporter]:
    yield Exporter()
    assert not caplog.records, "a handler failed"


def a_job(**fields: object) -> Job:
    values: dict[str, object] = {
        "seq": 1,
        "job_id": JOB_ID,
        "queue": "default",
        "job_type": "build",
        "execution_mode": ExecutionMode.SUBPROCESS,
        "state": State.RUNNING,
        "payload": "{}",
        "created_at": 1_000,
        "on_interrupt": OnInterrupt.FAIL,
        "content_hash": b"",
        "claim_no": 1,
        **fields,
    }
    return Job(**values)  # type: ignore[arg-type]


def test_jobs_are_counted_by_queue_task_and_outcome(exporter: Exporter) -> None:
    exporter.events.emit(ev.JobsEnqueued("q", "build", ExecutionMode.SUBPROCESS, 3))
    exporter.events.emit(ev.JobsEnqueued("q", "mail", ExecutionMode.IN_PROCESS, 1))
    exporter.events.emit(ev.JobsEnqueued("q", "build", ExecutionMode.SUBPROCESS, 2))
    exporter.events.emit(ev.JobsEnded("q", "build", EndCause.SUCCESS, 2))
    exporter.events.emit(ev.JobsEnded("q", "build", EndCause.SUPERSEDED, 4))
    exporter.events.emit(ev.JobsRetried("q", "build", 1))
    scraped = exporter.scrape()
    assert scraped.value("semantica_jobs_enqueued_total", queue="q", task="build", kind="SUBPROCESS") == 5
    assert scraped.value("semantica_jobs_enqueued_total", queue="q", task="mail", kind="IN_PROCESS") == 1
    assert scraped.value("semantica_jobs_finished_total", queue="q", task="build", outcome="success") == 2
    assert scraped.value("semantica_jobs_finished_total", queue="q", task="build", outcome="superseded") == 4
    assert scraped.value("semantica_jobs_superseded_total") == 4
    assert scraped.value("semantica_jobs_retried_total", queue="q", task="build") == 1


def test_the_wait_is_from_being_due_to_the_start(exporter: Exporter) -> None:
    exporter.events.emit(ev.AttemptStarted(a_job(created_at=1_000, started_at=1_200)))
    exporter.events.emit(ev.AttemptStarted(a_job(created_at=1_000, run_at=9_000, started_at=9_300)))
    assert exporter.scrape().value("semantica_job_queue_wait_seconds_sum", queue="default") == pytest.approx(0.5)
    # The clock was set back; and a job that was interrupted has been running in between.
    exporter.events.emit(ev.AttemptStarted(a_job(created_at=1_000, started_at=500)))
    exporter.events.emit(ev.AttemptStarted(a_job(created_at=1_000, started_at=99_000, interruptions=1)))
    scraped = exporter.scrape()
    assert scraped.value("semantica_job_queue_wait_seconds_sum", queue="default") == pytest.approx(0.5)
    assert scraped.value("semantica_job_queue_wait_seconds_count", queue="default") == 3


def test_the_duration_is_of_what_ran_here(exporter: Exporter) -> None:
    decision = Decision(event=Event.SUCCEED, end_cause=EndCause.SUCCESS)
    for ran_s in (0.25, None, 2.0):
        exporter.events.emit(ev.AttemptEnded(a_job(), decision, ran_s))
    scraped = exporter.scrape()
    assert scraped.value("semantica_job_duration_seconds_count", task="build") == 2
    assert scraped.value("semantica_job_duration_seconds_sum", task="build") == pytest.approx(2.25)
    assert scraped.value("semantica_job_duration_seconds_bucket", task="build", le="0.5") == 1
    assert JOB_ID not in scraped.text


def test_requests_by_method_and_code(exporter: Exporter) -> None:
    exporter.events.emit(ev.RequestAnswered("dev.enqueue.v1", 0, 0.002))
    exporter.events.emit(ev.RequestAnswered("dev.enqueue.v1", 4000, 0.004))
    exporter.events.emit(ev.RequestAnswered(None, -32601, 0.001))
    exporter.events.emit(ev.Committed(0.02))
    scraped = exporter.scrape()
    assert scraped.value("semantica_rpc_requests_total", method="dev.enqueue.v1", code="0") == 1
    assert scraped.value("semantica_rpc_requests_total", method="dev.enqueue.v1", code="4000") == 1
    assert scraped.value("semantica_rpc_requests_total", method=OTHER, code="-32601") == 1
    assert scraped.value("semantica_rpc_request_duration_seconds_sum", method="dev.enqueue.v1") == pytest.approx(0.006)
    assert scraped.value("semantica_db_commit_seconds_sum") == pytest.approx(0.02)


def test_levels_are_those_of_the_scrape(exporter: Exporter) -> None:
    counts = dict.fromkeys(State, 0) | {State.QUEUED: 7}
    levels = ev.Levels(
        jobs={"a": counts, "b": counts},
        oldest_ready_s={"a": 12.5},
        counters={"recovery.zombies_cleaned": 2, "something.else": 9},
        db_size_bytes=4096,
        db_wal_bytes=512,
        holds=["store"],
    )
    scraped = exporter.scrape(levels)
    assert scraped.value("semantica_jobs", queue="a", state="QUEUED") == 7
    assert scraped.value("semantica_jobs", queue="b", state="DONE") == 0
    assert scraped.value("semantica_queue_oldest_ready_age_seconds", queue="a") == 12.5
    assert scraped.value("semantica_queue_oldest_ready_age_seconds", queue="b") == 0
    assert scraped.value("semantica_db_size_bytes") == 4096
    assert scraped.value("semantica_db_wal_bytes") == 512
    assert scraped.value("semantica_orphans_killed_total") == 2
    assert scraped.value("semantica_recovery_orphaned_jobs_total") == 0
    assert scraped.value("semantica_throttled", reason="store") == 1
    assert scraped.value("semantica_throttled", reason="host_busy") == 0
    assert exporter.scrape().value("semantica_jobs", queue="a", state="QUEUED") is None


def test_what_is_there_from_the_start(exporter: Exporter) -> None:
    scraped = exporter.scrape()
    build = {"version": "1.2.3", "python": platform.python_version(), "sqlite": "3.54.1"}
    assert scraped.value("semantica_build_info", **build) == 1
    assert scraped.value("process_resident_memory_bytes")
    assert not [name for name in scraped.families if name.endswith("_created")]


def test_any_name_of_a_task_is_one_label(exporter: Exporter) -> None:
    names = ['"', "\\", "a\nb", '"} 1\nsemantica_fake 1\n', "ä\u2028\x85\0\r", "{}", " ", "\\n"]
    for number, name in enumerate(names, 1):
        exporter.events.emit(ev.JobsEnqueued("q", name, ExecutionMode.IN_PROCESS, number))
    scraped = exporter.scrape()
    assert "semantica_fake" not in scraped.families
    for number, name in enumerate(names, 1):
        assert scraped.value("semantica_jobs_enqueued_total", queue="q", task=name) == number


def test_names_beyond_the_cap_are_one(exporter: Exporter) -> None:
    for number in range(3 * MAX_NAMES):
        exporter.events.emit(ev.JobsEnqueued("q", f"t{number}", ExecutionMode.SUBPROCESS, 1))
        exporter.events.emit(ev.JobsEnqueued(f"q{number}", "t0", ExecutionMode.SUBPROCESS, 1))
    counts = dict.fromkeys(State, 1)
    levels = ev.Levels(
        jobs={f"q{n}": counts for n in range(1000)},
        oldest_ready_s={"q999": 7.0},
        counters={},
        db_size_bytes=0,
        db_wal_bytes=0,
    )
    scraped = exporter.scrape(levels)
    name = "semantica_jobs_enqueued_total"
    assert len(scraped.labels(name, "task")) == len(scraped.labels(name, "queue")) == MAX_NAMES + 1
    assert scraped.value(name, queue="q", task=OTHER) == 2 * MAX_NAMES
    assert sum(s.value for s in scraped.samples if s.name == name) == 6 * MAX_NAMES
    assert sum(s.value for s in scraped.samples if s.name == "semantica_jobs" and s.labels["state"] == "DONE") == 1000
    assert len(scraped.labels("semantica_jobs", "queue")) <= MAX_NAMES + 1
    assert scraped.value("semantica_queue_oldest_ready_age_seconds", queue=OTHER) == 7


def test_pairs_of_names_have_a_cap_of_their_own(exporter: Exporter) -> None:
    for queue in range(100):
        for task in range(100):
            exporter.events.emit(ev.JobsEnqueued(f"q{queue}", f"t{task}", ExecutionMode.SUBPROCESS, 1))
    series = [s for s in exporter.scrape().samples if s.name == "semantica_jobs_enqueued_total"]
    assert len(series) == MAX_PAIRS + 1
    assert sum(s.value for s in series) == 10_000
