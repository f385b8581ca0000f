"""The messages between daemon and launcher, and what a spawn message carries. Standard library only.

One SEQPACKET message each way, a fixed header; descriptors travel with it (SCM_RIGHTS):

    SPAWN    daemon -> launcher   id, umask, grace_ms; fds: specification, attempt folder, and for stdout, or for both
                                  streams: write end of a pipe, its read end, log
    WORKER   daemon -> launcher   id, umask, grace_ms; fds: specification, attempt folder, for both streams the same
                                  three, socket, tokens
    SETTLE   daemon -> launcher   id, pid of a shim that was lost; answered when the launcher has no orphan left
    READY    launcher -> daemon   it can spawn
    SPAWNED  launcher -> daemon   id, pid of the shim; fd: its pidfd
    REFUSED  launcher -> daemon   id, errno
    SETTLED  launcher -> daemon   id, wait status of the shim, or -1 if it is not known
    ORPHANS  launcher -> daemon   -, how many processes of lost shims were ended
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from semtask.host.standing import Standing
from semtask.launch import sandbox
from semtask.launch.sandbox import Sandbox

HEADER = struct.Struct("<cIiI")
_RIGHTS_SPACE = socket.CMSG_SPACE(8 * struct.calcsize("i"))

SPAWN = b"S"
WORKER = b"W"
SETTLE = b"T"
READY = b"R"
SPAWNED = b"s"
REFUSED = b"e"
SETTLED = b"t"
ORPHANS = b"o"

# Exit codes of a shim that leaves no record.
EXIT_LOCKED = 66  # another shim has this attempt
EXIT_POISONED = 67  # the claim was given up
EXIT_FAILED = 70  # a fault of the shim itself
EXIT_NO_ROOM = 75  # the machine has no room for the files of the attempt
# What a call answers when the machine has no room for another process or file: the attempt can be made later.
NO_ROOM = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT})

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def send(channel: socket.socket, message: bytes, fds: Iterable[int] = ()) -> None:
    """Send a message with descriptors. BrokenPipeError or ConnectionResetError: the other side is gone."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))]
    channel.sendmsg([message], rights, socket.MSG_NOSIGNAL)


def receive(channel: socket.socket) -> tuple[bytes, list[int], bool]:
    """A message, b"" at the end; its descriptors; and whether some got lost because this process can have no more.

    Unlike `socket.recv_fds` it makes the descriptors close-on-exec before anything can inherit them.
    """
    data, ancillary, flags, _ = channel.recvmsg(HEADER.size, _RIGHTS_SPACE, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds), bool(flags & socket.MSG_CTRUNC)


class Specification(NamedTuple):
    """What to execute. Bytes, as the kernel takes them. Without an executable it is searched for by argv[0]."""

    working_dir: bytes
    executable: bytes
    argv: list[bytes]
    env: dict[bytes, bytes]
    sandbox: Sandbox | None = None
    standing: Standing = Standing()


def encode_specification(
    working_dir: str,
    argv: Sequence[str],
    env: Mapping[str, str],
    executable: str = "",
    *,
    confined: Sandbox | None = None,
    standing: Standing = Standing(),  # noqa: B008 - it cannot change
) -> bytes:
    """Raises ValueError for what no process can be given."""
    if not argv or not argv[0]:
        raise ValueError("no program is given")
    for name in env:
        if not name or "=" in name:
            raise ValueError(f"{name!r} is no name for an environment variable")
    words = sandbox.encode(confined)
    parts = [working_dir, executable, standing.encode(), str(len(words)), *words, str(len(argv)), *argv]
    parts += [f"{name}={value}" for name, value in env.items()]
    return b"\0".join(_bytes(parts))


def decode_specification(data: bytes) -> Specification:
    parts = data.split(b"\0")
    begin = 4 + int(parts[3])
    end = begin + 1 + int(parts[begin])
    env = {}
    for item in parts[end:]:
        name, _, value = item.partition(b"=")
        env[name] = value
    return Specification(
        working_dir=parts[0],
        executable=parts[1],
        argv=parts[begin + 1 : end],
        env=env,
        sandbox=sandbox.decode(parts[4:begin]),
        standing=Standing.decode(parts[2].decode()),
    )


def _bytes(parts: Iterable[str]) -> Iterable[bytes]:
    for part in parts:
        try:
            encoded = part.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise ValueError(
                f"{part[:100]!r} cannot be given to a process: it is no text that UTF-8 can hold"
            ) from None
        if b"\0" in encoded:
            raise ValueError(f"{part[:100]!r} cannot be given to a process: it holds a NUL")
        yield encoded


def sealed(name: str, data: bytes) -> int:
    """A descriptor of an unnamed file that nobody can change any more."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
