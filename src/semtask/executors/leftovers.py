"""Ending what an attempt left behind when its shim is gone: every process that has the attempt's nonce."""

from __future__ import annotations

import asyncio
import os
import signal

from semtask.host import identity, procfs

NONCE = "SEMANTICA_ATTEMPT"

_BATCH = 64  # processes looked at before the loop gets its turn
_CLEAN_SCANS = 2  # a process may be born behind the back of one scan
_MAX_PAUSE_S = 0.1


async def end_leftovers(nonce: str, killed: set[int]) -> None:
    """Kill every process with this nonce in its environment and return when none is left; adds their pids to `killed`.

    It goes on for as long as it takes: bound it with `asyncio.timeout`.
    """
    clean = 0
    pause = 0.001
    while clean < _CLEAN_SCANS:
        found = await _scan(nonce)
        # Stopped first: what is stopped cannot fork away from the kill.
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                if _signal(pid, nonce, number):
                    killed.add(pid)
        clean = 0 if found else clean + 1
        if found:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_S)


async def _scan(nonce: str) -> list[int]:
    me = os.getpid()
    found = []
    for count, pid in enumerate(procfs.processes()):
        if count % _BATCH == _BATCH - 1:
            await asyncio.sleep(0)
        if pid != me and identity.has_environment(pid, NONCE, nonce):
            found.append(pid)
    return found


def _signal(pid: int, nonce: str, number: int) -> bool:
    """Signal a process if it is one of the attempt; that is looked at again once its pid is pinned."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not identity.has_environment(pid, NONCE, nonce):
            return False
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)
    return True
