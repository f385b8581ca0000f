"""Ending process trees. Standard library only: the launcher and its shims import it.

The caller is a child subreaper, so every process of a tree whose parent has died is, or becomes, its own child.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from semtask.host import procfs

_STOP_SWEEPS = 3


def spare_none(_pid: int) -> bool:
    return False


def kill_round(spare: Callable[[int], bool] = spare_none) -> int:
    """Stop, then kill all descendants but the spared children and what is below them; how many were killed.

    They are stopped first so that none can fork away from the kill. One round may miss a process that was born
    during it: repeat until no child is left.
    """
    for _ in range(_STOP_SWEEPS):
        signal_descendants(signal.SIGSTOP, spare)
    return signal_descendants(signal.SIGKILL, spare)


def signal_descendants(number: int, spare: Callable[[int], bool] = spare_none) -> int:
    """Send a signal to all living descendants but the spared ones; how many got it."""
    me = os.getpid()
    pending = [(me, child) for child in procfs.children(me) if not spare(child)]
    seen: set[int] = set()
    reached = 0
    while pending:
        parent, pid = pending.pop()
        if pid in seen:
            continue
        seen.add(pid)
        reached += _signal_child(pid, (parent, me), number)
        pending += [(pid, child) for child in procfs.children(pid)]
    return reached


def _signal_child(pid: int, parents: tuple[int, int], number: int) -> bool:
    """Signal a process that is a child of one of `parents`; anything else has only inherited the pid."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        seen = procfs.stat(pid)
        if seen is None or not seen.alive or seen.parent not in parents:
            return False
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):  # gone meanwhile, or another user's: the caller looks again
        return False
    finally:
        os.close(pidfd)
    return True
