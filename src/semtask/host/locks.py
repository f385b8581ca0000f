"""Exclusive use of a folder, by a lock on the folder itself: there is no lock file that somebody could delete."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


class FolderBusy(Exception):
    """Another process holds the lock. `pid` is None where the kernel does not say which one."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"{path} is in use" + (f" by process {pid}" if pid else ""))
        self.path = path
        self.pid = pid


class FolderLocks:
    """Folders that this process has locked. The kernel lets go of them when the process ends, however it ends."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], int] = {}

    def take(self, path: Path) -> None:
        """Lock an existing folder; one that is locked by this object already is fine. Raises FolderBusy, OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stat = os.fstat(fd)
        key = (stat.st_dev, stat.st_ino)
        if key in self._held:
            os.close(fd)
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise FolderBusy(path, holder(stat.st_ino)) from None
        self._held[key] = fd

    def release(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1])


def holder(inode: int) -> int | None:
    """The pid that holds a flock on this inode, from /proc/locks."""
    return next(_holders(inode), None)


def verified_holder(path: Path) -> tuple[int, int] | None:
    """(pid, a pidfd) of the process that holds the lock of this folder; None if there is none that we may look at.

    The kernel lists inodes without their file system, and a pid is used again: so the process is pinned first, and
    then its own list of descriptors must have this folder with the lock. The caller closes the pidfd.
    """
    folder = os.stat(path)
    for pid in _holders(folder.st_ino):
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        if _holds(pid, folder):
            return pid, pidfd
        os.close(pidfd)
    return None


def _holds(pid: int, folder: os.stat_result) -> bool:
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # closed meanwhile
                same = os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), folder)
                if same and "FLOCK" in Path(f"/proc/{pid}/fdinfo/{fd}").read_text(encoding="ascii"):
                    return True
    except OSError:  # it is gone, or another user's
        return False
    return False


def _holders(inode: int) -> Iterator[int]:
    try:
        lines = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split()
        if "FLOCK" in fields and "->" not in fields and fields[5].rpartition(":")[2] == str(inode):
            pid = int(fields[4])
            if pid > 0:
                yield pid
