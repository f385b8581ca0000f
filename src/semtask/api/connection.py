"""One HTTP/1.1 connection: framing, limits, keep-alive and pipelining, on the httptools parser.

Nothing is held in memory for a request that the guard refuses; its head is all that is read of it. A timer runs only
while a request is incomplete or an answer is not taken, so an idle connection costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from enum import Enum
from http import HTTPStatus

import httptools

from semtask.api.access import Access
from semtask.api.guard import Head, Place, Refused, bad_request, too_large, too_many
from semtask.api.methods import Caller
from semtask.api.site import Request, Response, Site, Standing
from semtask.errors import InvalidRequest
from semtask.protocol import jsonrpc

log = logging.getLogger("semtask.api")


# Of heads: what is parsed beyond the request in work is held as objects, which are many for few bytes.
_PARSED_AT_ONCE = 1024
_NOTHING = memoryview(b"")


class _Phase(Enum):
    BETWEEN = "between"
    HEAD = "head"
    BODY = "body"


class _Incoming:
    """A request that is being read."""

    __slots__ = ("access", "announced_bytes", "body", "body_bytes", "fed", "head", "head_bytes", "headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[bytes, list[bytes]] = {}
        self.head_bytes = 0  # of the target and the complete headers
        self.head: Head | None = None  # once it is complete
        self.access: Access | None = None  # once it was admitted
        self.body: list[bytes] = []
        self.body_bytes = 0
        self.announced_bytes = 0  # of the body; chunks are not announced
        self.fed = 0  # in reads that lie wholly within the head, or within the body


class Connection(asyncio.BufferedProtocol):
    """Reads requests, has the site answer them one by one, and writes the answers in order."""

    _transport: asyncio.Transport

    def __init__(self, site: Site, place: Place) -> None:
        self._site = site
        self._place = place
        self._limits = site.limits
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._caller = Caller(self._waits)
        self._task: asyncio.Task[None] | None = None
        self._queue: deque[Request | Refused] = deque()
        self._phase = _Phase.BETWEEN
        self._incoming = _Incoming()
        self._timer: asyncio.TimerHandle | None = None
        self._timed: tuple[_Incoming, _Phase] | None = None
        self._reading = True  # False once the last request of this connection is known
        self._paused = False
        self._unread = _NOTHING  # while it is paused: what has come after the requests in the queue
        self._lost = False
        self._eof = False
        self._hurry = False
        self._has_turn = False  # of the pipelines that are worked on
        self._writable = asyncio.Event()
        self._writable.set()

    # --- asyncio ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        try:
            self._site.opened(self, transport, self._caller, self._place)
        except Refused as refused:
            self._refuse(refused)

    def get_buffer(self, _wanted: int) -> memoryview:
        return self._site.reads

    def buffer_updated(self, size: int) -> None:
        self._feed(self._site.reads[:size])
        if self._unread:  # the next read is into the same place
            self._unread = memoryview(bytes(self._unread))

    def _feed(self, data: memoryview) -> None:
        """Parse as much as is needed now, and hold back the rest: a read may have a thousand requests in it.

        What follows a last request is dropped: it was read so that the answer is not lost by a reset.
        """
        while data and self._reading and not self._paused:
            size = self._bytes_at_once()
            self._parse(data[:size])
            data = data[size:]
        self._unread = data if self._reading else _NOTHING
        self._set_timer()

    def _bytes_at_once(self) -> int:
        """What is left of a body has no other request in it."""
        if self._phase is not _Phase.BODY:
            return _PARSED_AT_ONCE
        return max(_PARSED_AT_ONCE, self._incoming.announced_bytes - self._incoming.body_bytes)

    def _parse(self, data: memoryview) -> None:
        incoming, phase = self._incoming, self._phase
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # refused with its head
        except httptools.HttpParserCallbackError:
            raise  # a fault of this class
        except httptools.HttpParserError as error:
            self._refuse(bad_request(f"This is not an HTTP request: {error}"))
        if incoming is self._incoming and phase is self._phase:
            incoming.fed += len(data)
            self._check_fed()
        if self._phase is _Phase.BODY and phase is not _Phase.BODY and self._task is None:
            self._site.stands(self, Standing.RECEIVING)

    def eof_received(self) -> bool:
        self._eof = True
        self._caller.leave()
        return self._task is not None  # keep it open for the answers to what was read

    def connection_lost(self, _exc: Exception | None) -> None:
        self._lost = self._caller.gone = True
        self._reading = False
        self._drop_body()
        self._set_timer()
        self._caller.leave()
        self._writable.set()
        self._site.closed(self)
        del self._parser

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._phase = _Phase.HEAD
        self._incoming = _Incoming()

    def on_url(self, url: bytes) -> None:
        self._incoming.target += url
        self._incoming.head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is _Phase.HEAD:  # else it is a trailer of a chunked body
            self._incoming.headers.setdefault(name.lower(), []).append(value)
            self._incoming.head_bytes += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        self._phase = _Phase.BODY
        if not self._reading:
            return
        incoming = self._incoming
        incoming.fed = 0
        incoming.head = head = Head(self._parser.get_method(), incoming.target, incoming.headers)
        self._check_head_size(incoming.head_bytes)
        try:
            incoming.access = self._site.admit(head, self._place, self._caller)
            if self._parser.should_upgrade():
                raise bad_request("This server speaks HTTP/1.1 only and upgrades to nothing.")
        except Refused as refused:
            self._refuse(refused)
            return
        incoming.announced_bytes = sum(map(int, head.values(b"content-length")))
        if self._task is None and any(value.lower() == b"100-continue" for value in head.values(b"expect")):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if not self._reading:
            return
        incoming = self._incoming
        incoming.body_bytes += len(body)
        self._site.held_bytes += len(body)
        if incoming.body_bytes > self._limits.max_body_bytes:
            self._refuse(too_large(self._limits.max_body_bytes))
        elif self._too_much_held():
            self._refuse(too_many("large requests"))
        else:
            incoming.body.append(body)

    def on_message_complete(self) -> None:
        self._phase = _Phase.BETWEEN
        incoming = self._incoming
        if self._reading and incoming.head is not None and incoming.access is not None:
            keep_alive = self._reading = self._parser.should_keep_alive()
            request = Request(incoming.head, incoming.access, b"".join(incoming.body), keep_alive)
            incoming.body.clear()
            incoming.body_bytes = 0  # the request has them now
            self._push(request)

    # --- reading ---------------------------------------------------------------------------------------------------

    def _check_fed(self) -> None:
        """The parser keeps the header, or the trailer, that is not complete yet: it must not grow without end."""
        if self._phase is _Phase.HEAD:
            self._check_head_size(self._incoming.fed)
        elif self._phase is _Phase.BODY and self._incoming.fed > 2 * self._limits.max_body_bytes:
            self._refuse(too_large(self._limits.max_body_bytes))

    def _check_head_size(self, size: int) -> None:
        if size > self._limits.max_head_bytes:
            error = InvalidRequest(f"The head of the request is larger than {self._limits.max_head_bytes} bytes.")
            self._refuse(Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, error))

    def _too_much_held(self) -> bool:
        limits = self._limits
        return (
            self._incoming.body_bytes > limits.small_body_bytes
            and self._site.held_bytes > limits.max_bodies * limits.max_body_bytes
        )

    def _read_on(self) -> None:
        self._paused = False
        self._feed(self._unread)
        if not self._paused:
            self._transport.resume_reading()

    def _drop_body(self) -> None:
        self._site.held_bytes -= self._incoming.body_bytes
        self._incoming.body_bytes = 0
        self._incoming.body.clear()

    def _refuse(self, refused: Refused) -> None:
        """Answer with an error when it is its turn, and close."""
        if self._reading:
            self._reading = False
            self._drop_body()
            self._push(refused)

    def _push(self, item: Request | Refused) -> None:
        self._queue.append(item)
        if self._task is None:
            self._site.stands(self, Standing.WORKING)
            self._task = self._loop.create_task(self._serve())
        elif not self._paused and self._reading:
            self._paused = True
            self._transport.pause_reading()

    def _set_timer(self) -> None:
        wanted = (self._incoming, self._phase) if self._reading and self._phase is not _Phase.BETWEEN else None
        if wanted == self._timed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = wanted
        if wanted is not None:
            delay = self._limits.head_s if self._phase is _Phase.HEAD else self._limits.body_s
            self._timer = self._loop.call_later(delay, self._too_slow)

    def _too_slow(self) -> None:
        self._timer = self._timed = None
        if self._paused:  # it was us who did not read
            self._set_timer()
        else:
            error = InvalidRequest(f"The {self._phase.value} of the request did not arrive in time.")
            self._refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, error))

    # --- answering -------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Answer what has been read. Changes that arrived whole are executed even if the client has gone."""
        try:
            await self._answer_next()
            while self._queue:
                self._stands(Standing.QUEUED)
                await self._site.pipelines.acquire()
                self._has_turn = True
                self._stands(Standing.WORKING)
                await self._answer_next()
        except Exception:
            log.exception("a connection failed and is closed")
            self._transport.abort()
        finally:
            self._end_turn()
            self._task = None
            self._site.held_bytes -= sum(len(item.body) for item in self._queue if isinstance(item, Request))
            self._queue.clear()
        if self._lost:
            return
        if not self._reading or self._eof:
            self._linger()
        receiving = self._reading and self._phase is _Phase.BODY
        self._site.stands(self, Standing.RECEIVING if receiving else Standing.IDLE)

    async def _answer_next(self) -> None:
        item = self._queue.popleft()
        if self._paused and not self._queue:
            self._read_on()
        if isinstance(item, Refused):
            await self._write(self._refusal(item), keep_alive=False)
        else:
            await self._write(await self._respond(item), keep_alive=item.keep_alive)

    async def _respond(self, request: Request) -> Response:
        try:
            return await self._site.respond(request, self._caller)
        finally:
            self._end_turn()
            self._site.held_bytes -= len(request.body)

    def _end_turn(self) -> None:
        """Let another pipeline be worked on: who only waits, or does not take the answer, holds none of them up."""
        if self._has_turn:
            self._has_turn = False
            self._site.pipelines.release()

    def _waits(self, waiting: bool) -> None:
        self._end_turn()
        self._stands(Standing.WAITING if waiting else Standing.WORKING)

    def _stands(self, standing: Standing) -> None:
        if not self._lost:
            self._site.stands(self, standing)

    async def _write(self, response: Response, *, keep_alive: bool) -> None:
        if self._transport.is_closing():
            return
        head = b"HTTP/1.1 %d %s\r\nsemtask-version: %s\r\n" % (
            response.status,
            response.status.phrase.encode(),
            self._site.version,
        )
        for name, value in response.headers:
            head += name + b": " + value + b"\r\n"
        if response.status is not HTTPStatus.NO_CONTENT:
            head += b"content-type: %s\r\ncontent-length: %d\r\n" % (response.content_type, len(response.body))
        if not keep_alive:
            head += b"connection: close\r\n"
        self._transport.write(head + b"\r\n" + response.body)
        if self._writable.is_set():
            return
        self._stands(Standing.STALLED)
        try:
            async with asyncio.timeout(self._limits.answer_s):
                await self._writable.wait()
        except TimeoutError:
            self._transport.abort()
        self._stands(Standing.WORKING)

    def _refusal(self, refused: Refused) -> Response:
        head = self._incoming.head
        to_head_method = head is not None and head.method == b"HEAD"
        body = b"" if to_head_method else jsonrpc.failure(None, refused.error)
        return Response(refused.status, body, refused.headers)

    def _linger(self) -> None:
        """Close, but take in for a while what the client still sends: a reset would destroy the answer."""
        if self._eof or self._hurry:
            self._transport.close()
        else:
            self._transport.write_eof()
            self._loop.call_later(self._limits.linger_s, self._transport.abort)

    def close(self) -> None:
        """Close as soon as the request in work is answered; at once if there is none."""
        self._caller.leave()
        self._reading = False
        self._hurry = True
        self._set_timer()
        if self._task is None:
            self._transport.close()

    def evict(self) -> None:
        """Close it to make room. A client that waits is told so."""
        self._site.closed(self)
        if self._caller.waiting:
            self.close()
        else:
            self.abort()

    def abort(self) -> None:
        """Close now, and give up what is in work."""
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
