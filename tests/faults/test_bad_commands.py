"""Commands that behave badly in a way of their own: what they do ends with them and hurts nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, alive, eventually, processes_of, running_daemon

SMALL_MIB = 8
LIMIT = 150


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with running_daemon(tmp_path / "home", SEMANTICA_MAX_PROCESSES="4") as daemon:
        yield daemon


def test_a_command_that_closes_its_output_runs_on(daemon: Daemon, tmp_path: Path) -> None:
    """The end of the output is not the end of the command."""
    go = tmp_path / "go"
    script = f"echo before; exec >&- 2>&-; touch {tmp_path}/closed; while [ ! -e {go} ]; do sleep 0.02; done; exit 3"
    job_id = daemon.command("sh", "-c", script)
    eventually((tmp_path / "closed").exists)
    tail = daemon.rpc("logs.tail.v1", job_id=job_id, offset=7, wait_ms=300)
    assert (tail["chunk"], tail["eof"]) == ("", False)
    assert daemon.job(job_id)["state"] == "RUNNING"
    go.touch()
    [job] = daemon.wait(job_id)
    assert (job["exit_code"], daemon.log(job_id)) == (3, "before\n")


@pytest.mark.parametrize("limit", ["timeout", "deadline"])
def test_the_time_of_a_stopped_command_runs_out(daemon: Daemon, limit: str) -> None:
    at = {"timeout_ms": 800} if limit == "timeout" else {"deadline": time.time_ns() // 1_000_000 + 800}
    job_id = daemon.command("sleep", "600", grace_ms=5000, **at)
    pid = eventually(lambda: daemon.job(job_id)["pid"])
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    [job] = daemon.wait(job_id)
    assert job["end_cause"] == limit
    assert time.monotonic() - began < 4, "it is continued, so that SIGTERM ends it before its grace is over"
    assert not alive(pid)


def test_a_fork_bomb_within_its_limit_leaves_the_daemon_quick_and_dies_whole(daemon: Daemon, tmp_path: Path) -> None:
    """Every process of it makes others for ever, in sessions of their own, up to a number of them."""
    marks = tmp_path / "marks"
    marks.mkdir()
    bomb = (
        f'[ "$(ls {marks} | wc -l)" -lt {LIMIT} ] || exec sleep 600\n'
        f"trap '' TERM\ntouch {marks}/$$\n"
        'setsid sh -c "$0" "$0" & setsid sh -c "$0" "$0" & sleep 600'
    )
    job_id = daemon.command("sh", "-c", bomb, bomb, queue="bomb", grace_ms=0)
    eventually(lambda: len(os.listdir(marks)) >= LIMIT, within=40)
    began = time.monotonic()
    assert daemon.wait(daemon.command("echo", "served"))[0]["state"] == "DONE"
    assert time.monotonic() - began < 10
    daemon.rpc("dev.cancel.v1", job_id=job_id)
    assert daemon.wait(job_id)[0]["state"] == "CANCELLED"
    assert not [cmdline for cmdline in processes_of(daemon.home).values() if "sleep" in cmdline or "setsid" in cmdline]


@pytest.fixture
def small_logs(tmp_path: Path) -> Iterator[Path]:
    """The folder of the logs is a disk of its own, and a small one."""
    folder = tmp_path / "home" / "logs"
    folder.mkdir(parents=True, mode=0o700)
    folder.parent.chmod(0o700)
    tmpfs = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m,mode=0700", "semtask-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(tmpfs, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_the_full_disk_of_its_log_stops_neither_a_command_nor_the_daemon(small_logs: Path, tmp_path: Path) -> None:
    with running_daemon(tmp_path / "home") as daemon:
        script = f"head -c {2 * SMALL_MIB << 20} /dev/zero; echo $? > {tmp_path}/code; exit 9"
        writer = daemon.command("sh", "-c", script, stderr="split")
        [job] = daemon.wait(writer)
        assert (job["state"], job["exit_code"]) == ("FAILED", 9)
        assert (tmp_path / "code").read_text() == "0\n", "what the log cannot take is dropped"
        assert daemon.get("/readyz")[0] == 200
        assert daemon.wait(daemon.command("sh", "-c", "exit 5"))[0]["exit_code"] == 5
        assert daemon.stats()["failed_jobs"] == 2
