"""The level `bwrap`: the command line of bubblewrap, and what it tells. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Sequence

from semtask.launch.sandbox import Grant, Sandbox, SandboxError

_CHILD = re.compile(rb'"child-pid": (\d+)')
_MAX_TEXT = 4096
_ABOVE = 64


class Bubble:
    """One run of bwrap. It tells by a pipe how it goes, and complains to its stderr, which is the log of the job."""

    def __init__(self) -> None:
        self._status, self._its_end = os.pipe2(os.O_CLOEXEC)
        self._told = b""

    def arguments(self, sandbox: Sandbox, given: Sequence[Grant], argv: Sequence[bytes]) -> list[bytes]:
        """To be executed with, in the process that becomes bwrap. Nothing is in there but what is named here."""
        os.set_inheritable(self._its_end, True)
        words = ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
        # A process group without bwrap itself, so that SIGTERM reaches the command and its children alone.
        words += ["--new-session", "--json-status-fd", str(self._its_end)]
        if sandbox.network:
            words.append("--share-net")
        words += ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]  # noqa: S108 - its own
        words += ["--ro-bind", "/proc/sys", "/proc/sys"]  # the switches of the machine belong to root, which it may be
        for grant in sorted(given, key=lambda grant: (grant.writable, grant.real)):
            words += _mounts(grant)
        words += ["--chdir", os.getcwd(), "--"]
        return [*map(os.fsencode, words), *argv]

    def first_pid(self) -> int | None:
        """The first process in there, which leads the process group; None if it does not come to that."""
        os.close(self._its_end)
        while b"\n" not in self._told:
            data = os.read(self._status, 4096)
            if not data:
                return None
            self._told += data
        found = _CHILD.search(self._told)
        return int(found[1]) if found else None

    def close(self, status: int | None, log: int) -> None:
        """After its end. Raises SandboxError if the command was never executed: bwrap tells an exit code else.

        `log` is a descriptor of the log of its stderr, which has all that it wrote.
        """
        try:
            while data := os.read(self._status, 4096):
                self._told += data
            if status is not None and os.WIFEXITED(status) and status and b'"exit-code"' not in self._told:
                raise SandboxError(errno.EPERM, f"bubblewrap could not start it: {_complaint(log)}")
        finally:
            os.close(self._status)


def _complaint(log: int) -> str:
    readable = os.open(f"/proc/self/fd/{log}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lines = os.pread(readable, _MAX_TEXT, 0).decode("utf-8", "replace").splitlines()
    finally:
        os.close(readable)
    said = [line.removeprefix("bwrap: ") for line in lines if line.startswith("bwrap: ")]
    return said[-1] if said else "it does not say why"


def _mounts(grant: Grant) -> list[str]:
    """By descriptor: what was judged is what is bound, whatever has that name by then."""
    if not grant.writable and os.path.dirname(grant.path) == "/" and os.path.islink(grant.path):
        return ["--symlink", os.readlink(grant.path), grant.path]  # /bin
    how = "--bind-fd" if grant.writable else "--ro-bind-fd"
    places = dict.fromkeys((grant.real, grant.path))
    return [word for place in places for word in (how, _inherited(grant.fd), place)]


def _inherited(fd: int) -> str:
    """One of its own for each use: bwrap closes it, so the command has none. Above what a limit lets bwrap open."""
    return str(fcntl.fcntl(fd, fcntl.F_DUPFD, _ABOVE))
