"""The daemon watches itself, and lets a service manager watch it. There is no systemd here: its side is made up."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.daemon.rig import Daemon, eventually, stop_for_certain

# The unmodified daemon, but for one duty that stalls or crashes when the test asks for it.
PATCHED = """
import itertools, os, time
from pathlib import Path
from semtask.engine import attempt, dispatcher, promoter, supervision

ASKED = Path(os.environ["SEMANTICA_HOME"], "asked")
supervision.FIRST_PAUSE_S = 0.05
promote = promoter.Promoter._promote

def stuck_here(seconds):
    time.sleep(seconds)

async def _promote(self, now):
    asked = ASKED.read_text() if ASKED.exists() else ""
    match asked:
        case "stall" | "stall for long":
            ASKED.unlink()
            stuck_here(1.8 if asked == "stall" else 3)
        case "hold the interpreter":
            ASKED.unlink()
            max(itertools.repeat(1, 150_000_000))
        case "crash once":
            ASKED.unlink()
            raise RuntimeError("made up")
        case "crash":
            raise RuntimeError("made up")
    return await promote(self, now)

promoter.Promoter._promote = _promote
claim = dispatcher.Dispatcher._claim_commands

async def _claim_commands(self, request):
    if ASKED.exists() and ASKED.read_text() == "crash a claim":
        ASKED.unlink()
        raise RuntimeError("made up")
    await claim(self, request)

dispatcher.Dispatcher._claim_commands = _claim_commands
prepare = attempt.Attempts._prepare

async def _prepare(self, job):
    asked = ASKED.read_text() if ASKED.exists() else ""
    if asked in {"have no thread", "crash an attempt"}:
        ASKED.unlink()
        raise {"have no thread": RuntimeError, "crash an attempt": KeyError}[asked]("made up")
    return await prepare(self, job)

attempt.Attempts._prepare = _prepare

from semtask.cli.main import main
main()
"""


@contextmanager
def patched(tmp_path: Path, **env: str) -> Iterator[Daemon]:
    (tmp_path / "patched.py").write_text(PATCHED)
    daemon = Daemon(tmp_path / "home", PYTHONPATH=str(tmp_path), **env)
    daemon.entry = ("patched", "daemon")
    try:
        yield daemon.start()
    finally:
        stop_for_certain(daemon)


def ask(daemon: Daemon, what: str) -> str:
    """Has the promoter do it; returns a job that it has to promote."""
    (daemon.home / "asked").write_text(what)
    return daemon.command("true", schedule={"type": "AFTER", "delay_ms": 50})


def log_of(daemon: Daemon) -> str:
    return (daemon.home / "logs" / "daemon.log").read_text()


def stalls(daemon: Daemon) -> int:
    return int(daemon.stats()["counters"].get("daemon.loop_stalls", 0))


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stall", "hold the interpreter"])
def test_a_loop_that_stands_still_says_where(tmp_path: Path, how: str) -> None:
    with patched(tmp_path) as daemon:
        job = ask(daemon, how)
        eventually(lambda: stalls(daemon) == 1, what="the stall is counted")
        assert daemon.wait(job)[0]["state"] == "DONE"
        log = log_of(daemon)
        assert log.count("the event loop has not turned for") == 1
        assert log.count("the event loop turns again") == 1
        assert "meanwhile, the thread " in log
        if how == "stall":
            stack = log.partition("the event loop has not turned")[2].partition("\n20")[0]
            assert "in stuck_here" in stack
            assert "time.sleep(seconds)" in stack
        assert b"\nsemantica_loop_stalls_total 1.0\n" in daemon.get("/metrics")[1]


def test_a_daemon_that_was_stopped_has_not_stalled(tmp_path: Path) -> None:
    with patched(tmp_path) as daemon:
        os.kill(daemon.pid, signal.SIGSTOP)
        time.sleep(2.5)
        os.kill(daemon.pid, signal.SIGCONT)
        job = ask(daemon, "stall")
        daemon.wait(job)
        eventually(lambda: stalls(daemon), what="the stall after it is counted")
        assert stalls(daemon) == 1
        assert log_of(daemon).count("has not turned for") == 1


# --- its services ----------------------------------------------------------------------------------------------------


def test_a_service_that_crashes_is_begun_anew(tmp_path: Path) -> None:
    with patched(tmp_path) as daemon:
        job = ask(daemon, "crash once")
        assert daemon.wait(job)[0]["state"] == "DONE"
        log = log_of(daemon)
        assert re.search(r"ERROR +semtask.engine: promoter failed and is started again in 0.05 s", log)
        assert "RuntimeError: made up" in log


def test_a_service_that_crashes_for_ever_ends_the_daemon(tmp_path: Path) -> None:
    with patched(tmp_path) as daemon:
        job = ask(daemon, "crash")
        assert daemon.process is not None
        assert daemon.process.wait(20) == 71
        log = log_of(daemon)
        assert "promoter failed and is started again" in log
        assert "promoter failed 6 times in a row" in log
        (daemon.home / "asked").unlink()
        daemon.start()  # as a service manager, or the next client, does
        assert daemon.wait(job)[0]["state"] == "DONE"


def test_an_attempt_that_cannot_be_prepared_is_given_back(tmp_path: Path) -> None:
    with patched(tmp_path) as daemon:
        job_id = ask(daemon, "have no thread")
        [job] = daemon.wait(job_id)
        assert (job["state"], job["claim_no"], job["attempts"]) == ("DONE", 2, 1)
        assert "attempt 1 could not be prepared" in log_of(daemon)


def test_an_attempt_that_meets_a_fault_of_the_daemon_fails_alone(tmp_path: Path) -> None:
    with patched(tmp_path) as daemon:
        job_id = ask(daemon, "crash an attempt")
        [job] = daemon.wait(job_id)
        assert (job["state"], job["end_cause"]) == ("FAILED", "spawn_failed")
        assert job["error"] == "an error in the daemon, whose log has more of it: KeyError('made up')"
        assert daemon.wait(daemon.command("true"))[0]["state"] == "DONE"


def test_a_claim_that_crashes_leaves_no_queue_standing_still(tmp_path: Path) -> None:
    with patched(tmp_path) as daemon:
        job = ask(daemon, "crash a claim")
        assert daemon.wait(job)[0]["state"] == "DONE"
        log = log_of(daemon)
        assert "a claim failed" in log
        assert "RuntimeError: made up" in log


# --- systemd ---------------------------------------------------------------------------------------------------------


@contextmanager
def manager(tmp_path: Path) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """(NOTIFY_SOCKET, what was said there since the last call)."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.setblocking(False)

        def said() -> list[str]:
            messages = []
            with suppress(BlockingIOError):
                while True:
                    messages.append(sock.recv(4096).decode())
            return messages

        yield path, said


def test_systemd_is_told_and_sees_a_stall(tmp_path: Path) -> None:
    with manager(tmp_path) as (path, said), patched(tmp_path, NOTIFY_SOCKET=path, WATCHDOG_USEC="400000") as daemon:
        eventually(lambda: f"READY=1\nSTATUS=serving {daemon.home}" in said())
        assert eventually(lambda: said().count("WATCHDOG=1"))
        ask(daemon, "stall for long")
        eventually(lambda: "has not turned for" in log_of(daemon))
        said()
        time.sleep(0.5)
        assert said() == []
        eventually(lambda: "WATCHDOG=1" in said(), what="it is alive again")
        job = daemon.command("env", env={})
        daemon.wait(job)
        assert "NOTIFY_SOCKET" not in daemon.log(job)
        assert daemon.terminate() == 0
        assert any(message.startswith("STOPPING=1\n") for message in said())


def test_signs_that_are_meant_for_another_process_are_not_given(tmp_path: Path) -> None:
    env = {"WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    with manager(tmp_path) as (path, said), patched(tmp_path, NOTIFY_SOCKET=path, **env) as daemon:
        time.sleep(0.3)
        assert [message for message in said() if "WATCHDOG" in message] == []
        assert daemon.get("/healthz")[0] == 200


def test_nobody_there_to_be_told(tmp_path: Path) -> None:
    with patched(tmp_path, NOTIFY_SOCKET=str(tmp_path / "gone")) as daemon:
        assert daemon.get("/readyz")[0] == 200
        assert "systemd cannot be told" in log_of(daemon)


ACTIVATED = """
import os, sys
os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "1"
if int(os.environ["PASSED"]) != 3:
    os.dup2(int(os.environ["PASSED"]), 3)
os.execv(sys.executable, [sys.executable, "-m", "semtask", "daemon"])
"""


@contextmanager
def activated(tmp_path: Path, at: str) -> Iterator[tuple[Daemon, socket.socket]]:
    """A daemon that is not started yet, and the socket that it is to get, in its home."""
    (tmp_path / "activated.py").write_text(ACTIVATED)
    daemon = Daemon(tmp_path / "home", PYTHONPATH=str(tmp_path))
    daemon.entry = ("activated",)
    (daemon.home / "run").mkdir(parents=True, mode=0o700)
    daemon.home.chmod(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(daemon.home / "run" / at))
        sock.listen(8)
        daemon.env["PASSED"] = str(sock.fileno())
        try:
            yield daemon, sock
        finally:
            stop_for_certain(daemon)


def test_a_client_that_came_first_is_served_and_the_socket_outlives_the_daemon(tmp_path: Path) -> None:
    with activated(tmp_path, "rpc.sock") as (daemon, sock):
        path = daemon.home / "run" / "rpc.sock"
        inode = path.stat().st_ino
        for _ in range(2):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as early:
                early.settimeout(20)
                early.connect(str(path))
                early.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
                daemon.spawn(pass_fds=(sock.fileno(),))
                assert early.recv(4096).startswith(b"HTTP/1.1 200 ")
            daemon.wait_ready()
            assert path.stat().st_mode & 0o777 == 0o600
            job = daemon.command("sh", "-c", "ls -l /proc/self/fd; env")
            daemon.wait(job)
            assert "socket:" not in daemon.log(job)
            assert "LISTEN_" not in daemon.log(job)
            assert daemon.terminate() == 0
            assert path.stat().st_ino == inode


def test_a_socket_in_another_place_is_refused(tmp_path: Path) -> None:
    with activated(tmp_path, "other.sock") as (daemon, sock):
        process = daemon.spawn(pass_fds=(sock.fileno(),))
        assert process.wait(20) == 1
        assert "must have one stream socket" in daemon.stderr()
        assert "install-service" in daemon.stderr()
