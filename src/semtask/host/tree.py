"""Ending process trees. Standard library only: the launcher and its shims import it.

The caller is a child subreaper, so every process of a tree whose parent has died is, or becomes, its own child.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

from semtask.host import procfs

_STOP_SWEEPS = 3
_QUIET_ROUNDS = 2


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
    return sum(_signal_child(pid, (parent, me), number) for parent, pid in _below(me, spare))


def _below(root: int, spare: Callable[[int], bool] = spare_none) -> Iterator[tuple[int, int]]:
    """Parent and pid of all descendants; the children of each are looked up after it was handed out."""
    pending = [(root, child) for child in procfs.children(root) if not spare(child)]
    seen: set[int] = set()
    while pending:
        parent, pid = pending.pop()
        if pid in seen:
            continue
        seen.add(pid)
        yield parent, pid
        pending += [(pid, child) for child in procfs.children(pid)]


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


class Request:
    """SIGTERM, then SIGCONT, once for each process below `root` that is older than the request.

    What is born later is left alone: it is most likely what a handler of SIGTERM has started to clean up.
    `root` is this process, or one that adopts all orphans below it, as the first process of a pid namespace does.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._asked: set[tuple[int, int]] = set()  # pid and start
        self._made: int | None = None  # when the first signal was sent, in ticks
        self._quiet = 0

    def send(self) -> bool:
        """Signal whom it has not reached yet; whether all have been reached.

        Raises OSError if no descriptor is left to look with: try again.
        """
        while self._quiet < _QUIET_ROUNDS:
            self._quiet = 0 if self._round() else self._quiet + 1
        return True

    def _round(self) -> bool:
        """Whether anybody was signalled. An orphan may change its parent unseen, so one quiet round is no proof."""
        first = self._made is None
        found = dict.fromkeys(_below(self._root))
        if self._made is None:
            found |= dict.fromkeys(_below(self._root))
            self._made = procfs.ticks()
        return sum([self._ask(parent, pid, self._made, all_of=first) for parent, pid in found]) > 0

    def _ask(self, parent: int, pid: int, before: int, *, all_of: bool) -> bool:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            seen = procfs.stat(pid)
            if seen is None or not seen.alive or seen.parent not in {parent, self._root}:
                return False
            who = (pid, seen.start_ticks)
            # Within one tick of the clock nobody can tell who is older: those who were found before the first signal.
            if who in self._asked or not (all_of or seen.start_ticks < before):
                return False
            self._asked.add(who)
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        except (ProcessLookupError, PermissionError):  # gone meanwhile, or another user's
            return False
        finally:
            os.close(pidfd)
        return True
