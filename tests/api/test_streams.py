"""Responses that are streamed by a handler, seen from a raw socket: framing, back-pressure, limits, ends."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from semtask.api.connection import ConnectionState
from semtask.api.limits import HttpLimits
from semtask.api.messages import Response
from semtask.api.methods import Caller
from semtask.api.routes import Request, Route, RouteTable
from semtask.model.scope import Scope
from tests.api.running import Peer, Running, running

LIMITS = HttpLimits(65536, max_streams=2, stream_stall_s=0.3, linger_s=0.2)
PART = b"x" * 50_000


class Feeds:
    """Handlers of streams, and notes about them."""

    def __init__(self) -> None:
        self.produced = 0
        self.ended = 0
        self.handled = 0

    async def _note_end(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                self.produced += 1
                yield chunk
        finally:
            self.ended += 1

    async def short(self, _request: Request, _caller: Caller) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            for chunk in (b"one", b"", b"three"):
                await asyncio.sleep(0)
                yield chunk

        return Response(HTTPStatus.OK, self._note_end(chunks()), [(b"x-own", b"1")], b"text/event-stream")

    async def silent(self, _request: Request, _caller: Caller) -> Response:
        """One chunk, and then nothing until it is given up."""

        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.Event().wait()

        self.handled += 1
        return Response(HTTPStatus.OK, self._note_end(chunks()), endless=True)

    async def endless(self, _request: Request, _caller: Caller) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield PART

        return Response(HTTPStatus.OK, self._note_end(chunks()))

    async def huge(self, _request: Request, _caller: Caller) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"x" * 5_000_000
            await asyncio.Event().wait()

        return Response(HTTPStatus.OK, self._note_end(chunks()))

    async def broken(self, _request: Request, _caller: Caller) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            raise ZeroDivisionError("inside")

        return Response(HTTPStatus.OK, self._note_end(chunks()))

    def routes(self) -> list[Route]:
        handlers = [self.short, self.silent, self.endless, self.huge, self.broken]
        return [Route(b"GET", b"/" + handler.__name__.encode(), handler, Scope.READ) for handler in handlers]


@pytest.fixture
def feeds() -> Feeds:
    return Feeds()


@pytest.fixture
def streams(home: Path, feeds: Feeds) -> Iterator[Running]:
    with running(home, limits=LIMITS, routes=feeds.routes(), max_connections=8) as server:
        yield server


def get(peer: Peer, path: str, version: str = "1.1") -> None:
    peer.send(f"GET {path} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode())


def received(peer: Peer, end: bytes) -> bytes:
    """What comes until it ends in `end`."""
    data = b""
    while not data.endswith(end):
        more = peer.sock.recv(1 << 16)
        assert more, data
        data += more
    return data


def rest(peer: Peer) -> bytes:
    """What comes until the connection is closed."""
    return b"".join(iter(lambda: peer.sock.recv(1 << 20), b""))


def test_a_stream_is_chunked_and_the_connection_goes_on(streams: Running, feeds: Feeds) -> None:
    with streams.unix() as peer:
        get(peer, "/short")
        head, _, body = received(peer, b"\r\n0\r\n\r\n").partition(b"\r\n\r\n")
        assert head.split(b"\r\n") == [
            b"HTTP/1.1 200 OK",
            b"semtask-version: 1.2.3",
            b"x-own: 1",
            b"content-type: text/event-stream",
            b"transfer-encoding: chunked",
        ]
        assert body == b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"
        assert peer.rpc("admin.stats.v1").status == 200
    assert (feeds.ended, streams.server.streams) == (1, 0)


def test_requests_behind_a_stream_take_their_turn(streams: Running) -> None:
    with streams.unix() as peer:
        peer.send(b"GET /short HTTP/1.1\r\n\r\n" * 2 + b"GET /healthz HTTP/1.1\r\n\r\n")
        assert received(peer, b'{"status":"ok"}').count(b"0\r\n\r\n") == 2


def test_http_1_0_gets_no_chunks(streams: Running) -> None:
    with streams.unix() as peer:
        peer.send(b"GET /short HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /healthz HTTP/1.0\r\n\r\n")
        head, _, body = rest(peer).partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"connection: close" in head
    assert body == b"onethree"


def test_the_guard_reads_the_same_table(home: Path, feeds: Feeds) -> None:
    with running(home, limits=LIMITS, routes=feeds.routes(), tcp=True, rpc_port=0) as server:
        with server.unix() as peer:
            peer.send(b"POST /silent HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n")
            refused = peer.reply()
            assert (refused.status, refused.headers["allow"]) == (405, "GET")
        with server.tcp() as peer:
            peer.send(b"GET /silent HTTP/1.1\r\nHost: localhost:%d\r\n\r\n" % server.port)
            assert peer.reply().status == 401
    assert feeds.handled == 0


def test_two_routes_of_a_kind_are_a_fault(feeds: Feeds) -> None:
    with pytest.raises(ValueError, match="GET /short"):
        RouteTable(feeds.routes() * 2)


def test_a_reader_that_reads_slowly_gets_all_of_it_and_no_more_is_produced(home: Path, feeds: Feeds) -> None:
    with running(home, limits=HttpLimits(65536), routes=feeds.routes()) as server, server.unix() as peer:
        get(peer, "/endless")
        _until(lambda: feeds.produced > 0 and _states(server) == [ConnectionState.STALLED])
        produced = feeds.produced
        assert produced * len(PART) < 2_000_000  # the buffers of the socket and of the server
        with server.unix() as another:
            assert another.rpc("admin.stats.v1").status == 200
        assert feeds.produced == produced
        taken = 0
        while taken < 5_000_000:
            taken += len(peer.sock.recv(1 << 16))
        assert feeds.produced > produced
        peer.sock.close()
        _until(lambda: feeds.ended == 1 and server.server.streams == 0)


def test_a_reader_that_does_not_read_is_disconnected(streams: Running, feeds: Feeds) -> None:
    with streams.unix() as peer:
        get(peer, "/endless")
        _until(lambda: feeds.ended == 1 and streams.server.streams == 0)
        assert not rest_of_aborted(peer).endswith(b"0\r\n\r\n")


def test_a_large_chunk_is_sent_in_pieces_to_who_takes_them(home: Path, feeds: Feeds) -> None:
    with running(home, limits=HttpLimits(65536), routes=feeds.routes()) as server, server.unix() as peer:
        get(peer, "/huge")
        _until(lambda: _states(server) == [ConnectionState.STALLED])
        taken = b""
        while taken.count(b"x") < 5_000_000:
            more = peer.sock.recv(1 << 20)
            assert more, len(taken)
            taken += more


def test_a_stream_that_is_cut_at_shutdown_does_not_look_complete(home: Path, feeds: Feeds) -> None:
    with running(home, limits=LIMITS, routes=feeds.routes()) as server, server.unix() as peer:
        get(peer, "/huge")
        head = peer.sock.recv(1 << 16)
        closing = asyncio.run_coroutine_threadsafe(server.server.close(), server.loop)
        cut = head + rest_of_aborted(peer)
        closing.result(20)
    assert not cut.endswith(b"0\r\n\r\n")
    assert feeds.ended == 1


def test_only_so_many_streams_are_served(streams: Running, feeds: Feeds) -> None:
    peers = [streams.unix() for _ in range(3)]
    try:
        for peer in peers[:2]:
            get(peer, "/silent")
            received(peer, b"first\r\n")
        get(peers[2], "/silent")
        refused = peers[2].reply()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert peers[2].rpc("admin.stats.v1").status == 200
        peers[0].sock.close()
        _until(lambda: streams.server.streams == 1)
        get(peers[2], "/silent")
        received(peers[2], b"first\r\n")
    finally:
        for peer in peers:
            peer.sock.close()
    _until(lambda: feeds.ended == 3 and streams.server.streams == 0)


def test_a_silent_stream_is_not_idle(streams: Running) -> None:
    """It stays while idle connections make room for others, and is ended before a change is refused."""
    stream, idle = streams.unix(), [streams.unix() for _ in range(7)]
    try:
        get(stream, "/silent")
        received(stream, b"first\r\n")
        for peer in idle:
            assert peer.rpc("admin.stats.v1").status == 200
        with streams.unix() as another:
            assert another.rpc("admin.stats.v1").status == 200
        assert idle[0].closed()
        assert streams.server.streams == 1
    finally:
        for peer in (stream, *idle):
            peer.sock.close()


def test_a_stream_makes_room_at_last_and_is_ended_in_order(streams: Running) -> None:
    streams.hold()
    stream, busy = streams.unix(), [streams.unix() for _ in range(7)]
    try:
        get(stream, "/silent")
        received(stream, b"first\r\n")
        for peer in busy:
            body = b'{"jsonrpc":"2.0","id":3,"method":"dev.enqueue.v1","params":{"job_type":"x","payload":{}}}'
            peer.send(b"POST / HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body))
            peer.send(body)
        _until(lambda: len(streams.operations.calls) == 7)
        with streams.unix() as another:
            get(another, "/healthz")
            assert another.reply().status == 200
        assert rest(stream) == b"0\r\n\r\n"
        streams.release()
        assert [peer.reply().status for peer in busy] == [200] * 7
    finally:
        for peer in (stream, *busy):
            peer.sock.close()


def test_a_client_that_leaves_ends_its_stream(streams: Running, feeds: Feeds) -> None:
    with streams.unix() as peer:
        get(peer, "/silent")
        received(peer, b"first\r\n")
    _until(lambda: feeds.ended == 1 and streams.server.streams == 0)
    with streams.unix() as peer:
        get(peer, "/silent")
        received(peer, b"first\r\n")
        peer.sock.shutdown(socket.SHUT_WR)
        assert rest(peer) == b"0\r\n\r\n"


def test_shutdown_ends_streams(home: Path, feeds: Feeds) -> None:
    with running(home, limits=LIMITS, routes=feeds.routes()) as server, server.unix() as peer:
        get(peer, "/silent")
        received(peer, b"first\r\n")
        began = time.monotonic()
        server.run(server.server.close())
        assert time.monotonic() - began < 4  # it does not wait until its patience ends
        assert rest(peer) == b"0\r\n\r\n"
        assert (feeds.ended, server.server.streams) == (1, 0)


def test_a_fault_of_a_handler_cuts_the_stream_and_is_logged(
    streams: Running, feeds: Feeds, caplog: pytest.LogCaptureFixture
) -> None:
    with streams.unix() as peer:
        get(peer, "/broken")
        assert not rest_of_aborted(peer).endswith(b"0\r\n\r\n")
    _until(lambda: streams.server.streams == 0)
    assert feeds.ended == 1
    assert "ZeroDivisionError" in caplog.text


def rest_of_aborted(peer: Peer) -> bytes:
    data = b""
    try:
        while more := peer.sock.recv(1 << 20):
            data += more
    except ConnectionError:
        pass
    return data


def _states(server: Running) -> list[ConnectionState]:
    return list(server.server.pool._states.values())


def _until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
