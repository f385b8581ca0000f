"""The daemon's end of the connection to a worker: frames on a socket, tokens on an eventfd. See protocol.frames."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from semtask.protocol.frames import Frames, ProtocolError, ToDaemon, ToWorker, encode, to_daemon

_CHUNK = 256 * 1024


class WorkerLink:
    """`on_frames` gets what was there at a wake-up. `on_end` is called once: at the end of the stream, or with the
    error that makes it useless. Both on the event loop; nothing is read before `handed_over`.
    """

    def __init__(
        self, on_frames: Callable[[Sequence[ToDaemon]], None], on_end: Callable[[ProtocolError | None], None]
    ) -> None:
        self._on_frames = on_frames
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._frames = Frames()
        self._unsent = bytearray()
        self._runs: deque[tuple[bytes, int, bool]] = deque()  # wait until all before them was sent
        self._writing = False
        self._reading = False
        self._leaving = False
        self._socket, self._theirs = socket.socketpair()
        try:
            self._socket.setblocking(False)
            self._tokens = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        except OSError:
            self._socket.close()
            self._theirs.close()
            raise

    @property
    def passed(self) -> tuple[int, int]:
        """What the worker inherits."""
        return self._theirs.fileno(), self._tokens

    def handed_over(self) -> None:
        """The worker has its end now: read what comes."""
        self._theirs.close()
        self._reading = True
        self._loop.add_reader(self._socket, self.read)

    @property
    def is_clear(self) -> bool:
        """Whether everything was sent."""
        return not self._unsent and not self._runs

    # --- out -----------------------------------------------------------------------------------------------------

    def send(self, message: ToWorker) -> None:
        self._send(encode(message))

    def run(self, frame: bytes, jobs: int, *, tokens: bool) -> None:
        """Send a Run with so many jobs, and a token for each, once all before it was sent: a Recalled must arrive
        before any later token.
        """
        if self.is_clear:
            self._begin(frame, jobs, tokens)
        else:
            self._runs.append((frame, jobs, tokens))

    def withdraw(self) -> int:
        """Forget the jobs that `run` has not begun to send; how many these were, the last ones."""
        count = sum(jobs for _, jobs, _ in self._runs)
        self._runs.clear()
        return count

    def take_tokens(self, most: int) -> int:
        """Take back up to so many tokens; each one is that of the last job that still had one."""
        buffer = bytearray(8)
        taken = 0
        while taken < most:
            try:
                # The worker shares the flags of the descriptor, and its jobs must not be able to block the daemon.
                os.preadv(self._tokens, [buffer], -1, os.RWF_NOWAIT)
            except BlockingIOError:
                break
            taken += 1
        return taken

    def leave(self) -> None:
        """Send nothing more: the worker leaves when it has read that."""
        self._leaving = True
        if self.is_clear:
            with suppress(OSError):  # it has left already
                self._socket.shutdown(socket.SHUT_WR)

    def _begin(self, frame: bytes, jobs: int, tokens: bool) -> None:
        if tokens:
            os.eventfd_write(self._tokens, jobs)
        self._send(frame)

    def _send(self, frame: bytes) -> None:
        if self._unsent:
            self._unsent += frame
            return
        sent = self._try(frame)
        if sent < len(frame):
            self._unsent += memoryview(frame)[sent:]
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket, self._write)

    def _try(self, data: bytes | bytearray) -> int:
        """How much the socket took. Of a worker that is gone its shim will tell: then it takes everything."""
        try:
            return self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError:
            return len(data)

    def _write(self) -> None:
        del self._unsent[: self._try(self._unsent)]
        while not self._unsent and self._runs:
            self._begin(*self._runs.popleft())
        if not self._unsent:
            self._stop_writing()
            if self._leaving:
                self.leave()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket)

    # --- in ------------------------------------------------------------------------------------------------------

    def read(self) -> None:
        """Take what is there now."""
        if self._reading:
            self._receive()

    def drain(self) -> None:
        """Take everything that a worker that is gone has sent."""
        while self._reading and self._receive():
            pass

    def _receive(self) -> bool:
        """Whether there may be more."""
        try:
            data = self._socket.recv(_CHUNK)
        except BlockingIOError:
            return False
        except ConnectionResetError:  # it was gone before it had read everything
            data = b""
        if not data:
            self._end(None)
            return False
        self._frames.feed(data)
        messages: list[ToDaemon] = []
        broken: ProtocolError | None = None
        try:
            for body in self._frames.bodies():
                messages.append(to_daemon(body))  # noqa: PERF401 - those before a bad one count
        except ProtocolError as error:
            broken = error
        if messages:
            self._on_frames(messages)
        if broken is not None:
            self._end(broken)
        return broken is None

    def _end(self, error: ProtocolError | None) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)
            self._on_end(error)

    def close(self) -> None:
        """May be called twice."""
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)
        self._stop_writing()
        self._theirs.close()
        self._socket.close()
        if self._tokens >= 0:
            os.close(self._tokens)
            self._tokens = -1
