"""A process is told apart from a later one with the same pid, and a signal reaches nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from semtask.host import procfs
from semtask.host.identity import from_mark, has_environment, is_alive, open_verified, send_signal
from semtask.model.job import ProcessIdentity

NONCE = "01890a5d-ac96-774b-bcce-b302099a80fe.1.test"
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "SEMANTICA_ATTEMPT": NONCE}
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # its environment is its own from here on
        try:
            yield process
        finally:
            process.kill()


def identify(pid: int) -> ProcessIdentity:
    pidfd = os.pidfd_open(pid)
    try:
        identity = from_mark(procfs.mark(pid, pidfd))
    finally:
        os.close(pidfd)
    assert identity is not None
    return identity


def identity_of(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    return identify(process.pid)


def test_the_identity_of_a_living_process_stays_the_same(process: subprocess.Popen[bytes]) -> None:
    identity = identity_of(process)
    assert identity.pid == process.pid
    assert identify(process.pid) == identity
    assert is_alive(identity)
    assert identity != identify(os.getpid())


def test_a_signal_reaches_the_process(process: subprocess.Popen[bytes]) -> None:
    identity = identity_of(process)
    assert send_signal(identity, signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


@pytest.mark.parametrize("change", ["start_ticks", "boot_id", "pid_namespace", "pidfs_inode"])
def test_a_later_process_with_the_same_pid_gets_no_signal(process: subprocess.Popen[bytes], change: str) -> None:
    identity = identity_of(process)
    value = getattr(identity, change)
    if value is None:
        pytest.skip("this kernel has no pidfs")
    former = msgspec.structs.replace(identity, **{change: f"{value}0" if change == "boot_id" else value + 1})
    assert not send_signal(former, signal.SIGKILL)
    assert not is_alive(former)
    assert open_verified(former) is None
    assert process.poll() is None
    assert is_alive(identity)


def test_a_process_without_a_known_pidfs_inode_is_judged_by_the_rest(process: subprocess.Popen[bytes]) -> None:
    assert is_alive(msgspec.structs.replace(identity_of(process), pidfs_inode=None))


def test_a_zombie_is_not_alive_and_a_reaped_process_is_gone(process: subprocess.Popen[bytes]) -> None:
    identity = identity_of(process)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but not reaped
    assert not is_alive(identity)
    process.wait()
    assert not is_alive(identity)
    assert open_verified(identity) is None
    assert not send_signal(identity, signal.SIGKILL)


def test_a_process_is_known_by_a_whole_variable_of_its_environment(process: subprocess.Popen[bytes]) -> None:
    assert has_environment(process.pid, "SEMANTICA_ATTEMPT", NONCE)
    assert not has_environment(process.pid, "SEMANTICA_ATTEMPT", NONCE[:-1])
    assert not has_environment(process.pid, "EMANTICA_ATTEMPT", NONCE)


def test_the_name_of_a_process_cannot_forge_its_facts(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "300"]) as forger:
        try:
            seen = procfs.stat(forger.pid)
            assert seen is not None
            assert seen.parent == os.getpid()
            assert seen.start_ticks >= identity_of(process).start_ticks
        finally:
            forger.kill()


@pytest.mark.skipif(not os.access(LAST_PID, os.W_OK) or os.getuid() != 0, reason="only root can force a pid")
def test_a_process_that_got_the_pid_of_another_is_not_signalled() -> None:
    with subprocess.Popen(["sleep", "300"]) as first:
        who = identify(first.pid)
        first.kill()
    # Others start processes too, so the pid may be taken: try again with a fresh one then.
    for _ in range(200):
        LAST_PID.write_text(str(who.pid - 1))
        innocent = subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(300)"])
        try:
            if innocent.pid != who.pid:
                continue
            assert identity_of(innocent) != who
            assert not is_alive(who)
            assert not send_signal(who, signal.SIGKILL)
            assert innocent.poll() is None
            return
        finally:
            innocent.kill()
            innocent.wait()
    pytest.skip("the pid could not be had again: this machine starts too many processes")
