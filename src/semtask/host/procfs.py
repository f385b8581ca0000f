"""Facts about processes from /proc. Standard library only: the launcher and its shims import it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

_GONE = "ZXx"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_NOT_SEEN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that tell who a process is."""

    state: str
    parent: int
    start_ticks: int

    @property
    def alive(self) -> bool:
        """Whether it can still run code: a zombie has a pid, but it cannot."""
        return self.state not in _GONE


class Mark(NamedTuple):
    """The identity of a process as written down in attempt folders; see `model.job.ProcessIdentity`."""

    boot_id: str
    pid_namespace: int
    pid: int
    start_ticks: int
    pidfs_inode: int | None

    def __str__(self) -> str:
        inode = "-" if self.pidfs_inode is None else self.pidfs_inode
        return f"{self.boot_id} {self.pid_namespace} {self.pid} {self.start_ticks} {inode}"

    @classmethod
    def parse(cls, text: str) -> Mark | None:
        """None for anything but a whole mark."""
        try:
            boot_id, namespace, pid, ticks, inode = text.split()
            return cls(boot_id, int(namespace), int(pid), int(ticks), None if inode == "-" else int(inode))
        except ValueError:
            return None


@cache
def boot_id() -> str:
    """Changes with every boot of the machine (not of a container)."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


@cache
def pid_namespace() -> int:
    """The inode of this process's pid namespace; pids are only comparable inside one."""
    return os.stat("/proc/self/ns/pid").st_ino


@cache
def _device_of_plain_descriptors() -> int:
    fd = os.eventfd(0)
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def pidfs_inode(pidfd: int) -> int | None:
    """The inode of a pidfd, never used twice within a boot; None where the kernel has no pidfs (before 6.9)."""
    status = os.fstat(pidfd)
    # Without pidfs a pidfd lies on the same device as every anonymous descriptor, and all share one inode.
    return None if status.st_dev == _device_of_plain_descriptors() else status.st_ino


def raise_if_not_seen(error: OSError) -> None:
    """Raise what only says that this process has no room to look: it must not pass for a process that is gone."""
    if error.errno in _NOT_SEEN:
        raise error


def stat(pid: int) -> Stat | None:
    """None if there is no such process."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise_if_not_seen(error)
        return None
    try:
        data = os.read(fd, 4096)
    except OSError as error:  # it went away between open and read
        raise_if_not_seen(error)
        return None
    finally:
        os.close(fd)
    # The second field is the name in brackets, and it may hold blanks and brackets itself.
    fields = data[data.rindex(b")") + 2 :].split(None, 20)
    return Stat(fields[0].decode(), int(fields[1]), int(fields[19]))


def line_of(pid: int) -> Iterator[int]:
    """A process and those that it comes from, up to the first one that nobody can see."""
    while pid > 0 and (seen := stat(pid)) is not None:
        yield pid
        pid = seen.parent


def is_child(pid: int, parent: int) -> bool:
    """Whether this is a living child of `parent`, and no other process that has its pid now."""
    seen = stat(pid)
    return seen is not None and seen.alive and seen.parent == parent


def mark(pid: int, pidfd: int | None = None) -> Mark | None:
    """The identity of a process, None if there is none. With `pidfd` it holds its pidfs inode."""
    seen = stat(pid)
    if seen is None:
        return None
    inode = None if pidfd is None else pidfs_inode(pidfd)
    return Mark(boot_id(), pid_namespace(), pid, seen.start_ticks, inode)


def ticks() -> int:
    """Now, on the clock of `Stat.start_ticks`."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) * _TICKS_PER_S // 1_000_000_000


def no_new_privs(pid: int) -> bool | None:
    """Whether a process has no_new_privs, as each of its threads then has; None if it cannot be told."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            _, found, rest = file.read().partition(b"\nNoNewPrivs:\t")
    except OSError as error:
        raise_if_not_seen(error)
        return None
    return rest[:1] != b"0" if found else None


def children(pid: int) -> list[int]:
    """The children of all threads of a process, zombies included; empty if it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError as error:
        raise_if_not_seen(error)
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
        except OSError as error:  # the thread ended meanwhile
            raise_if_not_seen(error)
    return found


def processes() -> list[int]:
    """All pids that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
