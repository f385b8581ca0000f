"""Linux calls that Python 3.11 does not offer. Standard library only: the launcher and its shims import it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable

_PR_SET_CHILD_SUBREAPER = 36
_SFD_NONBLOCK = os.O_NONBLOCK
_SFD_CLOEXEC = os.O_CLOEXEC
_SIGINFO_SIZE = 128

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_signalfd = _libc.signalfd
_signalfd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]


def become_child_subreaper() -> None:
    """Orphaned descendants of this process become its children from now on."""
    _check(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def signalfd(signals: Iterable[int]) -> int:
    """A non-blocking descriptor that is readable while one of `signals` is pending; they must be blocked.

    It serves a forked child as well: it always tells of the signals of the process that reads it.
    """
    mask = bytearray(128)  # sizeof(sigset_t)
    for number in signals:
        mask[(number - 1) // 8] |= 1 << (number - 1) % 8
    fd: int = _signalfd(-1, ctypes.create_string_buffer(bytes(mask), len(mask)), _SFD_NONBLOCK | _SFD_CLOEXEC)
    _check(fd)
    return fd


def pending_signals(fd: int) -> list[int]:
    """Take the pending signals from a `signalfd`."""
    try:
        data = os.read(fd, 8 * _SIGINFO_SIZE)
    except BlockingIOError:
        return []
    return [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, len(data), _SIGINFO_SIZE)]


def _check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
