"""One HTTP connection to the daemon, over its unix socket or the loopback port. Standard library only."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import Any, Self, TypeVar, cast

from semtask import errors
from semtask.client.address import Address, connect, peer
from semtask.client.http import (
    CONNECT_TIMEOUT,
    DEFAULT_TIMEOUT,
    READ_SIZE,
    REPEATS,
    Answer,
    ConnectionLost,
    Notice,
    Protocol,
    encode,
    is_repeatable,
    is_stale,
    print_notice,
    request,
)
from semtask.client.messages import Message, Request

R = TypeVar("R")


class Transport:
    """Requests to one daemon, one at a time, over a connection that is kept. Not thread-safe: one per thread.

    `notice` gets one line if the daemon is of another version than this client.
    """

    def __init__(self, address: Address, *, notice: Notice = print_notice) -> None:
        self.address = address
        self._protocol = Protocol(address, notice)
        self._connection: socket.socket | None = None
        self._authorization: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def connect(self, timeout: float = CONNECT_TIMEOUT) -> None:
        """Connect unless connected. Raises NotRunning if nobody listens, else DaemonUnavailable or Unauthorized."""
        if self._connection is None:
            self._connection = connect(self.address, timeout)
            self._authorization = self.address.authorization()

    def peer_pid(self) -> int:
        """The pid of the daemon as the kernel knows it; 0 if it cannot be seen from here. Unix socket only."""
        self.connect()
        assert self._connection is not None
        return peer(self._connection)[0] if self._connection.family == socket.AF_UNIX else 0

    def call(self, method: str, params: Mapping[str, Any], timeout: float = DEFAULT_TIMEOUT) -> Any:
        """The result of a method, as decoded JSON. `timeout` in seconds covers the whole exchange.

        Raises the class of errors.py that stands for the daemon's error code, or DaemonUnavailable. A request whose
        answer was lost is repeated if that is safe: a read, or an enqueue with an idempotency key.
        """
        answer = json.loads(
            self.exchange(method, encode(params), timeout=timeout, repeatable=is_repeatable(method, params))
        )
        if "error" in answer:
            raise errors.from_wire(answer["error"])
        return answer["result"]

    def send(self, request: Request[R], /, timeout: float = DEFAULT_TIMEOUT) -> R:
        """The answer to a request, which may take longer than `timeout` if it waits. Raises as `call` does."""
        answer = self.call(request.method, request.params, timeout + request.wait_ms / 1000)
        return cast(R, Message(answer))

    def exchange(self, method: str, params: bytes, *, timeout: float, repeatable: bool) -> bytes:
        """The JSON-RPC response to `params` (a JSON object), undecoded; it holds `result` or `error`."""
        body = request(method, params)
        deadline = time.monotonic() + timeout
        pauses = iter(REPEATS if repeatable else ())
        while True:
            try:
                return self._attempt(body, deadline)
            except TimeoutError:
                raise self._protocol.timed_out(method, timeout) from None
            except ConnectionLost as lost:
                pause = next(pauses, None)
                if pause is None:
                    raise self._protocol.lost(method, repeatable=repeatable) from lost
            time.sleep(pause)

    def _attempt(self, body: bytes, deadline: float) -> bytes:
        if self._connection is not None and is_stale(self._connection):
            self.close()
        self.connect()
        try:
            self._send(self._protocol.request(body, self._authorization), deadline)
            answer = self._receive(deadline)
        except BaseException:
            self.close()  # what would be read next is no longer known
            raise
        if answer.is_last:
            self.close()
        return self._protocol.accept(answer)

    def _send(self, data: bytes, deadline: float) -> None:
        assert self._connection is not None
        self._connection.settimeout(_left(deadline))
        try:
            self._connection.sendall(data)
        except TimeoutError:
            raise
        except OSError:
            return  # refused before it was read whole, or gone: the answer tells, or its absence

    def _receive(self, deadline: float) -> Answer:
        assert self._connection is not None
        reader = self._protocol.reader()
        while True:
            self._connection.settimeout(_left(deadline))
            try:
                data = self._connection.recv(READ_SIZE)
            except TimeoutError:
                raise
            except OSError as error:
                raise ConnectionLost from error
            if (answer := reader.feed(data)) is not None:
                return answer


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
