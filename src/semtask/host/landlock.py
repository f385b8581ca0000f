"""Landlock: a process takes rights from itself and all that it will start, forever. Standard library only.

See landlock(7). The numbers of the calls are the same on every architecture that has Landlock.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from functools import cache

_CREATE_RULESET = 444
_ADD_RULE = 445
_RESTRICT_SELF = 446
_VERSION = 1
_PATH_BENEATH = 1

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13
TRUNCATE = 1 << 14
IOCTL_DEV = 1 << 15

READ = EXECUTE | READ_FILE | READ_DIR
WRITE = (
    READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SOCK | MAKE_FIFO | MAKE_SYM | REFER
) | TRUNCATE
DEVICE = READ_FILE | WRITE_FILE | TRUNCATE | IOCTL_DEV
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_ALL = WRITE | DEVICE | MAKE_CHAR | MAKE_BLOCK
_TCP = 0b11  # bind, connect
_SCOPES = 0b11  # abstract unix sockets, signals

NEEDED = 6  # the first one with scopes: without them a job could end the daemon
_LINUX_OF_NEEDED = "6.12"

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


@cache
def abi() -> int:
    """The version of Landlock that this kernel has; 0 without one."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    except OSError:
        return 0


def why_not() -> str | None:
    """Why this kernel cannot do what is needed of it; None if it can."""
    if abi() >= NEEDED:
        return None
    if abi():
        return (
            f"this kernel has version {abi()} of Landlock, and {NEEDED} is needed, that of Linux {_LINUX_OF_NEEDED}: "
            "before it a job could send signals to the daemon"
        )
    return f"this kernel has no Landlock, or it is switched off; Linux {_LINUX_OF_NEEDED} has what is needed"


class Ruleset:
    """What will be allowed; nothing else of what Landlock knows. Close-on-exec, as it is a descriptor."""

    def __init__(self, *, network: bool) -> None:
        attributes = struct.pack("=QQQ", _ALL, 0 if network else _TCP, _SCOPES)
        size = ctypes.c_size_t(len(attributes))
        self._fd = _call(_CREATE_RULESET, ctypes.c_char_p(attributes), size, ctypes.c_uint32(0))

    def allow(self, fd: int, rights: int, *, folder: bool) -> None:
        """Give rights on a file, or on a folder with all that is below it."""
        rule = struct.pack("=Qi", rights if folder else rights & _OF_FILES, fd)
        _call(_ADD_RULE, ctypes.c_int(self._fd), ctypes.c_int(_PATH_BENEATH), ctypes.c_char_p(rule), ctypes.c_uint32(0))

    def restrict_self(self) -> None:
        """From now on. The process must have no_new_privs."""
        _call(_RESTRICT_SELF, ctypes.c_int(self._fd), ctypes.c_uint32(0))
        os.close(self._fd)


def _call(number: int, *arguments: object) -> int:
    result = int(_syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno() or errno.ENOSYS, os.strerror(ctypes.get_errno() or errno.ENOSYS))
    return result
