"""What must not go wrong between daemon, launcher and shims when something outside takes a hand."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, alive, eventually, running_daemon, stop_for_certain
from tests.daemon.test_recovery import helpers_of, launcher_of

FEW = 10  # fewer than a daemon has open anyway


@contextmanager
def without_descriptors(pid: int) -> Iterator[None]:
    """A process that can open nothing more."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (FEW, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("lost", [False, True], ids=["ended", "shim killed"])
def test_an_end_without_descriptors_is_told_when_there_are_some(daemon: Daemon, tmp_path: Path, lost: bool) -> None:
    gate = tmp_path / "gate"
    script = f"while [ ! -e {gate} ]; do sleep 0.05; done; exit 3"
    jobs = [daemon.command("sh", "-c", script, queue=f"q{n}") for n in range(3)]
    eventually(lambda: all(daemon.job(job)["pid"] for job in jobs))
    shims = [pid for pid, parent in helpers_of(daemon).items() if parent != daemon.pid]
    with without_descriptors(daemon.pid):
        if lost:
            for shim in shims:
                os.kill(shim, signal.SIGKILL)
        gate.touch()
        eventually(lambda: not any(map(alive, shims)))
        daemon_looked_at_them(daemon)
    for job in daemon.wait(*jobs):
        end = (job["state"], job["end_cause"], job["exit_code"])
        assert end == (("FAILED", "worker_crash", None) if lost else ("FAILED", "exit_code", 3)), job
    assert daemon.stats()["system"]["running_processes"] == 0


def daemon_looked_at_them(daemon: Daemon) -> None:
    eventually(lambda: "Too many open files" in daemon.stderr())


def test_a_start_without_descriptors_happens_once(daemon: Daemon, tmp_path: Path) -> None:
    """The answer of the launcher loses the descriptor that came with it: is the command running, or not?"""
    starts, gate = tmp_path / "starts", tmp_path / "gate"
    launcher = launcher_of(daemon)
    os.kill(launcher, signal.SIGSTOP)
    job_id = daemon.command("sh", "-c", f"echo $$ >> {starts}; while [ ! -e {gate} ]; do sleep 0.05; done")
    eventually(lambda: list((daemon.home / "attempts").glob(f"{job_id}.*")))
    eventually(lambda: daemon.job(job_id)["state"] == "RUNNING")
    with without_descriptors(daemon.pid):
        os.kill(launcher, signal.SIGCONT)
        eventually(starts.exists)
        time.sleep(0.3)  # what the daemon makes of it is nowhere to be seen
    time.sleep(1.5)  # longer than the pause after a start that failed
    gate.touch()
    [job] = daemon.wait(job_id)
    assert (job["state"], job["claim_no"]) == ("DONE", 1), daemon.stderr()
    assert len(starts.read_text().split()) == 1


def test_a_child_from_before_the_daemon_is_left_alone(tmp_path: Path) -> None:
    """A script may leave helpers behind and then exec the daemon; after that they are its children."""
    daemon = Daemon(tmp_path / "home")
    pids = tmp_path / "pids"
    script = f'setsid sh -c \'echo $$ > "{pids}"; sleep 300 & echo $! >> "{pids}"; wait\' & exec "$@"'
    with (tmp_path / "home.stderr").open("ab") as stderr:
        daemon.process = subprocess.Popen(
            ["sh", "-c", script, "sh", sys.executable, "-m", "semtask", "daemon"],
            env=daemon.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    strangers = []
    try:
        daemon.wait_ready()
        strangers = [
            int(pid) for pid in eventually(lambda: len(pids.read_text().split()) == 2 and pids.read_text()).split()
        ]
        leave = tmp_path / "leave"
        job_id = daemon.command(
            "sh", "-c", f"setsid sleep 300 & echo $! > {leave}.new; mv {leave}.new {leave}; sleep 300"
        )
        ours = int(eventually(lambda: leave.exists() and leave.read_text()))
        os.kill(strangers[0], signal.SIGKILL)  # the second one has no other parent now than the daemon
        for helper in sorted(helpers_of(daemon), key=lambda pid: pid != launcher_of(daemon)):
            os.kill(helper, signal.SIGKILL)
        assert daemon.wait(job_id)[0]["end_cause"] == "worker_crash"
        assert not alive(ours)
        assert alive(strangers[1])
    finally:
        for pid in strangers:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        stop_for_certain(daemon)


def test_removed_attempt_folders_do_not_make_a_job_start_twice(tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    with running_daemon(tmp_path / "home") as daemon:
        job_id = daemon.command("sh", "-c", f"trap '' TERM; echo $$ >> {starts}; sleep 300 & wait; sleep 300")
        eventually(lambda: daemon.job(job_id)["pid"])
        [command] = map(int, starts.read_text().split())
        for folder in (daemon.home / "attempts").glob("[0-9]*"):
            shutil.rmtree(folder)
        daemon.kill()
        daemon.start()
        [job] = daemon.wait(job_id)
        assert (job["state"], job["end_cause"], job["attempts"]) == ("FAILED", "interrupted", 1)
        assert not alive(command)
        assert starts.read_text().split() == [str(command)]


def test_work_goes_on_after_the_attempts_folder_was_removed(daemon: Daemon, tmp_path: Path) -> None:
    for _ in range(3):
        daemon.wait(daemon.command("true"))
    gate = tmp_path / "gate"
    ended = daemon.command("sh", "-c", f"while [ ! -e {gate} ]; do sleep 0.05; done", queue="a")
    stopped = daemon.command("sleep", "300", queue="b", grace_ms=500)
    eventually(lambda: all(daemon.job(job)["pid"] for job in (ended, stopped)))
    shutil.rmtree(daemon.home / "attempts")
    os.kill(launcher_of(daemon), signal.SIGKILL)
    daemon.rpc("dev.cancel.v1", job_id=stopped)
    gate.touch()
    [lost, cancelled] = daemon.wait(ended, stopped)
    # Nobody could write down how it ended.
    assert (lost["state"], lost["end_cause"]) == ("FAILED", "worker_crash")
    assert cancelled["state"] == "CANCELLED"
    assert daemon.wait(daemon.command("true"))[0]["state"] == "DONE"
