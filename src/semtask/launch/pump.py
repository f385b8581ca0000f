"""The way of a command's output into its log: a pipe for each stream, emptied by the shim. Standard library only.

A command may open its output again (`> /dev/stderr`, `tee /dev/stdout`). If that were the log itself, it could be
truncated and overwritten that way; a pipe has neither a length nor a position.

The daemon holds the read end as well, and empties it if the shim is lost: only the death of both loses what is in it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
import termios
import time
from collections.abc import Iterable
from contextlib import suppress

from semtask.launch import control

_CHUNK = 256 * 1024
_COPY = 64 * 1024
_LARGE_PIPE = 256 * 1024  # of the 64 MiB that the kernel grants to all pipes of a user
_LITTLE = 4096
_GATHER_MS = 1  # a program that writes line by line must not cost two context switches for each line

Events = list[tuple[int, int]]


class Pump:
    """Moves output from `source`, the read end of a pipe, to `log`; it owns both descriptors.

    `log` is shared by everybody who pumps, with its position, and not opened for appending (splice refuses that).
    Whatever cannot be written is dropped, because a full disk must not stop the command; the log says how much it was.
    """

    def __init__(self, source: int, log: int) -> None:
        self.source = source
        self._log = log
        self._is_large = False
        self._dropped = 0
        self._why = ""
        self._note = b""  # what is left to be written about what was dropped

    def move(self, limit: int = _CHUNK) -> int:
        """Take at most `limit` bytes out of the pipe; 0 at its end. BlockingIOError if it is empty."""
        if (self._dropped or self._note) and not self.account():
            data = self._read(limit)
            self._dropped += len(data)
            return len(data)
        try:
            return os.splice(self.source, self._log, limit, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            raise
        except OSError:  # a full disk, or a file system that cannot splice
            return self._copy(limit)

    def drain(self) -> None:
        """Move what is in the pipe now. It may still be open in processes that are not the command's."""
        left = int.from_bytes(fcntl.ioctl(self.source, termios.FIONREAD, bytes(4)), "little")
        while left > 0:
            try:
                moved = self.move(min(left, _CHUNK))
            except BlockingIOError:  # somebody else has read it
                return
            if not moved:
                return
            left -= moved
        self.account()

    def account(self) -> bool:
        """Write down how much was dropped; whether that is done."""
        if self._dropped and not self._note:
            self._note = f"\n[... {self._dropped:,} bytes could not be written: {self._why} ...]\n".encode()
        try:
            while self._note:
                self._note = self._note[os.write(self._log, self._note) :]
                self._dropped = 0
        except OSError:
            if self._dropped:  # nothing of it was written: the number may still grow
                self._note = b""
            return False
        return True

    def enlarge(self) -> None:
        """Give a fast writer a larger pipe, unless the user's pipes take too much memory already."""
        if not self._is_large:
            self._is_large = True
            try:
                fcntl.fcntl(self.source, fcntl.F_SETPIPE_SZ, _LARGE_PIPE)
            except OSError:
                return

    def close(self) -> None:
        os.close(self.source)
        os.close(self._log)

    def _copy(self, limit: int) -> int:
        data = self._read(limit)
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._log, rest) :]
        except OSError as error:
            self._dropped += len(rest)
            self._why = os.strerror(error.errno or 0)
        return len(data)

    def _read(self, limit: int) -> bytes:
        os.set_blocking(self.source, False)
        return os.read(self.source, min(limit, _COPY))


class Pumps:
    """The streams of one command, moved while its shim waits for other things. A worker asks for more of them."""

    def __init__(self, pumps: Iterable[Pump]) -> None:
        self._open = {pump.source: pump for pump in pumps}
        self._ended: list[Pump] = []  # there was no room in the log to say what is missing
        self._requests: socket.socket | None = None

    def take_requests(self) -> int:
        """A descriptor for a worker, by which it leads output to the logs of its jobs: see worker.stream."""
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._requests.setblocking(False)
        return theirs.detach()

    def poll(self, poll: select.poll, timeout_ms: float | None) -> Events:
        """As `poll.poll`; moves output while it waits. Nothing of it is registered in `poll` before and after."""
        until = None if timeout_ms is None else time.monotonic() + timeout_ms / 1000
        while own := self._descriptors():
            for fd in own:
                poll.register(fd, select.POLLIN)
            events = poll.poll(timeout_ms)
            for fd in own:
                poll.unregister(fd)
            others = [event for event in events if event[0] not in own]
            moved = sum(self._move(self._open[fd]) for fd, _ in events if fd in self._open)
            if len(others) < len(events):
                self._receive()
            if not others and 0 < moved < _LITTLE:
                others = poll.poll(_GATHER_MS)
            if until is not None:
                timeout_ms = max(0.0, (until - time.monotonic()) * 1000)
            if others or not events or timeout_ms == 0:
                return others
        return poll.poll(timeout_ms)

    def drain(self) -> None:
        """Move what is in the pipes; the command and all its processes are gone."""
        self._receive()
        for pump in self._open.values():
            pump.drain()

    def close(self) -> None:
        """Where the disk was full, the end of the log may have to say so."""
        for pump in (*self._ended, *self._open.values()):
            pump.account()
            pump.close()
        if self._requests is not None:
            self._requests.close()

    def _descriptors(self) -> list[int]:
        return [*self._open] if self._requests is None else [*self._open, self._requests.fileno()]

    def _move(self, pump: Pump) -> int:
        try:
            moved = pump.move()
        except BlockingIOError:  # somebody else has read it
            return 0
        if not moved:
            del self._open[pump.source]
            if pump.account():
                pump.close()
            else:
                self._ended.append(pump)
        elif moved >= _COPY:
            pump.enlarge()
        return moved

    def _receive(self) -> None:
        while self._requests is not None:
            try:
                data, fds, _ = control.receive(self._requests)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data, fds = b"", []
            if len(fds) == 2 and stat.S_ISFIFO(os.fstat(fds[0]).st_mode):
                self._open[fds[0]] = Pump(*fds)
            else:
                for fd in fds:
                    os.close(fd)
            if not data:
                self._requests.close()
                self._requests = None
            elif not fds:
                self._answer(self._requests, data)

    def _answer(self, worker: socket.socket, data: bytes) -> None:
        for pump in self._open.values():
            pump.drain()
        with suppress(OSError):  # it is gone
            worker.send(data, socket.MSG_NOSIGNAL)
