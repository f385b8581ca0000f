"""The worker's end of its connection to the daemon: frames on a socket, tokens on an eventfd."""

from __future__ import annotations

import os
import select
import socket
import threading

from semtask.protocol.frames import Frames, ToDaemon, ToWorker, encode, to_worker

_CHUNK = 256 * 1024


class DaemonGone(Exception):
    """The socket has ended: nothing more is begun."""


class Channel:
    """Closed in every forked child: only the worker itself speaks for its jobs."""

    def __init__(self, socket_fd: int, tokens_fd: int) -> None:
        self._socket = socket.socket(fileno=socket_fd)
        self._tokens = tokens_fd
        self._frames = Frames()
        self._sending = threading.Lock()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._poll_all = select.poll()
        self._poll_all.register(self._socket, select.POLLIN)
        self._poll_all.register(tokens_fd, select.POLLIN)
        self.is_closed = False
        os.register_at_fork(after_in_child=self._close)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: ToDaemon) -> None:
        """Send a frame, from any thread. A daemon that is gone is noticed by who reads next.

        Raises RuntimeError in a forked child, and OSError if the task has closed the socket.
        """
        if self.is_closed:
            raise RuntimeError("only the process of a job can speak for it, not a child that it has forked")
        data = encode(message)
        with self._sending:
            try:
                self._socket.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                return

    def receive(self) -> list[ToWorker]:
        """Wait for bytes; the frames that they complete. Raises DaemonGone at the end, and ProtocolError."""
        return self._take(self._read(0))

    def receive_now(self) -> list[ToWorker]:
        """All frames that have come. Raises DaemonGone if the end is behind them: none of them must be begun."""
        messages: list[ToWorker] = []
        while self.has_input():
            messages += self._take(self._read(socket.MSG_DONTWAIT))
        return messages

    def has_input(self) -> bool:
        """Whether frames have come, or the end."""
        return bool(self._poll.poll(0))

    def wait(self) -> None:
        """Until there are bytes, a token, or the end."""
        self._poll_all.poll()

    def take_token(self) -> bool:
        try:
            os.eventfd_read(self._tokens)
        except BlockingIOError:
            return False
        return True

    def _read(self, flags: int) -> bytes:
        try:
            data = self._socket.recv(_CHUNK, flags)
        except ConnectionResetError:
            data = b""
        if not data:
            raise DaemonGone
        return data

    def _take(self, data: bytes) -> list[ToWorker]:
        self._frames.feed(data)
        return [to_worker(body) for body in self._frames.bodies()]

    def _close(self) -> None:
        if self.is_closed:  # forked from a child, where these numbers may belong to other files
            return
        self.is_closed = True
        self._socket.close()
        os.close(self._tokens)
