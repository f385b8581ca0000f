"""The mark of whose code runs: 16 bytes that outlive the worker, see `frames.Setup.mark_path`."""

from __future__ import annotations

import mmap
import os

NOBODY = bytes(8)
_SIZE = 16


def label(number: int) -> bytes:
    """The mark of the call of this number."""
    return number.to_bytes(8, "little")


class Mark:
    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)
        self.now = NOBODY
        os.register_at_fork(after_in_child=self._leave)

    def set(self, label: bytes) -> None:
        self.now = label
        self._memory[:8] = label

    def begin(self, label: bytes, log_size: int) -> None:
        """A sync job begins when the worker's own log has this size."""
        self.now = label
        self._memory[:] = label + log_size.to_bytes(8, "little")

    def _leave(self) -> None:
        self._memory = mmap.mmap(-1, _SIZE)
