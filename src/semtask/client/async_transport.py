"""HTTP connections to the daemon for asyncio: as many as requests are under way, kept for the next ones."""

from __future__ import annotations

import asyncio
import socket
from typing import Self

from semtask.client.address import Address, connect
from semtask.client.http import (
    CONNECT_TIMEOUT,
    READ_SIZE,
    REPEATS,
    Answer,
    ConnectionLost,
    Notice,
    Protocol,
    is_stale,
    print_notice,
    request,
)

# Above it requests wait for their turn: the daemon has a limit of its own, for all clients together.
MAX_CONNECTIONS = 100
_KEPT = 64


class AsyncTransport:
    """Requests to one daemon, any number at a time. For one event loop.

    `notice` gets one line if the daemon is of another version than this client.
    """

    def __init__(self, address: Address, *, notice: Notice = print_notice) -> None:
        self.address = address
        self._protocol = Protocol(address, notice)
        self._room = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: list[socket.socket] = []
        self._authorization: str | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def exchange(self, method: str, params: bytes, *, timeout: float, repeatable: bool) -> bytes:
        """As `Transport.exchange`. A cancelled request closes its connection, which tells the daemon."""
        body = request(method, params)
        pauses = iter(REPEATS if repeatable else ())
        async with self._room:
            try:
                async with asyncio.timeout(timeout):
                    while True:
                        try:
                            return await self._attempt(body)
                        except ConnectionLost as lost:
                            pause = next(pauses, None)
                            if pause is None:
                                raise self._protocol.lost(method, repeatable=repeatable) from lost
                        await asyncio.sleep(pause)
            except TimeoutError:
                raise self._protocol.timed_out(method, timeout) from None

    async def _attempt(self, body: bytes) -> bytes:
        connection = self._fresh() or await self._open()
        try:
            await self._send(connection, self._protocol.request(body, self._authorization))
            answer = await self._receive(connection)
        except BaseException:
            connection.close()  # what would be read next is no longer known
            raise
        if answer.is_last or len(self._idle) >= _KEPT:
            connection.close()
        else:
            self._idle.append(connection)
        return self._protocol.accept(answer)

    def _fresh(self) -> socket.socket | None:
        while self._idle:
            connection = self._idle.pop()
            if not is_stale(connection):
                return connection
            connection.close()
        return None

    async def _open(self) -> socket.socket:
        # In a thread: only a blocking connect waits for room in the daemon's backlog.
        opening = asyncio.get_running_loop().run_in_executor(None, connect, self.address, CONNECT_TIMEOUT)
        try:
            connection = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_late)
            raise
        connection.setblocking(False)
        self._authorization = self.address.authorization()
        return connection

    @staticmethod
    async def _send(connection: socket.socket, data: bytes) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(connection, data)
        except OSError:
            return  # refused before it was read whole, or gone: the answer tells, or its absence

    async def _receive(self, connection: socket.socket) -> Answer:
        loop = asyncio.get_running_loop()
        reader = self._protocol.reader()
        while True:
            try:
                data = await loop.sock_recv(connection, READ_SIZE)
            except OSError as error:
                raise ConnectionLost from error
            if (answer := reader.feed(data)) is not None:
                return answer


def _close_late(opening: asyncio.Future[socket.socket]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
