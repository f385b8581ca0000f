"""Ending what an attempt left behind when its shim is gone: its command, and all that has its nonce."""

from __future__ import annotations

import asyncio
import os
import signal

from semtask.config.environment import ENV_ATTEMPT
from semtask.host import identity, procfs
from semtask.model.job import ProcessIdentity

_BATCH = 64  # processes looked at before the loop gets its turn
_CLEAN_SCANS = 2  # a process may be born behind the back of one scan
_MAX_PAUSE_S = 0.1


async def end_leftovers(nonce: str, command: ProcessIdentity | None, killed: set[int]) -> None:
    """Kill the command and every process with this nonce in its environment; return when none is left.

    `command` is looked for as well because a program may clear or overwrite its environment. The pids are added to
    `killed`. It goes on for as long as it takes: bound it with `asyncio.timeout`.
    """
    clean = 0
    pause = 0.001
    while clean < _CLEAN_SCANS:
        found = await _scan(nonce)
        commands = [command] if command is not None and identity.is_alive(command) else []
        # Stopped first: what is stopped cannot fork away from the kill.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            killed.update(pid for pid in found if _signal(pid, nonce, number))
            killed.update(known.pid for known in commands if _signal_known(known, number))
        if found or commands:
            clean = 0
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)
        else:
            clean += 1


async def _scan(nonce: str) -> list[int]:
    me = os.getpid()
    found = []
    for count, pid in enumerate(procfs.processes()):
        if count % _BATCH == _BATCH - 1:
            await asyncio.sleep(0)
        if pid != me and identity.has_environment(pid, ENV_ATTEMPT, nonce):
            found.append(pid)
    return found


def _signal(pid: int, nonce: str, number: int) -> bool:
    """Signal a process if it is one of the attempt; that is looked at again once its pid is pinned."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not identity.has_environment(pid, ENV_ATTEMPT, nonce):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)
    return True


def _signal_known(command: ProcessIdentity, number: int) -> bool:
    try:
        return identity.send_signal(command, number)
    except PermissionError:
        return False
