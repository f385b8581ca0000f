"""A process is told apart from a later one with the same pid, and a signal reaches nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from semtask.host.identity import identify, is_alive, open_verified, pids_with_environment, send_signal
from semtask.model.job import ProcessIdentity

NONCE = "01890a5d-ac96-774b-bcce-b302099a80fe.1.test"


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


def identity_of(process: subprocess.Popen[bytes]) -> ProcessIdentity:
    identity = identify(process.pid)
    assert identity is not None
    return identity


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
    assert identify(process.pid) is None
    assert not send_signal(identity, signal.SIGKILL)


def test_the_processes_of_an_attempt_are_found_by_its_nonce_alone(process: subprocess.Popen[bytes]) -> None:
    assert pids_with_environment("SEMANTICA_ATTEMPT", NONCE) == [process.pid]
    assert pids_with_environment("SEMANTICA_ATTEMPT", NONCE[:-1]) == []
    assert pids_with_environment("EMANTICA_ATTEMPT", NONCE) == []
