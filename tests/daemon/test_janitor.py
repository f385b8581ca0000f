"""What a real daemon does about history that has grown old, and about what a crash left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from semtask.config.settings import Settings
from semtask.executors.output import LogFiles
from semtask.host.filesystem import make_private
from semtask.model.job import Job
from semtask.store.sqlite import open_store
from tests.daemon.rig import Daemon, eventually, running_daemon
from tests.store.harness import Opened, new_id, new_job

DAY_MS = 86_400_000


def make_history(home: Path, count: int, *, days_ago: float, logs: bool = True, payload: str = "{}") -> list[str]:
    """Jobs that were done so many days ago, each with a log. Returns their ids, oldest first."""
    settings = Settings(home=home)
    make_private(home)
    then = round(time.time() * 1000 - days_ago * DAY_MS)
    files = LogFiles(settings.logs_dir / "jobs")
    jobs = [new_job(queue="old", created_at=then, payload=payload) for _ in range(count)]

    async def fill() -> None:
        store = await open_store(settings.database, on_commit=lambda _: None, now=lambda: then, fatal=lambda _: None)
        opened = Opened(store, [], [])
        for start in range(0, count, 1000):
            await opened.insert(*jobs[start : start + 1000])
            claimed = await opened.claim({"old": 1000}, limit=1000, now=then)
            await asyncio.gather(*(end(opened, job) for job in claimed))
        await store.close()

    async def end(opened: Opened, job: Job) -> None:
        if logs:
            path = files.path(job.job_id, job.claim_no)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.write_text("said\n")
        await opened.finish(job, now=then)

    asyncio.run(fill())
    return [job.job_id for job in jobs]


def logs_of(daemon: Daemon) -> set[str]:
    return {path.name for path in (daemon.home / "logs" / "jobs").rglob("*") if path.is_file()}


def folders_in(attempts: Path) -> set[str]:
    return {path.name for path in attempts.iterdir() if not path.name.startswith(".")}


def test_old_jobs_and_their_logs_go_when_the_daemon_starts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_history(home, 300, days_ago=8)
    young = make_history(home, 5, days_ago=6)
    with running_daemon(home) as daemon:
        eventually(lambda: daemon.stats()["total_jobs"] == 5, what="the old jobs are deleted")
        eventually(lambda: logs_of(daemon) == {f"{job_id}.1.log" for job_id in young})
        assert {daemon.job(job_id)["state"] for job_id in young} == {"DONE"}
        assert daemon.stats()["done_jobs"] == 5


def test_days_of_zero_keep_everything(tmp_path: Path) -> None:
    make_history(tmp_path / "home", 10, days_ago=3000)
    with running_daemon(tmp_path / "home", SEMANTICA_RETENTION_DAYS="0") as daemon:
        assert daemon.rpc("admin.maintenance.v1")["jobs_deleted"] == 0
        assert daemon.stats()["total_jobs"] == 10


def test_kill_9_in_the_middle_of_a_purge_leaves_nothing_half_done(tmp_path: Path) -> None:
    home, count = tmp_path / "home", 6000
    make_history(home, count, days_ago=8)
    with running_daemon(home) as daemon:
        left = eventually(lambda: (n := daemon.stats()["total_jobs"]) < count and n, what="the purge has begun")
        daemon.kill()
        assert 0 < left < count
        daemon.start()
        stats = daemon.stats()
        assert stats["total_jobs"] == stats["done_jobs"]
        eventually(lambda: daemon.stats()["total_jobs"] == 0, what="the next daemon goes on")
        eventually(lambda: not logs_of(daemon), within=40, what="logs whose row had gone before the kill are found")
        assert daemon.terminate() == 0
    check = "import apsw,sys; db=apsw.Connection(sys.argv[1]); print(db.pragma('integrity_check'))"
    verdict = subprocess.run(
        [sys.executable, "-c", check, str(home / "meta.db")], capture_output=True, text=True, check=True
    )
    assert verdict.stdout == "ok\n"


def test_maintenance_makes_the_database_small_while_work_goes_on(tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_history(home, 3000, days_ago=8, logs=False, payload='{"x": "' + "x" * 3000 + '"}')
    with running_daemon(home) as daemon:
        over = threading.Event()
        answers: list[str] = []

        def work() -> None:
            while not over.is_set():
                answers.append(daemon.wait(daemon.command("true"))[0]["state"])

        worker = threading.Thread(target=work)
        worker.start()
        done = daemon.rpc("admin.maintenance.v1", force_vacuum=True)
        over.set()
        worker.join()
        # The pass of the start may have deleted some of them before.
        assert done["jobs_deleted"] <= 3000
        assert daemon.stats()["total_jobs"] == len(answers)
        assert set(answers) == {"DONE"}
        assert done["db_size_before"] > 5_000_000 > 1_000_000 > done["db_size_after"]
        assert done["vacuum_run"]


def test_the_database_stays_below_its_size(tmp_path: Path) -> None:
    """The oldest go first, soon after the limit is passed, not only every hour."""
    with running_daemon(tmp_path / "home", SEMANTICA_MAX_DB_SIZE_MB="2") as daemon:
        first = daemon.command("true", env={"X": "x" * 100_000})
        for _ in range(6):
            last = [daemon.command("true", env={"X": "x" * 100_000}) for _ in range(10)]
            # Not by their ids: on a slow machine the first of them are deleted before the last ones have ended.
            eventually(lambda: (now := daemon.stats())["queued_jobs"] + now["running_jobs"] == 0)
        eventually(lambda: daemon.stats()["db_size_bytes"] <= 2 * 2**20, within=30, what="it is small again")
        assert daemon.job(last[-1])["state"] == "DONE"
        assert 5 < daemon.stats()["total_jobs"] < 25
        found = daemon.rpc("dev.query_jobs.v1", sort="oldest", limit=1)["items"]
        assert found[0]["job_id"] != first


def test_a_silent_job_leaves_no_log_and_no_folder(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        silent, split = daemon.command("true"), daemon.command("sh", "-c", "echo x >&2", stderr="split")
        daemon.wait(silent, split)
        eventually(lambda: logs_of(daemon) == {f"{split}.1.err"}, what="only what has content stays")
        assert daemon.log(silent) == ""
        eventually(lambda: not folders_in(daemon.home / "attempts"))


def test_folders_that_a_crash_left_behind_go_and_those_of_running_jobs_stay(tmp_path: Path) -> None:
    """The daemon dies between the commit of a finish and the removal of the folder."""
    attempts = tmp_path / "home" / "attempts"
    [done] = make_history(tmp_path / "home", 1, days_ago=1)
    for name in (f"{done}.1", f"{new_id()}.4"):
        (attempts / name).mkdir(mode=0o700, parents=True)
        (attempts / name / "lock").touch(mode=0o600)
        (attempts / name / "record").touch(mode=0o600)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sh", "-c", f"read x < {gate}")
        eventually(lambda: folders_in(attempts) == {f"{job_id}.1"})
        daemon.rpc("admin.maintenance.v1")
        assert (attempts / f"{job_id}.1" / "lock").exists()
        gate.write_text("go\n")
        assert daemon.wait(job_id)[0]["state"] == "DONE"


def test_a_purge_is_stopped_by_the_end_of_the_daemon(tmp_path: Path) -> None:
    make_history(tmp_path / "home", 6000, days_ago=8, logs=False)
    with running_daemon(tmp_path / "home") as daemon:
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(10) == 0
        assert "Traceback" not in daemon.stderr()
