"""Random bytes from the operating system, drawn many at a time: a system call for each id costs more than the id."""

from __future__ import annotations

import os

_DRAWN = 4096


class RandomPool:
    """Hands out each byte once. Not for a process that forks afterwards, and from one thread only."""

    def __init__(self) -> None:
        self._bytes = b""
        self._at = 0

    def __call__(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._bytes):
            self._bytes = os.urandom(max(count, _DRAWN))
            start, self._at = 0, count
        return self._bytes[start : self._at]
