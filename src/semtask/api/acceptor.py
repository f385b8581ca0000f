"""Takes connections in, also while the process has no file descriptor left for them."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress

log = logging.getLogger("semtask.api")

# In one turn of the loop; others are served in between.
ACCEPTED_AT_ONCE = 64
# With nothing left at all, until the next look.
_PAUSE_S = 1.0
_QUIET_S = 60.0  # between two lines of the log
_REQUEST_BYTES = 64 * 1024
# A client sends immediately. One that does not keeps the others waiting for this long.
_REQUEST_S, _HANG_UP_S = 0.25, 0.05
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Accepts on a listening socket. It keeps a spare descriptor: when there is no other one, that takes in one
    connection after the other, to answer it with `refusal` and close it.

    `short` is called then, for each of them.
    """

    def __init__(
        self,
        sock: socket.socket,
        protocol: Callable[[], asyncio.BaseProtocol],
        *,
        refusal: bytes,
        short: Callable[[str], None],
    ) -> None:
        self._sock = sock
        self._protocol = protocol
        self._refusal = refusal
        self._short = short
        self._loop = asyncio.get_running_loop()
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._opening: set[asyncio.Task[object]] = set()
        self._refusing: asyncio.Task[None] | None = None
        self._refused = 0
        self._told_at = -_QUIET_S
        self._loop.add_reader(sock, self._accept)

    def close(self) -> None:
        """Accept nothing more."""
        self._loop.remove_reader(self._sock)
        if self._refusing is not None:
            self._refusing.cancel()
        self._sock.close()
        self._give_spare()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                self._run_short(error)
                return
            connection.setblocking(False)
            task = self._loop.create_task(self._open(connection))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError as error:
            log.warning("a connection cannot be served: %s", error)
            connection.close()

    # --- without descriptors -----------------------------------------------------------------------------------------

    def _run_short(self, error: OSError) -> None:
        """Answer those who wait at the door one by one, until there are descriptors again."""
        self._loop.remove_reader(self._sock)
        self._tell(error)
        self._refusing = self._loop.create_task(self._refuse_all(f"no connection can be taken in: {error.strerror}"))
        self._refusing.add_done_callback(self._go_on)

    async def _refuse_all(self, why: str) -> None:
        waiting = True
        while waiting:
            self._short(why)
            self._give_spare()
            try:
                connection, _ = self._sock.accept()
            except OSError as error:
                waiting = not isinstance(error, BlockingIOError)
                self._take_spare()
                await asyncio.sleep(_PAUSE_S if waiting else 0)
                continue
            with connection, suppress(OSError, TimeoutError):  # who has hung up needs no answer
                connection.setblocking(False)
                await self._refuse(connection)
            self._refused += 1
            waiting = not self._take_spare() or not self._has_room()

    async def _refuse(self, connection: socket.socket) -> None:
        """Closing with something unread, or before it is sent, would destroy the answer: a moment for either."""
        async with asyncio.timeout(_REQUEST_S):
            await self._loop.sock_recv(connection, _REQUEST_BYTES)
        connection.send(self._refusal)
        connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_HANG_UP_S):
            while await self._loop.sock_recv(connection, _REQUEST_BYTES):
                pass

    def _go_on(self, task: asyncio.Task[None]) -> None:
        self._refusing = None
        if not task.cancelled():
            self._loop.add_reader(self._sock, self._accept)

    def _has_room(self) -> bool:
        """Whether there is a descriptor beside the spare one."""
        try:
            os.close(os.dup(self._sock.fileno()))
        except OSError:
            return False
        return True

    def _give_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _take_spare(self) -> bool:
        if self._spare is None:
            with suppress(OSError):  # somebody else was quicker; there will be one again
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return self._spare is not None

    def _tell(self, error: OSError) -> None:
        now = self._loop.time()
        if now >= self._told_at + _QUIET_S:
            self._told_at = now
            log.error("connections are refused: %s; %d so far (see `ulimit -n`)", error.strerror, self._refused)
