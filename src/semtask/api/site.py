"""What a connection belongs to, and what goes between the two: `api.http` offers what `api.connection` needs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, Protocol

from semtask.api.access import Access
from semtask.api.guard import Head, Place
from semtask.api.methods import Caller

if TYPE_CHECKING:
    from semtask.api.connection import Connection


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes and seconds. `body_s` and `answer_s` are for one whole body and one whole answer.

    `max_bodies` bodies of the largest size are held at once, over all connections; small ones are always taken.
    """

    max_body_bytes: int
    max_bodies: int = 16
    small_body_bytes: int = 64 * 1024
    max_head_bytes: int = 16 * 1024
    head_s: float = 10.0
    body_s: float = 30.0
    answer_s: float = 30.0
    linger_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, without what every answer has in its head."""

    status: HTTPStatus
    body: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = ()
    content_type: bytes = b"application/json"


class Request(NamedTuple):
    """A request that has been read."""

    head: Head
    access: Access
    body: bytes
    keep_alive: bool


class Standing(Enum):
    """What a connection is to its server, in the order in which connections are closed to make room for others."""

    IDLE = "idle"  # no request, or not even the head of one
    RECEIVING = "receiving"  # a request whose body is not complete
    STALLED = "stalled"  # an answer that the client does not take
    QUEUED = "queued"  # requests that were sent before the former one was answered, and wait for their turn
    WAITING = "waiting"  # a request that only waits, and changes nothing
    WORKING = "working"  # never closed for others


class Site(Protocol):
    """What a connection belongs to."""

    limits: Limits
    version: bytes
    held_bytes: int  # of bodies, by all connections
    reads: memoryview  # where each read goes, to be used up at once
    pipelines: asyncio.Semaphore  # for requests that were sent before the former one was answered

    def opened(self, connection: Connection, transport: asyncio.Transport, caller: Caller, place: Place) -> None:
        """Find out who the caller is. May raise Refused."""
        ...

    def stands(self, connection: Connection, standing: Standing) -> None: ...
    def closed(self, connection: Connection) -> None: ...

    def admit(self, head: Head, place: Place, caller: Caller) -> Access:
        """What its sender may do. Raises Refused for a request that may not be read."""
        ...

    async def respond(self, request: Request, caller: Caller) -> Response:
        """The answer to a request that was admitted and has arrived whole."""
        ...
