"""Disk space in reserve: a file that is given up when the disk is full, so that what must be written still can be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from semtask.host.filesystem import free_bytes, total_bytes

SIZE = 32 * 1024 * 1024

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Ballast:
    """The file `ballast` in a folder, on the disk of which it keeps `size` bytes."""

    def __init__(self, folder: Path, size: int = SIZE) -> None:
        self.folder = folder
        self.size = size
        self._path = folder / "ballast"

    def free(self) -> int:
        """Bytes that can still be written, without those in reserve."""
        return free_bytes(self.folder)

    def total(self) -> int:
        """The size of the disk, in bytes."""
        return total_bytes(self.folder)

    def fill(self, spare: int) -> bool:
        """Make the file, if `spare` bytes stay free beside it; whether it is there now. Raises OSError."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            held = os.fstat(fd).st_blocks * 512
            if held >= self.size:
                return True
            if self.free() + held >= self.size + spare:
                os.posix_fallocate(fd, 0, self.size)
                return True
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
        finally:
            os.close(fd)
        self.release()
        return False

    def release(self) -> bool:
        """Give the space back; whether there was any. Raises OSError."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return False
        return True
