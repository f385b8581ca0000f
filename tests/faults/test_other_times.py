"""The daemon in another time: a wall clock that is set or was never set, records of another version, a release that
is replaced under it.
"""

from __future__ import annotations

import binascii
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import semtask
from tests.daemon.rig import Daemon, Json, alive, eventually, running_daemon, stop_for_certain
from tests.daemon.test_isolation import enqueue, write_apps

# --- wrong clocks ----------------------------------------------------------------------------------------------------

# The file `clock` of the home says by how many seconds the wall clock is wrong.
WRONG_CLOCK = """
import os, sys, time
real_time, real_time_ns = time.time, time.time_ns

def wrong_s():
    with open(os.environ["SEMANTICA_HOME"] + "/clock", encoding="ascii") as file:
        return float(file.read())

time.time = lambda: real_time() + wrong_s()
time.time_ns = lambda: real_time_ns() + int(wrong_s() * 1e9)
from semtask.cli.main import main
sys.argv = ["semtask", "daemon"]
main()
"""
# A fault that the harness must find.
WALL_CLOCK_TIMEOUTS = """
import asyncio
from semtask.engine.attempt import Attempts

async def end_at(self, job, at):
    while self._clock.now_ms() < at:
        await self._clock.wait_until(at, asyncio.Event())
    self._on_timeout(job)

def start_timer(self, job):
    if job.timeout_ms is not None:
        return asyncio.create_task(end_at(self, job, self._clock.now_ms() + job.timeout_ms))

Attempts._start_timer = start_timer
"""
HOUR_S = 3600.0


def wrong_clock(folder: Path, seconds: float, fault: str = "") -> Daemon:
    """A daemon that has not been started yet."""
    (folder / "wrong_clock.py").write_text(fault + WRONG_CLOCK)
    daemon = Daemon(folder / "home", PYTHONPATH=str(folder))
    daemon.entry = ("wrong_clock",)
    daemon.home.mkdir(mode=0o700)
    set_clock(daemon, seconds)
    return daemon


def set_clock(daemon: Daemon, seconds: float) -> None:
    (daemon.home / "clock.new").write_text(str(seconds))
    (daemon.home / "clock.new").rename(daemon.home / "clock")


def test_only_what_is_bound_to_the_wall_clock_heeds_that_it_is_set(tmp_path: Path) -> None:
    """Back by an hour, and then three days on, as at the first contact with a time server, or after a long sleep."""
    assert set_back_and_on(wrong_clock(tmp_path, 0.0)) == "RUNNING"


def test_the_harness_sees_timeouts_on_the_wall_clock(tmp_path: Path) -> None:
    assert set_back_and_on(wrong_clock(tmp_path, 0.0, WALL_CLOCK_TIMEOUTS)) == "FAILED"


def set_back_and_on(daemon: Daemon) -> str:
    """What has become of a job with a timeout that is not over."""
    try:
        daemon.start()
        now = time.time_ns() // 1_000_000
        runs = daemon.command("sleep", "600", queue="runs", timeout_ms=600_000, grace_ms=100)
        due = daemon.command("sleep", "600", queue="due", deadline=now + 24 * 3600_000, grace_ms=100)
        daemon.rpc("queues.pause.v1", queue="paused")
        stale = daemon.command("true", queue="paused", ttl_ms=24 * 3600_000)
        later = daemon.command("true", queue="later", schedule={"type": "AFTER", "delay_ms": 24 * 3600_000})
        eventually(lambda: daemon.job(runs)["pid"] and daemon.job(due)["pid"])
        set_clock(daemon, -HOUR_S)
        daemon.wait(daemon.command("true"))
        assert [daemon.job(job)["state"] for job in (runs, due, stale, later)] == [
            *("RUNNING", "RUNNING", "QUEUED", "SCHEDULED")
        ]
        set_clock(daemon, 72 * HOUR_S)
        ends = [(job["state"], job["end_cause"], job["attempts"]) for job in daemon.wait(due, stale, later)]
        assert ends == [("FAILED", "deadline", 1), ("SKIPPED_TTL", "ttl", 0), ("DONE", "success", 1)]
        set_clock(daemon, 0.0)
        daemon.wait(daemon.command("true"))
        assert daemon.job(later)["claim_no"] == 1
        return str(daemon.job(runs)["state"])
    finally:
        stop_for_certain(daemon)


def test_jobs_run_and_times_wait_where_the_clock_stands_at_1970(tmp_path: Path) -> None:
    daemon = wrong_clock(tmp_path, -time.time())
    try:
        daemon.start()
        # A time of another machine, in a future that is more than fifty years away.
        at = {"type": "AT", "scheduled_at": time.time_ns() // 1_000_000}
        waits = daemon.command("true", queue="later", schedule=at)
        soon = daemon.command("true", schedule={"type": "AFTER", "delay_ms": 200})
        flaky = daemon.command("false", max_attempts=2, retry_base_delay_ms=50)
        stopped = daemon.command("sleep", "60", timeout_ms=200, grace_ms=100)
        done, failed, timed = daemon.wait(soon, flaky, stopped)
        assert done["state"] == "DONE"
        assert done["created_at"] < done["finished_at"] < 600_000
        assert (failed["state"], failed["attempts"]) == ("FAILED", 2)
        assert timed["end_cause"] == "timeout"
        assert daemon.job(waits)["state"] == "SCHEDULED"
        daemon.kill()
        daemon.start()
        assert daemon.job(waits)["state"] == "SCHEDULED"
    finally:
        stop_for_certain(daemon)


# --- records of another version --------------------------------------------------------------------------------------


@contextmanager
def ended_unseen(daemon: Daemon, folder: Path) -> Iterator[tuple[str, Path]]:
    """A job that ended with exit code 5 while the daemon could not see it, and its record; the daemon is dead."""
    gate = folder / "gate"
    os.mkfifo(gate)
    job_id = daemon.command("sh", "-c", f"echo x >> {folder}/ran; read x < {gate}; exit 5", on_interrupt="requeue")
    eventually((folder / "ran").exists)
    os.kill(daemon.pid, signal.SIGSTOP)
    gate.write_text("go\n")
    record = daemon.home / "attempts" / f"{job_id}.1" / "record"
    eventually(record.exists, what="the shim has written its record")
    daemon.kill()
    yield job_id, record


def older(body: bytes) -> bytes:
    """As before shims noted how much memory a command had."""
    changed = re.sub(rb"^max_rss_kib .*\n", b"", body, flags=re.MULTILINE)
    assert changed != body
    return changed


def newer(body: bytes) -> bytes:
    """With something that this release does not know, as after a way back from an upgrade."""
    return body + b"cpu_ms 17\n"


@pytest.mark.parametrize("change", [older, newer])
def test_a_record_of_another_version_counts(tmp_path: Path, change: object) -> None:
    assert callable(change)
    with running_daemon(tmp_path / "home") as daemon, ended_unseen(daemon, tmp_path) as (job_id, record):
        body, _, _ = record.read_bytes().rpartition(b"crc32 ")
        body = change(body)
        record.write_bytes(body + b"crc32 %08x\n" % binascii.crc32(body))
        daemon.start()
        [job] = daemon.wait(job_id)
        assert (job["state"], job["exit_code"], job["claim_no"]) == ("FAILED", 5, 1)
        assert (tmp_path / "ran").read_text() == "x\n"


# --- a release that is replaced under the daemon ---------------------------------------------------------------------


def test_a_daemon_goes_on_when_its_package_is_removed_under_it(tmp_path: Path) -> None:
    """An upgrade in place takes the files away; daemon, launcher and shims have everything they need."""
    release = tmp_path / "release"
    shutil.copytree(Path(semtask.__file__).parent, release / "semtask", ignore=shutil.ignore_patterns("__pycache__"))
    daemon = Daemon(tmp_path / "home", PYTHONPATH=str(release))
    try:
        daemon.start()
        loaded = Path(f"/proc/{daemon.pid}/cmdline").read_bytes()
        assert os.fsencode(sys.executable) in loaded
        running = daemon.command("sleep", "600", queue="long", grace_ms=100, timeout_ms=600_000)
        eventually(lambda: daemon.job(running)["pid"])
        shutil.rmtree(release)
        jobs = [
            daemon.command("sh", "-c", "echo served; exit 3", max_attempts=2, retry_base_delay_ms=20),
            daemon.command("/no/such/program", queue="a"),
            daemon.command("sleep", "60", queue="b", timeout_ms=100, grace_ms=100),
        ]
        ends = [(job["state"], job["end_cause"]) for job in daemon.wait(*jobs)]
        assert ends == [("FAILED", "exit_code"), ("FAILED", "spawn_failed"), ("FAILED", "timeout")]
        assert daemon.log(jobs[0]) == "served\n"
        for method in ("admin.stats.v1", "queues.list.v1", "workers.list.v1", "rpc.discover"):
            daemon.rpc(method)
        daemon.rpc("admin.maintenance.v1", force_vacuum=True)
        assert daemon.get("/metrics")[0] == 200
        daemon.rpc("dev.cancel.v1", job_id=running)
        assert daemon.wait(running)[0]["state"] == "CANCELLED"
        assert daemon.terminate() == 0
        assert "Error" not in daemon.stderr()
    finally:
        stop_for_certain(daemon)


# --- a copied home ---------------------------------------------------------------------------------------------------


def by_file_tool(daemon: Daemon, copied: Path) -> None:
    os.kill(daemon.pid, signal.SIGSTOP)  # so that the copy is of one moment
    shutil.copytree(daemon.home, copied, ignore=shutil.ignore_patterns("*.sock"))
    os.kill(daemon.pid, signal.SIGCONT)


def by_backup(daemon: Daemon, copied: Path) -> None:
    backup = str(copied.with_suffix(".db"))
    for home, what in ((daemon.home, "backup"), (copied, "restore")):
        argv = [sys.executable, "-m", "semtask", "db", what, backup]
        subprocess.run(argv, env=Daemon(home).env, check=True, capture_output=True)
    shutil.copy2(daemon.home / "apps.json", copied)


@pytest.mark.parametrize("copy_home", [by_file_tool, by_backup])
def test_a_copy_of_a_home_judges_its_jobs_and_leaves_the_original_alone(
    tmp_path: Path, copy_home: Callable[[Daemon, Path], None]
) -> None:
    write_apps(tmp_path / "home")
    with running_daemon(tmp_path / "home") as daemon:
        again = daemon.command("sleep", "600", queue="a", on_interrupt="requeue")
        once = daemon.command("sleep", "600", queue="b")
        task = enqueue(daemon, "witness", {"folder": str(tmp_path), "name": "task"}, queue="c", on_interrupt="fail")
        jobs = (again, once, task)
        eventually((tmp_path / "task.pid").exists)
        eventually(lambda: daemon.job(again)["pid"] and daemon.job(once)["pid"])
        pids = [daemon.job(again)["pid"], daemon.job(once)["pid"], int((tmp_path / "task.pid").read_text())]
        copied = tmp_path / "copied"
        copy_home(daemon, copied)
        with running_daemon(copied) as copy:
            assert [job["end_cause"] for job in copy.wait(once, task)] == ["interrupted", "interrupted"]
            started = eventually(lambda: running(copy, again))
            assert (started["claim_no"], started["interruptions"]) == (2, 1)
        assert all(map(alive, pids))
        assert {daemon.job(job)["state"] for job in jobs} == {"RUNNING"}


def running(daemon: Daemon, job_id: str) -> Json | None:
    job = daemon.job(job_id)
    return job if job["state"] == "RUNNING" and job["pid"] else None
