"""A stop of what runs, from SIGTERM to the end of the grace. Standard library only: the shims import it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from semtask.host import procfs, tree
from semtask.launch.command import Started

_AGAIN_MS = 100  # after a round that had no descriptor to look with


class Stopping:
    """The whole tree is asked to end, and has until the end of the grace to do so.

    In a pid namespace nobody asks the processes that hold it together: bwrap, and the first process in there. bwrap
    would end as soon as the command has, and take the rest of the tree with it; so it is stopped (SIGSTOP) for as long
    as the grace lasts. `first_process` is a pidfd, readable when nothing is left in there; else -1.
    """

    def __init__(self, command: Started, reason: str, grace_ms: int) -> None:
        self.reason = reason
        self.first_process = -1
        self._deadline = time.monotonic() + grace_ms / 1000
        self._command = command
        self._request: tree.Request | None = None
        self._inside = 0
        if command.group == command.pid:
            self._request = tree.Request(os.getpid())
        elif not self._hold_bubble():
            os.kill(command.pid, signal.SIGKILL)  # bwrap has not come so far: all of it goes with it
        self._ask()

    def shorten(self, grace_ms: int) -> None:
        """There is at most so much time left from now."""
        self._deadline = min(self._deadline, time.monotonic() + grace_ms / 1000)

    def is_over(self) -> bool:
        return time.monotonic() >= self._deadline

    def wait_ms(self) -> float:
        """How long nothing is to be done, unless something happens."""
        left_ms = max(0.0, (self._deadline - time.monotonic()) * 1000)
        return left_ms if self._ask() else min(left_ms, _AGAIN_MS)

    def release(self) -> bool:
        """Let bwrap go on; whether it is about to tell how the command ended."""
        if self.first_process < 0:
            return False
        os.close(self.first_process)
        self.first_process = -1
        os.kill(self._command.pid, signal.SIGCONT)
        with suppress(OSError):
            return not procfs.is_child(self._inside, self._command.group)
        return False

    def _ask(self) -> bool:
        """Whether everybody has been asked."""
        if self._request is None:
            return True
        with suppress(OSError):
            return self._request.send()
        return False

    def _hold_bubble(self) -> bool:
        """Whether the command runs in there. While bwrap is stopped, its child keeps its pid."""
        bwrap, first = self._command.pid, self._command.group
        os.kill(bwrap, signal.SIGSTOP)
        try:
            pidfd = os.pidfd_open(first)
        except OSError:
            return False
        with suppress(OSError):  # no descriptor to look with
            self._inside = next(iter(procfs.children(first)), 0) if procfs.is_child(first, bwrap) else 0
        if not self._inside:
            os.close(pidfd)
            return False
        self.first_process = pidfd
        self._request = tree.Request(first)
        return True
