"""kill -9 of the daemon under running tasks: all of them are requeued and done, none is twice at once."""

from __future__ import annotations

from pathlib import Path

from tests.daemon.rig import Daemon, eventually, processes_of, running_daemon, stop_for_certain
from tests.daemon.test_isolation import enqueue, write_apps

TASKS = 50


def test_a_daemon_killed_with_fifty_tasks_running(tmp_path: Path) -> None:
    home, proof = tmp_path / "home", tmp_path / "proof"
    proof.mkdir()
    write_apps(home)
    daemon = Daemon(home, SEMANTICA_MAX_PROCESSES=str(TASKS)).start()
    try:
        daemon.rpc("queues.configure.v1", queue="slow", concurrency=TASKS)
        ids = [enqueue(daemon, "witness", {"folder": str(proof), "name": f"{n}"}, queue="slow") for n in range(TASKS)]
        eventually(lambda: len(list(proof.glob("*.pid"))) == TASKS, within=60, what="all fifty run")
        assert daemon.stats()["running_jobs"] == TASKS
        daemon.kill()
        daemon.start()
        (proof / "go").touch()
        jobs = daemon.wait(*ids, timeout_ms=60_000)
        assert {job["state"] for job in jobs} == {"DONE"}
        assert {job["interruptions"] for job in jobs} == {1}
        assert {job["failures"] + job["crashes"] for job in jobs} == {0}
        assert len(list(proof.glob("*.done"))) == TASKS
        assert not list(proof.glob("*.overlap"))
        # The workers of the former daemon are gone, and so are their folders.
        eventually(
            lambda: len(list((home / "attempts").glob("worker-*"))) == len(daemon.rpc("workers.list.v1")["workers"])
        )
    finally:
        stop_for_certain(daemon)


def test_a_task_that_may_start_only_once_is_not_started_again(tmp_path: Path) -> None:
    home, proof = tmp_path / "home", tmp_path / "proof"
    proof.mkdir()
    write_apps(home)
    daemon = Daemon(home).start()
    try:
        job_id = enqueue(
            daemon,
            "witness",
            {"folder": str(proof), "name": "once"},
            queue="slow",
            on_interrupt="fail",
        )
        eventually((proof / "once.pid").exists)
        daemon.kill()
        eventually(lambda: not processes_of(home), what="the workers die with their daemon")
        (proof / "go").touch()
        daemon.start()
        [job] = daemon.wait(job_id)
        assert (job["state"], job["end_cause"], job["attempts"]) == ("FAILED", "interrupted", 1)
        assert not (proof / "once.done").exists()
    finally:
        stop_for_certain(daemon)


def test_a_shutdown_lets_tasks_end_or_requeues_them(tmp_path: Path) -> None:
    home, ending, staying = tmp_path / "home", tmp_path / "ending", tmp_path / "staying"
    ending.mkdir()
    staying.mkdir()
    write_apps(home)
    with running_daemon(home) as daemon:
        short = enqueue(daemon, "witness", {"folder": str(ending), "name": "short"}, queue="slow")
        long = enqueue(daemon, "witness", {"folder": str(staying), "name": "long"}, queue="slow")
        eventually(lambda: (ending / "short.pid").exists() and (staying / "long.pid").exists())
        assert daemon.process is not None
        daemon.process.terminate()
        (ending / "go").touch()
        eventually((ending / "short.done").exists)
        eventually(lambda: "stopping" in (home / "logs" / "daemon.log").read_text(), what="the first signal was taken")
        daemon.process.terminate()
        assert daemon.process.wait(20) == 0
        daemon.start()
        assert daemon.job(short)["state"] == "DONE"
        job = eventually(lambda: (j := daemon.job(long))["state"] == "RUNNING" and j)
        assert (job["interruptions"], job["claim_no"]) == (1, 2)
        (staying / "go").touch()
        daemon.wait(long)
