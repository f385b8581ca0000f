"""The mark of whose code runs: 8 bytes that outlive the worker, see `frames.Setup.mark_path`."""

from __future__ import annotations

import mmap
import os

NOBODY = bytes(8)


def label(number: int) -> bytes:
    """The mark of the call of this number."""
    return number.to_bytes(8, "little")


class Mark:
    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(fd, len(NOBODY))
        finally:
            os.close(fd)
        self.now = NOBODY
        os.register_at_fork(after_in_child=self._leave)

    def set(self, label: bytes) -> None:
        self.now = label
        self._memory[:] = label

    def _leave(self) -> None:
        self._memory = mmap.mmap(-1, len(NOBODY))
