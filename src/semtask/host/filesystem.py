"""What semtask asks of a file system, and what it does there that Python has no call for."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02


def punch_hole(fd: int, start: int, length: int) -> None:
    """Give the disk space of these bytes back; they read as NUL, and size and offsets stay as they are.

    Raises OSError: EOPNOTSUPP where the file system cannot do it.
    """
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _fallocate(fd, mode, start, length) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


# glibc has a fallocate with 64-bit offsets everywhere under this name; musl's offsets always have 64 bits.
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int
