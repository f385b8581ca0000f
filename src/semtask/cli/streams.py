"""stdout and stderr that take nothing any more: the reader has gone, the disk is full, the terminal has hung up."""

from __future__ import annotations

import os
import select
import sys

BROKEN_PIPE = 141  # 128 + SIGPIPE, as if it had ended us


def say(line: str) -> None:
    """A line for the person, on stderr. If stderr takes nothing, that is no reason to fail at what we do."""
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        let_go(2)


def let_go_of_broken() -> None:
    """Lead stdout and stderr to /dev/null where their reader has gone.

    What is still buffered for them goes there too; else Python would fail to flush it at the exit, and exit with 120.
    """
    for fd in (1, 2):
        poll = select.poll()
        poll.register(fd, 0)
        if any(seen & select.POLLERR for _, seen in poll.poll(0)):
            let_go(fd)


def let_go(fd: int) -> None:
    """Lead a descriptor to /dev/null: what is written to it from now on is lost."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, fd)
    os.close(null)
