"""Stops that come at a bad time: the store cannot write, or a process that has to act was stopped for a while."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import apsw
import pytest

from tests.daemon.rig import Daemon, alive, eventually, running_daemon
from tests.daemon.test_recovery import helpers_of, launcher_of


def test_timeouts_and_deadlines_are_kept_when_the_store_cannot_write_at_their_time(daemon: Daemon) -> None:
    timed = daemon.command("sleep", "300", queue="t", timeout_ms=1500, grace_ms=100)
    deadline = time.time_ns() // 1_000_000 + 1500
    due = [daemon.command("sleep", "300", queue=f"d{n}", deadline=deadline, grace_ms=100) for n in range(2)]
    eventually(lambda: all(daemon.job(job)["pid"] for job in [timed, *due]))
    other = apsw.Connection(str(daemon.home / "meta.db"))
    other.execute("BEGIN IMMEDIATE")
    try:
        eventually(lambda: daemon.stderr().count("the stop of a job cannot be stored") >= 3)
    finally:
        other.execute("ROLLBACK")
        other.close()
    ends = [(job["state"], job["end_cause"]) for job in daemon.wait(timed, *due)]
    assert ends == [("FAILED", "timeout"), ("FAILED", "deadline"), ("FAILED", "deadline")]


@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_what_ended_in_time_while_the_daemon_was_stopped_has_ended_in_time(daemon: Daemon, limit: str) -> None:
    options = {"timeout_ms": 2000} if limit == "timeout" else {"deadline": time.time_ns() // 1_000_000 + 2000}
    jobs = [daemon.command("sleep", "0.5", queue=f"q{n}", **options) for n in range(4)]
    eventually(lambda: all(daemon.job(job)["pid"] for job in jobs))
    commands = [daemon.job(job)["pid"] for job in jobs]
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        eventually(lambda: not any(map(alive, commands)))
        time.sleep(2)  # the time passes
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert {(job["state"], job["stop_reason"]) for job in daemon.wait(*jobs)} == {("DONE", None)}


def test_a_stopped_shim_of_a_dead_daemon_is_woken(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sleep", "300", grace_ms=100)
        command = eventually(lambda: daemon.job(job_id)["pid"])
        [shim] = [pid for pid, parent in helpers_of(daemon).items() if parent != daemon.pid]
        os.kill(shim, signal.SIGSTOP)
        daemon.kill()
        daemon.start()
        assert daemon.wait(job_id)[0]["end_cause"] == "interrupted"
        assert not alive(command)


def test_a_stopped_launcher_leaves_with_the_daemon(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        launcher = launcher_of(daemon)
        os.kill(launcher, signal.SIGSTOP)
        assert daemon.terminate() == 0
        assert not alive(launcher)
