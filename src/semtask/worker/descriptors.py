"""Descriptors of the worker's own, out of the way of what tasks do with low ones. Standard library only."""

from __future__ import annotations

import fcntl
import resource

_HIGH = 200  # above the descriptors that careless code closes
_ROOM = 16  # descriptors above ours, where the limit is low


def keep_aside(fd: int) -> int:
    """A duplicate with a high number, as far as the limit of open files lets it. Raises OSError."""
    highest = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    high = _HIGH if highest == resource.RLIM_INFINITY else max(3, min(_HIGH, highest - _ROOM))
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, high)
