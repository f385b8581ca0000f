"""Being told that a file changed: a small inotify for the event loop."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

_IN_MODIFY = 0x00000002
_IN_DONT_FOLLOW = 0x02000000
_IN_ONESHOT = 0x80000000
_IN_Q_OVERFLOW = 0x00004000
_EVENT = struct.Struct("iIII")  # watch descriptor, mask, cookie, length of the name


class Watch:
    """One armed watch. It ends when it fires or is disarmed."""

    __slots__ = ("descriptor", "fired")

    def __init__(self, descriptor: int, fired: Callable[[], None]) -> None:
        self.descriptor = descriptor
        self.fired = fired


class Notifier:
    """Calls back, on the running event loop, at the next change of a file.

    Each watch fires once: a writer of gigabytes costs one event per `arm`, however much it writes.
    """

    def __init__(self) -> None:
        self._fd = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")
        # The kernel knows one watch per file and instance, so several waiters may share a descriptor.
        self._watches: dict[int, list[Watch]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._fd, self._drain)

    def arm(self, path: Path, fired: Callable[[], None]) -> Watch:
        """Call `fired` when the file is next written, truncated or deleted.

        Look at the file after this call, not before it: then no change can fall between the look and the watch.
        Raises OSError: ENOENT when there is no file, ENOSPC when the user has no inotify watch left.
        """
        descriptor = _checked(
            _libc.inotify_add_watch(
                self._fd, os.fsencode(path), ctypes.c_uint32(_IN_MODIFY | _IN_DONT_FOLLOW | _IN_ONESHOT)
            ),
            os.fspath(path),
        )
        watch = Watch(descriptor, fired)
        self._watches.setdefault(descriptor, []).append(watch)
        return watch

    def disarm(self, watch: Watch) -> None:
        """End the watch, if it has not fired yet."""
        sharers = self._watches.get(watch.descriptor, [])
        if watch not in sharers:
            return
        sharers.remove(watch)
        if not sharers:
            del self._watches[watch.descriptor]
            # Fails with EINVAL when the watch has just fired and its event is still unread: it is gone, as wanted.
            _libc.inotify_rm_watch(self._fd, watch.descriptor)

    def close(self) -> None:
        """Fire what is armed, so that nobody waits forever, and close the descriptor."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._fire_all()

    def _drain(self) -> None:
        events = os.read(self._fd, 65536)
        position = 0
        while position < len(events):
            descriptor, mask, _, name_length = _EVENT.unpack_from(events, position)
            position += _EVENT.size + name_length
            if mask & _IN_Q_OVERFLOW:
                self._fire_all()
            else:
                self._fire(descriptor)

    def _fire(self, descriptor: int) -> None:
        for watch in self._watches.pop(descriptor, []):
            watch.fired()

    def _fire_all(self) -> None:
        for descriptor in list(self._watches):
            self._fire(descriptor)


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
    return result
