"""A filter of system calls: what Landlock does not know of. Standard library only."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_PR_SET_SECCOMP = 22
_FILTER = 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # of BPF
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # in struct seccomp_data; the low half, as all of these are little-endian
_ALLOW = 0x7FFF0000
_DENY = 0x00050000 | errno.EACCES
_IO_URING_SETUP = 425  # it opens sockets without the call that is watched
_X32 = 0x40000000


class _Calls(NamedTuple):
    """Numbers: that of an architecture in the audit of calls, and those of its calls. `socketcall` is another way to
    socket(2), if it has one."""

    architecture: int
    prlimit: int
    socket: int
    socketcall: tuple[int, ...] = ()


_I386 = _Calls(0x40000003, 340, 359, (102,))
# Those that run on a machine.
_MACHINES = {
    "x86_64": (_Calls(0xC000003E, 302, 41), _I386),
    "aarch64": (_Calls(0xC00000B7, 261, 198),),
}


def confine(*, network: bool) -> None:
    """From now on this process, and what it starts, sets limits of no process but itself: EACCES. A limit of CPU time
    would end another one as surely as a signal. Without `network` it opens no socket but unix and netlink ones.

    It must have no_new_privs. On machines that are not known here nothing is done.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        return
    code = _assembled(list(_program(machine, network=network)))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_FILTER), ctypes.c_char_p(program), 0, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_Line = tuple[int, int, str] | str
"""An instruction (code, value, the place to go on at if it is true), or the name of a place."""


def _program(machine: tuple[_Calls, ...], *, network: bool) -> Iterator[_Line]:
    """Of architectures that are not named every call is denied."""
    yield (_LOAD, _ARCH, "")
    yield from ((_EQUAL, calls.architecture, f"calls of {calls.architecture}") for calls in machine)
    yield (_RETURN, _DENY, "")
    for calls in machine:
        yield f"calls of {calls.architecture}"
        yield (_LOAD, _NR, "")
        yield (_AT_LEAST, _X32, "deny")
        yield (_EQUAL, calls.prlimit, "whose limits")
        if not network:
            yield from ((_EQUAL, number, "deny") for number in (_IO_URING_SETUP, *calls.socketcall))
            yield (_EQUAL, calls.socket, "which family")
        yield (_RETURN, _ALLOW, "")
    yield "whose limits"
    yield (_LOAD, _FIRST_ARGUMENT, "")
    yield (_EQUAL, 0, "allow")
    yield (_RETURN, _DENY, "")
    yield "which family"
    yield (_LOAD, _FIRST_ARGUMENT, "")
    yield from ((_EQUAL, int(family), "allow") for family in (socket.AF_UNIX, socket.AF_NETLINK))
    yield "deny"
    yield (_RETURN, _DENY, "")
    yield "allow"
    yield (_RETURN, _ALLOW, "")


def _assembled(lines: list[_Line]) -> bytes:
    """As the kernel takes it, which counts what is skipped."""
    code: list[tuple[int, int, str]] = []
    places: dict[str, int] = {}
    for line in lines:
        if isinstance(line, str):
            places[line] = len(code)
        else:
            code.append(line)
    skips = [places[place] - at - 1 if place else 0 for at, (_, _, place) in enumerate(code)]
    return b"".join(
        struct.pack("HBBI", what, skip, 0, value) for skip, (what, value, _) in zip(skips, code, strict=True)
    )
