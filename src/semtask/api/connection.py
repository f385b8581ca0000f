"""The session of one HTTP/1.1 connection: its requests in order, time limits, keep-alive, pipelining and streams.

Nothing is held in memory for a request that the guard refuses; its head is all that is read of it. A timer runs only
while a request is incomplete or a response is not taken, so an idle connection costs nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from enum import Enum
from http import HTTPStatus
from typing import Protocol

from semtask.api import framing
from semtask.api.access import Access
from semtask.api.framing import End, Event, Phase, RequestParser, Serializer
from semtask.api.guard import Endpoint
from semtask.api.limits import HttpLimits
from semtask.api.messages import Head, Refused, Response, too_many
from semtask.api.methods import Caller
from semtask.api.routes import Request, Route
from semtask.errors import InvalidRequest

log = logging.getLogger("semtask.api")

_NOTHING = memoryview(b"")
_PIECE_BYTES = 65536  # of a stream, written before its client has to take something


class ConnectionState(Enum):
    """What a connection does, in the order in which connections are closed to make room for others."""

    IDLE = "idle"  # no request, or not even the head of one
    RECEIVING = "receiving"  # a request whose body is not complete
    STALLED = "stalled"  # a response that the client does not take
    QUEUED = "queued"  # requests that were sent before the former one was answered, and wait for their turn
    WAITING = "waiting"  # a request that only waits, and changes nothing
    STREAMING = "streaming"  # a response that is produced as long as somebody reads it
    WORKING = "working"  # never closed for others


class ConnectionOwner(Protocol):
    """What a connection needs of its server."""

    limits: HttpLimits
    serializer: Serializer
    held_bytes: int  # of bodies, by all connections
    streams: int  # responses that are being streamed, by all connections
    reads: memoryview  # where each read goes, to be used up before the next one
    pipelines: asyncio.Semaphore  # for requests that were sent before the former one was answered

    def opened(self, connection: Connection, transport: asyncio.Transport, caller: Caller, endpoint: Endpoint) -> None:
        """Find out who the caller is. May raise Refused."""
        ...

    def set_state(self, connection: Connection, state: ConnectionState) -> None: ...
    def closed(self, connection: Connection) -> None: ...

    def admit(self, head: Head, endpoint: Endpoint, caller: Caller) -> tuple[Route, Access]:
        """Who answers, and what the sender may do. Raises Refused for a request that may not be read."""
        ...

    async def respond(self, request: Request, caller: Caller) -> Response:
        """The response to a request that was admitted and has arrived whole."""
        ...


class Connection(asyncio.BufferedProtocol):
    """Reads requests, has its owner answer them one by one, and writes the responses in order."""

    _transport: asyncio.Transport

    def __init__(self, owner: ConnectionOwner, endpoint: Endpoint) -> None:
        self._owner = owner
        self._endpoint = endpoint
        self._limits = owner.limits
        self._parser = RequestParser(owner.limits)
        self._loop = asyncio.get_running_loop()
        self._caller = Caller(self._waits)
        self._task: asyncio.Task[None] | None = None
        self._queue: deque[Request | Refused] = deque()
        self._admitted: tuple[Head, Route, Access] | None = None  # the request that is being read
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._continue_due = False  # its sender waits for "100 Continue"
        self._timer: asyncio.TimerHandle | None = None
        self._timed: tuple[int, Phase] | None = None
        self._reading = True  # False once the last request of this connection is known
        self._paused = False
        self._unread = _NOTHING  # while it is paused: what has come after the requests in the queue
        self._lost = False
        self._eof = False
        self._hurry = False
        self._has_turn = False  # of the pipelines that are worked on
        self._stream: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # --- asyncio ---------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        try:
            self._owner.opened(self, transport, self._caller, self._endpoint)
        except Refused as refused:
            self._refuse(refused)

    def get_buffer(self, _wanted: int) -> memoryview:
        return self._owner.reads

    def buffer_updated(self, size: int) -> None:
        self._feed(self._owner.reads[:size])
        if self._unread:  # the next read is into the same place
            self._unread = memoryview(bytes(self._unread))

    def eof_received(self) -> bool:
        self._eof = True
        self._leave()
        return self._task is not None  # keep it open for the responses to what was read

    def connection_lost(self, _exc: Exception | None) -> None:
        self._lost = self._caller.gone = True
        self._leave()
        self._writable.set()
        self._owner.closed(self)
        if self._task is None or not self._paused:  # otherwise requests that have come whole are held back
            self._read_no_more()
        if self._task is None:
            self._parser.close()

    def _read_no_more(self) -> None:
        self._reading = False
        self._unread = _NOTHING
        self._drop_body()
        self._set_timer()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- reading ---------------------------------------------------------------------------------------------------

    def _feed(self, data: memoryview) -> None:
        """Parse as much as is needed now, and hold back the rest: a read may have a thousand requests in it.

        What follows a last request is dropped: it was read so that the response is not lost by a reset.
        """
        parser = self._parser
        before = parser.phase
        while data and self._reading and not self._paused:
            size = parser.feed_bytes
            for event in parser.feed(data[:size]):
                self._take(event)
            data = data[size:]
        self._unread = data if self._reading else _NOTHING
        if self._task is None and self._reading and parser.phase is Phase.BODY and before is not Phase.BODY:
            self._set_state(ConnectionState.RECEIVING)
        if self._continue_due:
            self._continue()
        self._set_timer()

    def _take(self, event: Event) -> None:
        if not self._reading:
            return
        if isinstance(event, bytes):
            self._take_body(event)
        elif isinstance(event, Head):
            self._take_head(event)
        elif isinstance(event, End):
            self._take_end(event)
        else:
            self._refuse(event)

    def _take_head(self, head: Head) -> None:
        try:
            route, access = self._owner.admit(head, self._endpoint, self._caller)
        except Refused as refused:
            self._refuse(refused)
            return
        self._admitted = head, route, access
        expected = head.values(b"expect")
        self._continue_due = head.version != "1.0" and any(value.lower() == b"100-continue" for value in expected)

    def _take_body(self, part: bytes) -> None:
        self._continue_due = False  # it did not wait
        self._body_bytes += len(part)
        self._owner.held_bytes += len(part)
        if self._too_much_held():
            self._refuse(too_many("large requests"))
        else:
            self._body.append(part)

    def _take_end(self, end: End) -> None:
        assert self._admitted is not None
        head, route, access = self._admitted
        self._admitted = None
        self._continue_due = False
        self._reading = end.keep_alive
        request = Request(head, route, access, b"".join(self._body), end.keep_alive)
        self._body.clear()
        self._body_bytes = 0  # the request has them now
        self._push(request)

    def _too_much_held(self) -> bool:
        limits = self._limits
        return (
            self._body_bytes > limits.small_body_bytes
            and self._owner.held_bytes > limits.max_bodies * limits.max_body_bytes
        )

    def _continue(self) -> None:
        """Send "100 Continue" when it is the turn of the request that waits for it: responses come in order."""
        if self._task is None and self._reading and not self._lost:
            self._continue_due = False
            self._transport.write(framing.CONTINUE)
            self._timed = None  # from now on the client can send its body

    def _read_on(self) -> None:
        self._paused = False
        self._feed(self._unread)
        if self._paused:
            return
        if self._lost:
            self._read_no_more()
        else:
            self._transport.resume_reading()

    def _drop_body(self) -> None:
        self._owner.held_bytes -= self._body_bytes
        self._body_bytes = 0
        self._body.clear()

    def _refuse(self, refused: Refused) -> None:
        """Answer with an error when it is its turn, and close."""
        if self._reading:
            self._reading = False
            self._drop_body()
            self._push(refused)

    def _push(self, item: Request | Refused) -> None:
        self._queue.append(item)
        if self._task is None:
            self._set_state(ConnectionState.WORKING)
            self._task = self._loop.create_task(self._serve())
        elif not self._paused and self._reading:
            self._paused = True
            self._transport.pause_reading()

    def _set_timer(self) -> None:
        phase = self._parser.phase
        timed = self._reading and not self._lost and phase is not Phase.BETWEEN
        wanted = (self._parser.begun, phase) if timed else None
        if wanted == self._timed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = wanted
        if wanted is not None:
            delay = self._limits.head_s if phase is Phase.HEAD else self._limits.body_s
            self._timer = self._loop.call_later(delay, self._too_slow)

    def _too_slow(self) -> None:
        self._timer = self._timed = None
        if self._paused or self._continue_due:  # it was us who kept the client waiting
            self._set_timer()
        else:
            error = InvalidRequest(f"The {self._parser.phase.value} of the request did not arrive in time.")
            self._refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, error))

    # --- answering -------------------------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """Answer what has been read. Changes that arrived whole are executed even if the client has gone."""
        try:
            await self._answer_next()
            while self._queue:
                self._set_state(ConnectionState.QUEUED)
                await self._owner.pipelines.acquire()
                self._has_turn = True
                self._set_state(ConnectionState.WORKING)
                await self._answer_next()
        except Exception:
            log.exception("a connection failed and is closed")
            self._transport.abort()
        finally:
            self._end_turn()
            self._task = None
            self._drop_queue()
        if self._lost:
            self._read_no_more()
            self._parser.close()
            return
        if not self._reading or self._eof:
            self._linger()
        receiving = self._reading and self._parser.phase is Phase.BODY
        self._owner.set_state(self, ConnectionState.RECEIVING if receiving else ConnectionState.IDLE)
        if self._continue_due:
            self._continue()
            self._set_timer()

    async def _answer_next(self) -> None:
        item = self._queue.popleft()
        if self._paused and not self._queue:
            self._read_on()
        if isinstance(item, Refused):
            await self._write(framing.refusal(item, self._parser.head), keep_alive=False)
            return
        response = await self._respond(item)
        if isinstance(response.body, bytes):
            await self._write(response, keep_alive=item.keep_alive)
        else:
            await self._write_stream(response, response.body, item)

    async def _respond(self, request: Request) -> Response:
        try:
            return await self._owner.respond(request, self._caller)
        finally:
            self._end_turn()
            self._owner.held_bytes -= len(request.body)

    def _drop_queue(self) -> None:
        self._owner.held_bytes -= sum(len(item.body) for item in self._queue if isinstance(item, Request))
        self._queue.clear()

    def _end_turn(self) -> None:
        """Let another pipeline be worked on: who only waits, or does not take the response, holds none of them up."""
        if self._has_turn:
            self._has_turn = False
            self._owner.pipelines.release()

    def _waits(self, waiting: bool) -> None:
        self._end_turn()
        self._set_state(ConnectionState.WAITING if waiting else ConnectionState.WORKING)

    def _set_state(self, state: ConnectionState) -> None:
        if not self._lost:
            self._owner.set_state(self, state)

    # --- writing ---------------------------------------------------------------------------------------------------

    async def _write(self, response: Response, *, keep_alive: bool) -> None:
        """Send a response whose body is known."""
        assert isinstance(response.body, bytes)
        if self._transport.is_closing():
            return
        self._transport.write(self._owner.serializer.whole(response, response.body, keep_alive=keep_alive))
        if not self._writable.is_set():
            await self._drain(self._limits.answer_s, ConnectionState.WORKING)

    async def _write_stream(self, response: Response, chunks: AsyncIterator[bytes], request: Request) -> None:
        """Send a response while it is produced, until its end, or until the client leaves or the server closes."""
        chunked = request.head.version != "1.0"
        if not chunked:  # only the end of the connection tells HTTP/1.0 where the body ends
            self._reading = False
            self._drop_queue()
        try:
            if self._owner.streams >= self._limits.max_streams:
                await self._write(framing.refusal(too_many("streams")), keep_alive=request.keep_alive and chunked)
                return
            self._owner.streams += 1
            try:
                keep_alive = request.keep_alive and chunked
                start = self._owner.serializer.start(response, chunked=chunked, keep_alive=keep_alive)
                await self._produce(response, start, chunks, chunked=chunked)
            finally:
                self._owner.streams -= 1
        finally:
            close = getattr(chunks, "aclose", None)  # a generator has one, a plain iterator has none
            if close is not None:
                await close()

    async def _produce(self, response: Response, start: bytes, chunks: AsyncIterator[bytes], *, chunked: bool) -> None:
        if self._transport.is_closing() or self._hurry:
            self._close_transport()
            return
        self._set_state(ConnectionState.STREAMING)
        self._transport.write(start)
        self._stream = stream = self._loop.create_task(self._send_chunks(chunks, chunked=chunked))
        if self._eof:
            stream.cancel()
        try:
            await asyncio.wait([stream])
        finally:
            self._stream = None
            stream.cancel()
        if not stream.cancelled():
            stream.result()
        if stream.cancelled() and not response.endless:  # the client must see that the rest is missing
            self._reading = False
            self._close_transport()
        elif chunked and not self._transport.is_closing():
            self._transport.write(framing.LAST_CHUNK)
        self._set_state(ConnectionState.WORKING)

    async def _send_chunks(self, chunks: AsyncIterator[bytes], *, chunked: bool) -> None:
        async for data in chunks:
            for begin in range(0, len(data), _PIECE_BYTES):  # none for no data, which would be the end of the body
                piece = data[begin : begin + _PIECE_BYTES]
                self._transport.write(framing.chunk(piece) if chunked else piece)
                if not self._writable.is_set():
                    await self._drain(self._limits.stream_stall_s, ConnectionState.STREAMING)
                if self._transport.is_closing():
                    return

    async def _drain(self, seconds: float, state: ConnectionState) -> None:
        """Wait until the client has taken what was written, and disconnect one that does not; then in `state` again."""
        self._set_state(ConnectionState.STALLED)
        try:
            async with asyncio.timeout(seconds):
                await self._writable.wait()
        except TimeoutError:
            self._transport.abort()
        self._set_state(state)

    # --- the end ---------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """The client does not wait for anything more."""
        self._caller.leave()
        if self._stream is not None:
            self._stream.cancel()

    def _linger(self) -> None:
        """Close, but take in for a while what the client still sends: a reset would destroy the response."""
        if self._eof or self._hurry:
            self._close_transport()
        else:
            self._transport.write_eof()
            self._loop.call_later(self._limits.linger_s, self._transport.abort)

    def close(self) -> None:
        """Close as soon as the request in work is answered; immediately if there is none. A stream ends here."""
        self._leave()
        self._reading = False
        self._hurry = True
        self._set_timer()
        if self._task is None:
            self._close_transport()

    def _close_transport(self) -> None:
        """Close when what was written has been taken, or the time for that is over."""
        self._transport.close()
        self._loop.call_later(self._limits.answer_s, self._transport.abort)

    def evict(self) -> None:
        """Close it to make room. A client that waits or reads a stream gets the end of its response."""
        self._owner.closed(self)
        if self._caller.waiting or (self._stream is not None and self._writable.is_set()):
            self.close()
        else:
            self.abort()

    def abort(self) -> None:
        """Close now, and give up what is in work."""
        self._transport.abort()
        if self._task is not None:
            self._task.cancel()
