"""Processes that stand still at a bad time: the daemon itself, a worker that nothing can interrupt, a command in the
hands of the kernel.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from tests.daemon.rig import alive, eventually, processes_of, running_daemon
from tests.daemon.test_isolation import enqueue, write_apps
from tests.faults.hanging_disk import hanging_disk
from tests.harness.processes import by_kind

STOPPED_S = 3.0


def test_a_daemon_that_was_stopped_kills_nothing_when_it_goes_on(tmp_path: Path) -> None:
    """A worker had less time to start than the daemon was stopped, and jobs have ended and gone on meanwhile."""
    home, go = tmp_path / "home", tmp_path / "go"
    write_apps(home)
    settings = home / ".config" / "semtask" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"worker_start_timeout_ms = {STOPPED_S * 1000 - 500:.0f}\n")
    with running_daemon(home, SEMANTICA_MAX_PROCESSES="4") as daemon:
        ended = daemon.command("sleep", "1", queue="ended", timeout_ms=60_000)
        goes_on = daemon.command("sh", "-c", f"while [ ! -e {go} ]; do sleep 0.05; done", queue="on")
        task = enqueue(daemon, "witness", {"folder": str(tmp_path), "name": "task"}, queue="task")
        eventually((tmp_path / "task.pid").exists)
        eventually(lambda: daemon.job(goes_on)["pid"] and daemon.job(ended)["pid"])
        worker = int((tmp_path / "task.pid").read_text())
        starting = enqueue(daemon, "witness", {"folder": str(tmp_path), "name": "starting"}, queue="task2")
        os.kill(daemon.pid, signal.SIGSTOP)
        time.sleep(STOPPED_S)  # the time passes
        os.kill(daemon.pid, signal.SIGCONT)
        assert daemon.job(task)["state"] == "RUNNING"
        go.touch()
        jobs = daemon.wait(ended, goes_on, task, starting)
        assert [(job["state"], job["claim_no"], job["attempts"]) for job in jobs] == [("DONE", 1, 1)] * 4
        assert (tmp_path / "task.done").exists()
        assert alive(worker)
        assert "did not start" not in daemon.stderr()


def test_a_worker_that_nothing_can_interrupt_dies_with_its_daemon(tmp_path: Path) -> None:
    home = tmp_path / "home"
    write_apps(home)
    with running_daemon(home) as daemon:
        job_id = enqueue(daemon, "hold_the_gil", on_interrupt="fail", grace_ms=500)
        eventually(lambda: any(busy(pid) for pid in by_kind(home)["worker"]))
        daemon.kill()
        eventually(lambda: not processes_of(home), within=8, what="its shim has killed it")
        daemon.start()
        [job] = daemon.wait(job_id)
        assert (job["state"], job["end_cause"]) == ("FAILED", "interrupted")


def busy(pid: int) -> bool:
    """Whether it has used more than a second of CPU: an import of the app takes less."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) > os.sysconf("SC_CLK_TCK")


def test_a_command_that_the_kernel_holds_keeps_its_slot_until_it_is_gone(tmp_path: Path) -> None:
    """In state D, by a file system that does not answer: SIGKILL has no effect."""
    with running_daemon(tmp_path / "home") as daemon, hanging_disk(tmp_path / "disk") as disk:
        daemon.rpc("queues.configure.v1", queue="one", concurrency=1)
        stuck = daemon.command("cat", str(disk.path / "file"), queue="one", grace_ms=100, on_interrupt="requeue")
        disk.await_request()
        pid = eventually(lambda: daemon.job(stuck)["pid"])
        daemon.rpc("dev.cancel.v1", job_id=stuck)
        waits = daemon.command("true", queue="one")
        eventually(lambda: daemon.job(stuck)["kill_failed_at"], within=20, what="it is told that it cannot be killed")
        assert state_of(pid) == "D"
        job = daemon.job(stuck)
        assert (job["state"], job["stop_reason"], job["claim_no"]) == ("RUNNING", "cancel", 1)
        assert daemon.job(waits)["state"] == "QUEUED"
        daemon.wait(daemon.command("true", queue="other"))
        disk.end()
        cancelled, done = daemon.wait(stuck, waits)
        assert (cancelled["state"], done["state"]) == ("CANCELLED", "DONE")
        assert not alive(pid)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
