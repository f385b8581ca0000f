"""Who a process is, and signals that reach nobody else.

A pid is used again within minutes. So before a signal is sent, the process is pinned by a pidfd and its identity is
read again *after* that; a mismatch means that the process is gone.
"""

from __future__ import annotations

import os
import signal

from semtask.host import procfs
from semtask.model.job import ProcessIdentity


def from_mark(mark: procfs.Mark | None) -> ProcessIdentity | None:
    """The identity that an attempt folder names."""
    return None if mark is None else ProcessIdentity(**mark._asdict())


def open_verified(identity: ProcessIdentity) -> int | None:
    """A pidfd of exactly this process, which may be a zombie; None if it is gone. The caller closes it."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    ours = False
    try:
        ours = _is(identity, pidfd)
    finally:
        if not ours:
            os.close(pidfd)
    return pidfd if ours else None


def send_signal(identity: ProcessIdentity, number: int) -> bool:
    """Whether the signal was sent: False if this process is gone. PermissionError if it is not ours to signal."""
    pidfd = open_verified(identity)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)
    return True


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether exactly this process can still run code; a zombie cannot."""
    pidfd = open_verified(identity)
    if pidfd is None:
        return False
    try:
        seen = procfs.stat(identity.pid)
        return seen is not None and seen.alive and _is(identity, pidfd)
    finally:
        os.close(pidfd)


def has_environment(pid: int, name: str, value: str) -> bool:
    """Whether a process was started with NAME=VALUE in its environment. Those of other users cannot be read."""
    return f"{name}={value}".encode() in environment(pid)


def environment(pid: int) -> list[bytes]:
    """What a process was started with, each NAME=VALUE; empty for a zombie and where it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError as error:  # gone, or another user's
        procfs.raise_if_not_seen(error)
        return []


def _is(identity: ProcessIdentity, pidfd: int) -> bool:
    seen = from_mark(procfs.mark(identity.pid, pidfd))
    if seen is None:
        return False
    if identity.pidfs_inode is not None and seen.pidfs_inode is not None and identity.pidfs_inode != seen.pidfs_inode:
        return False
    return (identity.boot_id, identity.pid_namespace, identity.start_ticks) == (
        seen.boot_id,
        seen.pid_namespace,
        seen.start_ticks,
    )
