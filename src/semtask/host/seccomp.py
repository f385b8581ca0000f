"""A filter of system calls: what Landlock does not know of the network. Standard library only."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

_PR_SET_SECCOMP = 22
_FILTER = 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # of BPF
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # in struct seccomp_data; the low half, as all of these are little-endian
_ALLOW = 0x7FFF0000
_DENY = 0x00050000 | errno.EACCES
_IO_URING_SETUP = 425  # it opens sockets without the call that is watched
_X32 = 0x40000000
_I386 = 0x40000003
# machine -> (its number in the audit of calls, its socket(2))
_MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
_I386_CALLS = (102, 359, _IO_URING_SETUP)  # socketcall, socket


def deny_network() -> None:
    """From now on this process, and what it starts, opens no socket but unix and netlink ones: EACCES.

    It must have no_new_privs. On machines that are not known here nothing is done.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return
    code = _program(*machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.c_char_p(program), 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _program(architecture: int, socket_call: int) -> bytes:
    """Instructions (code, if true skip, if false skip, value). Those of other architectures are denied, all of them."""
    of_i386 = [(_LOAD, 0, 0, _NR)]
    of_i386 += [(_EQUAL, len(_I386_CALLS) - n, 0, number) for n, number in enumerate(_I386_CALLS)]
    of_i386 += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    ours = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 10, 0, _I386),
        (_EQUAL, 0, 8, architecture),
        (_LOAD, 0, 0, _NR),
        (_AT_LEAST, 6, 0, _X32),
        (_EQUAL, 5, 0, _IO_URING_SETUP),
        (_EQUAL, 0, 3, socket_call),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, 1, 0, int(socket.AF_UNIX)),
        (_EQUAL, 0, 1, int(socket.AF_NETLINK)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    ]
    return b"".join(struct.pack("HBBI", *one) for one in ours + of_i386)
