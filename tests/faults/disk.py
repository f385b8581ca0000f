"""A disk below the database that fails when it is told to, by a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw

from tests.powercut.vfs import Observer

# What stands in the file: any of these words. `sync`: every fsync fails with EIO; `full`: there is no space; `open`: no
# descriptors; `read_only`: nothing can be written any more, as when the kernel has given a file system up.
SYNC, FULL, READ_ONLY, OPEN = "sync", "full", "read_only", "open"


class SickDisk:
    """An observer that passes to another one what works."""

    def __init__(self, ills: Path, inner: Observer) -> None:
        self._ills = ills
        self._inner = inner

    def _has(self, ill: str) -> bool:
        try:
            return ill in self._ills.read_text().split()
        except FileNotFoundError:
            return False

    def opened(self, path: str) -> int:
        return apsw.SQLITE_CANTOPEN if self._has(OPEN) else self._inner.opened(path)

    def write(self, path: str, data: bytes, offset: int, do: Callable[[], int]) -> int:
        if self._has(FULL):
            return apsw.SQLITE_FULL
        if self._has(READ_ONLY):
            return apsw.SQLITE_IOERR_WRITE
        return self._inner.write(path, data, offset, do)

    def truncate(self, path: str, size: int, do: Callable[[], int]) -> int:
        return apsw.SQLITE_IOERR_TRUNCATE if self._has(READ_ONLY) else self._inner.truncate(path, size, do)

    def sync(self, path: str, do: Callable[[], int]) -> int:
        return self._inner.sync(path, lambda: apsw.SQLITE_IOERR_FSYNC if self._has(SYNC) else do())

    def delete(self, path: str, do: Callable[[], int]) -> int:
        return apsw.SQLITE_IOERR_DELETE if self._has(READ_ONLY) else self._inner.delete(path, do)
