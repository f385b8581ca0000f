"""Who a process is. Nobody else is ever signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from semtask.host import identity, procfs
from semtask.model.job import ProcessIdentity

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@contextmanager
def sleeper(env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "300"], env=env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def known(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    seen = identity.identify(process.pid)
    assert seen is not None
    return seen


def test_a_living_process_is_known_again() -> None:
    with sleeper() as process:
        who = known(process)
        assert who == known(process)
        assert identity.is_alive(who)
        pidfd = identity.open_verified(who)
        assert pidfd is not None
        assert identity.identify(process.pid, pidfd) == who
        os.close(pidfd)
        assert identity.send_signal(who, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_a_zombie_is_not_alive() -> None:
    with sleeper() as process:
        who = known(process)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        os.kill(process.pid, 0)  # the naive test is fooled
        assert not identity.is_alive(who)
        process.wait()
        assert identity.open_verified(who) is None
        assert not identity.send_signal(who, signal.SIGKILL)
        assert identity.identify(process.pid) is None


def test_the_name_of_a_process_cannot_forge_its_facts(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with sleeper() as honest, subprocess.Popen([str(program), "300"]) as forger:
        try:
            seen = procfs.stat(forger.pid)
            assert seen is not None
            assert seen.parent == os.getpid()
            assert seen.start_ticks >= known(honest).start_ticks
        finally:
            forger.kill()


@pytest.mark.parametrize("field", ["start_ticks", "pid_namespace", "pidfs_inode", "boot_id"])
def test_any_mismatch_means_gone(field: str) -> None:
    with sleeper() as process:
        who = known(process)
        value = getattr(who, field)
        if value is None:
            pytest.skip("this kernel has no pidfs")
        stranger = msgspec.structs.replace(who, **{field: "another boot" if field == "boot_id" else value + 1})
        assert identity.open_verified(stranger) is None
        assert not identity.is_alive(stranger)
        assert not identity.send_signal(stranger, signal.SIGKILL)
        assert process.poll() is None


def test_processes_are_found_by_their_environment() -> None:
    env = {"SEMANTICA_ATTEMPT": f"find-me.{os.getpid()}"}
    with sleeper(env) as process, sleeper({"SEMANTICA_ATTEMPT": "find-me"}):
        deadline = time.monotonic() + 10
        while identity.pids_with_environment("SEMANTICA_ATTEMPT", env["SEMANTICA_ATTEMPT"]) != [process.pid]:
            assert time.monotonic() < deadline
        assert identity.pids_with_environment("SEMANTICA_ATTEMPT", "find") == []


@pytest.mark.skipif(not os.access(LAST_PID, os.W_OK) or os.getuid() != 0, reason="only root can force a pid")
def test_a_process_that_got_the_pid_of_another_is_not_signalled() -> None:
    with sleeper() as first:
        who = known(first)
    # Others start processes too, so the pid may be taken: try again with a fresh one then.
    for _ in range(200):
        LAST_PID.write_text(str(who.pid - 1))
        innocent = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(300)"])
        try:
            if innocent.pid != who.pid:
                continue
            assert known(innocent) != who
            assert not identity.is_alive(who)
            assert not identity.send_signal(who, signal.SIGKILL)
            assert innocent.poll() is None
            return
        finally:
            innocent.kill()
            innocent.wait()
    pytest.skip("the pid could not be had again: this machine starts too many processes")
