"""Who is at the other end of a unix socket."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from typing import NamedTuple

from semtask.host import procfs

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_SO_PEERPIDFD = 77


class Peer(NamedTuple):
    """The process that connected; `pid` is 0 if it is outside of our pid namespace."""

    pid: int
    uid: int


def peer_of(connection: socket.socket) -> Peer:
    pid, uid, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Peer(pid, uid)


def is_confined(connection: socket.socket, peer: Peer) -> bool:
    """Whether the process that connected has no_new_privs, or is gone, so that nobody can tell any more.

    Nobody can get rid of it, and all that a sandboxed job starts has it. Needs Linux 6.5, which whatever has the
    Landlock that a sandbox needs is. A process outside of our pid namespace cannot be a job of ours.
    """
    if peer.pid == 0:
        return False
    try:
        pidfd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return True
        raise
    try:
        no_new_privs = procfs.no_new_privs(peer.pid)
        # Alive now, so it was alive while we looked at its pid: no other process had that.
        return no_new_privs is not False or _has_ended(pidfd)
    finally:
        os.close(pidfd)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
