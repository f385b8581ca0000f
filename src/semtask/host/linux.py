"""Linux calls that Python 3.11 does not offer. Standard library only: the launcher and its shims import it."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_TIMERSLACK = 29
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_USUAL_SLACK_NS = 50_000
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_CAPABILITIES_VERSION = 0x20080522
CAP_SYS_RESOURCE = 24
_SFD_NONBLOCK = os.O_NONBLOCK
_SFD_CLOEXEC = os.O_CLOEXEC
_SIGINFO_SIZE = 128

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_capget, _capset = _libc.capget, _libc.capset
for _function in (_capget, _capset):
    _function.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
_signalfd = _libc.signalfd
_signalfd.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]


def become_child_subreaper() -> None:
    """Orphaned descendants of this process become its children from now on."""
    _check(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def set_no_new_privs() -> None:
    """No program that this process or a descendant starts gains rights by it (set-uid bits, file capabilities)."""
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def has_no_new_privs() -> bool:
    return bool(_prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0))


def forget_scheduling_of_parent() -> None:
    """No I/O class, the usual timer slack, no personality (setarch): as far as this system knows them."""
    with suppress(OSError):
        _check(_prctl(_PR_SET_TIMERSLACK, _USUAL_SLACK_NS, 0, 0, 0))
    if (number := _IOPRIO_SET.get(os.uname().machine)) is not None:
        _libc.syscall(ctypes.c_long(number), 1, 0, 0)
    _libc.personality(ctypes.c_ulong(0))


def drop_capabilities(*capabilities: int) -> None:
    """Give them up, or all where none is named. With no_new_privs no program gets them back, not even as root."""
    header = struct.pack("=Ii", _CAPABILITIES_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    if capabilities:
        _check(_capget(header, data))
    kept = ~sum(1 << number for number in capabilities)
    low_and_high = struct.unpack("=6I", data.raw)
    sets = [low_and_high[n] & (kept >> 32 * (n // 3)) & 0xFFFF_FFFF for n in range(6)]
    _check(_capset(header, struct.pack("=6I", *sets)))


def signalfd(signals: Iterable[int]) -> int:
    """A non-blocking descriptor that is readable while one of `signals` is pending; they must be blocked.

    It serves a forked child as well: it always reports the signals of the process that reads it.
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
