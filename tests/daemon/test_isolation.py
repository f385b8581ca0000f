"""A task that crashes, hangs or leaks hurts nobody but itself: each row of the table, with others beside it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from tests.daemon.rig import Daemon, alive, eventually, running_daemon

ROOT = Path(__file__).resolve().parents[2]
BESIDE = 20
NOTHING: Mapping[str, Any] = MappingProxyType({})


def write_apps(home: Path, module: str = "tests.daemon.hostile:app") -> None:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    app = {"module": module, "directory": str(ROOT), "python": sys.executable}
    (home / "apps.json").write_text(json.dumps({"apps": {"hostile": app}}))
    (home / "apps.json").chmod(0o600)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("isolation") / "home"
    write_apps(home)
    with running_daemon(home, SEMANTICA_MAX_PROCESSES="4") as running:
        running.rpc("queues.configure.v1", queue="async", concurrency=100)
        running.rpc("queues.configure.v1", queue="one", concurrency=1)
        yield running


def enqueue(daemon: Daemon, name: str, arguments: Mapping[str, Any] = NOTHING, **options: Any) -> str:
    answer = daemon.rpc(
        "dev.enqueue.v1",
        job_type=f"tests.daemon.hostile:{name}",
        execution_mode="IN_PROCESS",
        payload=dict(arguments),
        **options,
    )
    return str(answer["job_id"])


def enqueue_good(daemon: Daemon, count: int = BESIDE) -> list[str]:
    jobs = [
        {
            "job_type": "tests.daemon.hostile:good",
            "queue": "beside",
            "execution_mode": "IN_PROCESS",
            "payload": {"number": number},
        }
        for number in range(count)
    ]
    return [one["job_id"] for one in daemon.rpc("dev.enqueue_many.v1", jobs=jobs)["jobs"]]


def enqueue_and_wait(daemon: Daemon, name: str) -> str:
    job_id = enqueue(daemon, name, queue="hostile")
    daemon.wait(job_id)
    return job_id


def assert_untouched(daemon: Daemon, job_ids: list[str]) -> None:
    jobs = daemon.wait(*job_ids)
    assert {(job["state"], job["attempts"]) for job in jobs} == {("DONE", 1)}
    assert [daemon.job(job_id, "result")["result"] for job_id in job_ids] == [n + 1 for n in range(len(job_ids))]


class Row(NamedTuple):
    task: str
    end_cause: str
    error: str = ""
    signal: int | None = None
    exit_code: int | None = None
    arguments: Mapping[str, Any] = NOTHING
    options: Mapping[str, Any] = NOTHING
    crashes: int = 0
    result: Any = None

    @property
    def failures(self) -> int:
        return 0 if self.end_cause in {"success", "worker_crash"} else 1


LIMIT = {"timeout_ms": 300, "grace_ms": 100}
ROWS = [
    Row("exception", "exception", "ValueError: no such thing"),
    Row("system_exit", "exception", "SystemExit: 0"),
    Row("keyboard_interrupt", "exception", "KeyboardInterrupt"),
    Row("recursion", "exception", "RecursionError: "),
    Row("memory_error", "exception", "MemoryError"),
    Row("segfault", "worker_crash", "SIGSEGV", signal=11, crashes=1),
    Row("exit_0", "worker_crash", "exit code 0 and without a result", exit_code=0, crashes=1),
    Row("abort", "worker_crash", "SIGABRT", signal=6, crashes=1),
    Row("kill_9", "worker_crash", "SIGKILL", signal=9, crashes=1),
    Row("hold_the_gil", "timeout", "ran longer than timeout_ms=300", options=LIMIT),
    Row("endless_loop", "timeout", "ran longer than timeout_ms=300", options=LIMIT),
    Row("hang_async", "timeout", "ran longer than timeout_ms=300", options=LIMIT),
    Row("leave_a_thread", "success", result="done"),
    Row("fork", "success", result="the parent answers"),
    Row("pool", "success", arguments={"method": "fork"}, result=[0, 1, 4, 9, 16]),
    Row("pool", "success", arguments={"method": "spawn"}, result=[0, 1, 4, 9, 16]),
    Row("unserialisable", "exception", "object"),
    Row("not_a_number", "exception", "NaN|nan"),
    Row("huge", "exception", "max_result_bytes|limit", arguments={"size": 65 * 1024 * 1024}),
    Row("close_descriptors", "worker_crash", crashes=1),
    Row("evil_exception", "exception", "_EvilError"),
    Row("crash_async", "worker_crash", "SIGABRT", signal=6, crashes=1, arguments={"after": 0.05}),
]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.task}-{row.arguments.get('method', '')}".rstrip("-") for row in ROWS])
def test_each_way_of_ending_hurts_nobody_else(daemon: Daemon, row: Row) -> None:
    before = enqueue_good(daemon, BESIDE // 2)
    job_id = enqueue(daemon, row.task, row.arguments, queue="hostile", max_attempts=1, **row.options)
    after = enqueue_good(daemon, BESIDE // 2)
    [job] = daemon.wait(job_id)
    assert job["end_cause"] == row.end_cause, job
    assert job["state"] == ("DONE" if row.end_cause == "success" else "FAILED")
    assert re.search(row.error, job["error"] or ""), job["error"]
    if row.signal is not None or row.exit_code is not None:
        assert (job["signal"], job["exit_code"]) == (row.signal, row.exit_code)
    assert (job["attempts"], job["failures"], job["crashes"]) == (1, row.failures, row.crashes)
    if row.result is not None:
        assert daemon.job(job_id, "result")["result"] == row.result
    assert_untouched(daemon, before)
    assert_untouched(daemon, after)


def test_what_c_code_wrote_before_a_crash_is_in_the_log_of_that_job_only(daemon: Daemon) -> None:
    """All of it, or a line says how much is missing."""

    def log_of(text: str, times: int, *, crash: bool) -> list[str]:
        job_id = enqueue(daemon, "write_in_c", {"text": text, "times": times, "crash": crash}, queue="one")
        [job] = daemon.wait(job_id)
        assert job["end_cause"] == ("worker_crash" if crash else "success")
        return Path(job["log_path"]).read_text().splitlines()

    for times in (1, 20_000, 100_000):
        before = log_of("größer before", 50, crash=False)
        assert sum("größer before" in line for line in before) == 50
        lines = log_of("größer", times, crash=True)
        written = [line for line in lines if re.fullmatch(r"größer \d+", line)]
        assert not any("before" in line for line in lines)
        assert not any("\ufffd" in line for line in lines)
        assert written == [f"größer {number}" for number in range(times - len(written), times)]
        [cut] = [line for line in lines if "bytes left out" in line] or [""]
        if times < 100_000:
            assert (len(written), cut) == (times, "")
        else:
            kept = sum(len(f"größer {number}\n".encode()) for number in range(times - len(written), times))
            total = sum(len(f"größer {number}\n".encode()) for number in range(times))
            partial = lines[lines.index(cut) + 1]  # the line in which it is cut
            missing = total - kept - len(partial.encode()) - 1 if partial != written[0] else total - kept
            assert cut == f"[... {missing} bytes left out ...]"
            assert kept > 900_000


def test_a_worker_that_a_task_left_dirty_is_replaced(daemon: Daemon) -> None:
    """A job that is done shows which process it ran in; after it that process is gone."""
    pid = daemon.job(enqueue_and_wait(daemon, "pid_and_thread"), "result")["result"]
    eventually(lambda: not alive(pid), what="the worker with a thread left has gone")


def test_async_jobs_of_a_killed_worker_are_given_back_without_losing_an_attempt(daemon: Daemon) -> None:
    others = [enqueue(daemon, "good_async", {"seconds": 0.6}, queue="async") for _ in range(BESIDE)]
    hanging = enqueue(daemon, "hang_async", queue="async", timeout_ms=200, grace_ms=50)
    [job] = daemon.wait(hanging)
    assert (job["state"], job["end_cause"]) == ("FAILED", "timeout")
    rows = daemon.wait(*others)
    assert {(row["state"], row["attempts"], row["failures"], row["interruptions"]) for row in rows} == {
        ("DONE", 1, 0, 0)
    }
    assert max(row["claim_no"] for row in rows) > 1, "none of them was in the worker that was killed"


def test_async_jobs_beside_one_that_crashes_are_given_back(daemon: Daemon) -> None:
    others = [enqueue(daemon, "good_async", {"seconds": 0.6}, queue="async") for _ in range(BESIDE)]
    crashing = enqueue(daemon, "crash_async", {"after": 0.2}, queue="async")
    [job] = daemon.wait(crashing)
    assert (job["end_cause"], job["signal"]) == ("worker_crash", 6)
    rows = daemon.wait(*others)
    assert {(row["state"], row["attempts"], row["crashes"]) for row in rows} == {("DONE", 1, 0)}


def test_what_may_start_only_once_is_not_started_again_beside_one_that_crashes(daemon: Daemon) -> None:
    once = enqueue(daemon, "good_async", {"seconds": 0.6}, queue="async", on_interrupt="fail")
    eventually(lambda: daemon.job(once)["state"] == "RUNNING")
    enqueue(daemon, "crash_async", {"after": 0.1}, queue="async")
    [row] = daemon.wait(once)
    assert (row["state"], row["end_cause"], row["claim_no"]) == ("FAILED", "interrupted", 1)


@pytest.mark.parametrize("name", ["endless_loop", "hold_the_gil"])
def test_a_cancel_ends_python_and_c_alike(daemon: Daemon, name: str) -> None:
    job_id = enqueue(daemon, name, queue="hostile", grace_ms=200)
    beside = enqueue_good(daemon)
    eventually(lambda: "begun" in daemon.log(job_id))  # RUNNING comes before that
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    [job] = daemon.wait(job_id)
    assert (job["state"], job["end_cause"]) == ("CANCELLED", "cancelled")
    assert f"in {name}" in daemon.log(job_id)  # where it was
    assert_untouched(daemon, beside)


def test_processes_that_a_sync_task_left_are_gone_before_it_is_done(daemon: Daemon) -> None:
    job_id = enqueue(daemon, "leave_processes", queue="hostile")
    daemon.wait(job_id)
    pids = daemon.job(job_id, "result")["result"]
    assert len(pids) == 2
    assert not [pid for pid in pids if alive(pid)]


def test_processes_that_an_async_task_left_are_gone_when_its_worker_is_idle(daemon: Daemon) -> None:
    job_id = enqueue(daemon, "leave_processes_async", queue="async")
    daemon.wait(job_id)
    pid = daemon.job(job_id, "result")["result"]
    eventually(lambda: not alive(pid), what="the process of the async task is gone")


def test_a_parent_awaits_its_child_in_a_queue_of_one(daemon: Daemon) -> None:
    job_ids = [enqueue(daemon, "parent", {"number": number}, queue="one") for number in range(3)]
    daemon.wait(*job_ids)
    assert [daemon.job(job_id, "result")["result"] for job_id in job_ids] == [1, 3, 5]
