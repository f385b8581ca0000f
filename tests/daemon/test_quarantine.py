"""A job that brings its worker down each time ends in quarantine, with what is needed to find out why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import apsw

from tests.cli.rig import Shell
from tests.daemon.rig import Daemon, eventually, processes_of, running_daemon, stop_for_certain

APP = """
import ctypes
from semtask import Semantica

app = Semantica()

@app.task(retry_on_crash=True)
def poison(size: int):
    kept = bytearray(size)
    kept[::4096] = b"x" * len(kept[::4096])
    print("about to fall over")
    ctypes.string_at(0)
"""


def test_the_third_crash_of_a_task_leaves_evidence(tmp_path: Path) -> None:
    (tmp_path / "pills.py").write_text(APP)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    app = {"module": "pills:app", "directory": str(tmp_path), "python": sys.executable}
    (home / "apps.json").write_text(json.dumps({"apps": {"pills": app}}))
    (home / "apps.json").chmod(0o600)
    with running_daemon(home) as daemon:
        job_id = str(
            daemon.rpc(
                "dev.enqueue.v1",
                job_type="pills:poison",
                execution_mode="IN_PROCESS",
                payload={"size": 150_000_000},
                retry_on_crash=True,
                retry_base_delay_ms=1,
            )["job_id"]
        )
        daemon.wait(job_id)
        job = daemon.job(job_id, "attempts", "result")
        assert (job["state"], job["end_cause"], job["crashes"], job["signal"]) == ("FAILED", "quarantined", 3, 11)
        assert job["error"].startswith("crashed 3 times, the last time: its worker was ended by signal 11 (SIGSEGV)")
        evidence = job["exception"]["traceback"]
        assert "Fatal Python error: Segmentation fault" in evidence
        assert "in poison" in evidence
        assert "The last lines of its log:\n  " in evidence
        assert "about to fall over" in evidence
        megabytes = int(evidence.partition("Most memory of its worker: ")[2].split()[0])
        assert 143 <= megabytes < 400
        assert [attempt["end_cause"] for attempt in job["attempts_list"]] == [
            "worker_crash",
            "worker_crash",
            "quarantined",
        ]
        shown = Shell(home)("show", job_id).out
        assert "about to fall over" in shown
        assert "Most memory of its worker" in shown


def test_the_third_crash_of_a_command_leaves_the_end_of_its_log(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        line = "echo about to lose its shim; kill -9 $PPID; sleep 60"
        job_id = daemon.command("sh", "-c", line, retry_on_crash=True, retry_base_delay_ms=1)
        [job] = daemon.wait(job_id)
        assert (job["end_cause"], job["crashes"]) == ("quarantined", 3)
        assert "about to lose its shim" in daemon.job(job_id, "result")["exception"]["traceback"]
        assert "about to lose its shim" in Shell(daemon.home)("show", job_id).out


def test_the_last_interruption_leaves_the_end_of_its_log_and_its_memory(tmp_path: Path) -> None:
    """The row says that there were twenty before: so many kills take too long."""
    daemon = Daemon(tmp_path / "home").start()
    try:
        line = "import time; kept = b'x' * 150_000_000; print('before the end', flush=True); time.sleep(600)"
        job_id = daemon.command(sys.executable, "-c", line, on_interrupt="requeue")
        eventually(lambda: "before the end" in daemon.log(job_id))
        daemon.kill()
        eventually(lambda: not processes_of(daemon.home))
        with apsw.Connection(str(daemon.home / "meta.db")) as db:
            db.execute("UPDATE jobs SET interruptions = 20")
        daemon.start()
        [job] = daemon.wait(job_id)
        assert (job["state"], job["end_cause"]) == ("FAILED", "quarantined")
        assert job["error"].startswith("interrupted 21 times")
        evidence = daemon.job(job_id, "result")["exception"]["traceback"]
        assert "before the end" in evidence
        assert 143 <= int(evidence.partition("Most memory of the command: ")[2].split()[0]) < 400
    finally:
        stop_for_certain(daemon)
