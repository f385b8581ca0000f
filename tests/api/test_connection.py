"""Limits of a connection, seen from a raw socket: size, time, number, order."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semtask.api.limits import HttpLimits
from semtask.api.routes import Request
from semtask.protocol import jsonrpc
from tests.api.running import JOB_ID, Running, running

MAX_BODY = 11 * 1024 * 1024
STATS = b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1"}'
WAIT = b'{"jsonrpc":"2.0","id":2,"method":"dev.wait.v1","params":{"job_ids":["%s"]}}' % JOB_ID.encode()
ENQUEUE = b'{"jsonrpc":"2.0","id":3,"method":"dev.enqueue.v1","params":{"job_type":"x","payload":{}}}'


def head(length: int | None, *more: str) -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = ["POST /rpc HTTP/1.1", "Host: localhost", "Content-Type: application/json", framing, *more]
    return "\r\n".join([*lines, "", ""]).encode()


def post(body: bytes, *more: str) -> bytes:
    return head(len(body), *more) + body


def big(size: int) -> bytes:
    start, end = b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1","x":"', b'"}'
    return start + b"x" * (size - len(start) - len(end)) + end


@pytest.fixture
def hasty(home: Path) -> Iterator[Running]:
    """A server that loses its patience at once."""
    limits = HttpLimits(MAX_BODY, head_s=0.2, body_s=0.2, answer_s=0.2, linger_s=0.2)
    with running(home, limits=limits, max_connections=8) as server:
        yield server


def test_a_body_of_the_largest_size_is_read(server: Running) -> None:
    with server.unix() as peer:
        reply = peer.post(big(MAX_BODY))
    assert (reply.status, reply.error["code"]) == (200, -32600)  # x is no member of a request


def test_a_declared_body_above_the_limit_is_refused_before_it_is_sent(server: Running) -> None:
    with server.unix() as peer:
        peer.send(head(MAX_BODY + 1))
        assert peer.reply().status == 413


def test_a_client_that_sends_too_much_still_gets_the_answer(server: Running) -> None:
    with server.unix() as peer:
        peer.send(post(big(MAX_BODY + 1)))
        assert peer.reply().status == 413
        assert peer.closed()


def test_a_chunked_body_above_the_limit_is_refused(server: Running) -> None:
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    with server.unix() as peer:
        peer.send(head(None) + chunk * 12 + b"0\r\n\r\n")
        assert peer.reply().status == 413
        assert peer.closed()


def test_a_chunked_body_is_read_whatever_its_chunks(server: Running) -> None:
    chunks = b"".join(b"1;some=extension\r\n%c\r\n" % byte for byte in STATS)
    with server.unix() as peer:
        peer.send(head(None) + chunks + b"0\r\nAuthorization: y\r\nX-Trailer: y\r\n\r\n")
        assert peer.reply().status == 200
        assert peer.rpc("admin.stats.v1").status == 200  # the trailer left the connection in order


def test_an_endless_trailer_is_cut(home: Path) -> None:
    with running(home, max_body_bytes=65536, max_payload_bytes=1024) as server, server.unix() as peer:
        peer.send(head(None) + b"0\r\nX-Trailer: ")
        for _ in range(8):
            peer.send(b"y" * 65536)
        assert peer.reply().status == 413


def test_an_endless_head_is_cut(server: Running) -> None:
    with server.unix() as peer:
        peer.send(b"POST /rpc HTTP/1.1\r\nX-Endless: ")
        for _ in range(8):
            peer.send(b"y" * 65536)
        assert peer.reply().status == 431
    with server.unix() as peer:
        peer.send(b"POST /" + b"y" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")
        assert peer.reply().status == 431


def test_a_slow_head_is_refused(hasty: Running) -> None:
    with hasty.unix() as peer:
        peer.send(b"POST /rpc HTTP/1.1\r\nHost: local")
        began = time.monotonic()
        reply = peer.reply()
        assert reply.status == 408
        assert "head" in reply.error["message"]
        assert 0.1 < time.monotonic() - began < 5
        assert peer.closed()


def test_a_head_byte_by_byte_does_not_stretch_the_time(hasty: Running) -> None:
    with hasty.unix() as peer:
        peer.sock.settimeout(0.02)
        deadline = time.monotonic() + 5
        for byte in b"POST /rpc HTTP/1.1\r\nX: " + b"y" * 1000:
            peer.send(bytes([byte]))
            try:
                reply = peer.reply()
            except TimeoutError:
                assert time.monotonic() < deadline
            else:
                assert reply.status == 408
                return
    pytest.fail("the head was taken for ever")


def test_a_slow_body_is_refused(hasty: Running) -> None:
    with hasty.unix() as peer:
        peer.send(head(len(STATS)) + STATS[:-1])
        reply = peer.reply()
        assert reply.status == 408
        assert "body" in reply.error["message"]
    assert hasty.operations.calls == []


def test_an_idle_connection_is_left_alone(hasty: Running) -> None:
    with hasty.unix() as peer:
        assert peer.rpc("admin.stats.v1").status == 200
        peer.sock.settimeout(0.5)
        with pytest.raises(TimeoutError):
            peer.reply()
        peer.sock.settimeout(20)
        assert peer.rpc("admin.stats.v1").status == 200


def test_a_client_that_takes_no_answers_is_dropped(hasty: Running) -> None:
    """It asks for megabytes of documents and never reads."""
    with hasty.unix() as peer:
        one = post(b"[" + b",".join([b'{"jsonrpc":"2.0","id":1,"method":"rpc.discover"}'] * 100) + b"]")
        with pytest.raises(ConnectionError):
            peer.send(one * 1000)


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    with server.unix() as peer:
        ids = range(300)
        peer.send(b"".join(post(b'{"jsonrpc":"2.0","id":%d,"method":"admin.stats.v1","params":{}}' % i) for i in ids))
        assert [peer.reply().json["id"] for _ in ids] == list(ids)


def test_few_of_many_pipelined_requests_are_held_at_once(server: Running) -> None:
    """As objects they are many times as large, and the collector of garbage stops everything to look at them."""
    server.hold()
    with server.unix() as peer:
        peer.send(post(STATS) * 500 + post(big(3000)) + post(ENQUEUE))
        _until(lambda: len(server.operations.calls) == 1)
        assert sum(isinstance(each, Request) for each in gc.get_objects()) < 20
        server.release()
        codes = [peer.reply().json.get("error", {}).get("code") for _ in range(502)]
    assert codes == [None] * 500 + [-32600, None]
    assert server.operations.names() == ["stats"] * 500 + ["enqueue"]


def test_a_refusal_takes_its_turn_behind_earlier_requests(server: Running) -> None:
    with server.unix() as peer:
        peer.send(post(STATS) + b"POST /rpc HTTP/1.1\r\nContent-Type: text/plain\r\n\r\n" + post(ENQUEUE))
        assert peer.reply().status == 200
        assert peer.reply().status == 415
        assert peer.closed()
    assert server.operations.names() == ["stats"]


def test_connection_close_is_obeyed(server: Running) -> None:
    with server.unix() as peer:
        peer.send(post(STATS, "Connection: close") + post(ENQUEUE))
        assert peer.reply().headers["connection"] == "close"
        assert peer.closed()
    with server.unix() as peer:
        peer.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert peer.reply().status == 200
        assert peer.closed()
    assert server.operations.names() == ["stats"]


def test_expect_100_continue(server: Running) -> None:
    with server.unix() as peer:
        peer.send(head(len(STATS), "Expect: 100-continue"))
        assert peer.reply().status == 100
        peer.send(STATS)
        assert peer.reply().status == 200
        peer.send(head(MAX_BODY + 1, "Expect: 100-continue"))
        assert peer.reply().status == 413


def test_a_pipelined_expect_100_continue_gets_it_in_its_turn(home: Path) -> None:
    limits = HttpLimits(MAX_BODY, body_s=0.2)
    with running(home, limits=limits) as server, server.unix() as peer:
        server.hold()
        peer.send(post(ENQUEUE) + head(len(STATS), "Expect: 100-continue"))
        assert server.operations.entered.wait(20)
        peer.sock.settimeout(0.5)  # longer than a body may take: the time begins when it can be sent
        with pytest.raises(TimeoutError):
            peer.reply()
        peer.sock.settimeout(20)
        server.release()
        assert peer.reply().json["id"] == 3
        assert peer.reply().status == 100
        peer.send(STATS)
        assert peer.reply().json["id"] == 1
        peer.send(post(STATS) * 2 + head(len(STATS), "Expect: 100-continue"))
        assert [peer.reply().status for _ in range(3)] == [200, 200, 100]
        assert peer.reply().status == 408


def test_who_sends_the_body_anyway_or_speaks_http_1_0_gets_no_100(server: Running) -> None:
    with server.unix() as peer:
        peer.send(post(STATS, "Expect: 100-continue"))
        assert peer.reply().status == 200
        old = head(len(STATS), "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
        peer.send(old)
        peer.send(STATS)
        assert peer.reply().status == 200


def test_a_client_that_half_closes_gets_its_answer(home: Path) -> None:
    with running(home) as server, server.unix() as peer:
        server.hold()
        peer.send(post(ENQUEUE))
        peer.sock.shutdown(socket.SHUT_WR)
        assert server.operations.entered.wait(20)
        with server.unix() as another:  # by the time it is answered the end of the first one has been seen
            assert another.post(b"{}").status == 200
        server.release()
        assert peer.reply().json["id"] == 3
        assert peer.closed()


def test_a_fault_in_the_server_closes_the_connection_and_is_logged(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(home) as server, server.unix() as peer:
        with monkeypatch.context() as patch:
            patch.setattr(jsonrpc, "read", lambda _body: 1 // 0)
            peer.send(post(STATS))
            assert peer.closed()
        with server.unix() as another:
            assert another.rpc("admin.stats.v1").status == 200
    assert [record.name for record in caplog.records] == ["semtask.api"]


def test_above_the_cap_the_oldest_idle_connection_is_closed(hasty: Running) -> None:
    peers = [hasty.unix() for _ in range(8)]
    try:
        for peer in peers:
            assert peer.rpc("admin.stats.v1").status == 200
        assert peers[0].rpc("admin.stats.v1").status == 200  # so peers[1] is idle for the longest time
        peers.append(hasty.unix())
        assert peers[-1].rpc("admin.stats.v1").status == 200
        assert peers[1].closed()
        for peer in (peers[0], *peers[2:]):
            assert peer.rpc("admin.stats.v1").status == 200
    finally:
        for peer in peers:
            peer.sock.close()


def test_half_a_head_protects_no_connection(hasty: Running) -> None:
    peers = [hasty.unix() for _ in range(8)]
    try:
        for peer in peers:
            peer.send(b"POST /rpc HTTP/1.1\r\n")
        with hasty.unix() as another:
            assert another.rpc("admin.stats.v1").status == 200
    finally:
        for peer in peers:
            peer.sock.close()


@pytest.mark.parametrize("sent", [head(1000), head(1000) + b"{", head(None) + b"5\r\n{"])
def test_half_a_body_protects_no_connection(hasty: Running, sent: bytes) -> None:
    peers = [hasty.unix() for _ in range(8)]
    try:
        for peer in peers:
            peer.send(sent)
        with hasty.unix() as another:
            assert another.rpc("admin.stats.v1").status == 200
    finally:
        for peer in peers:
            peer.sock.close()


def test_a_wait_makes_room_and_is_told_so(hasty: Running) -> None:
    hasty.hold()
    peers = [hasty.unix() for _ in range(8)]
    try:
        for peer in peers:
            peer.send(post(WAIT))
        _until(lambda: len(hasty.operations.calls) == 8)
        with hasty.unix() as another:
            hasty.operations.hold = None
            assert another.rpc("admin.stats.v1").status == 200
            given_up = peers[0].reply()
            assert (given_up.status, given_up.error["code"]) == (200, 4003)
            assert peers[0].closed()
    finally:
        for peer in peers:
            peer.sock.close()


def test_large_bodies_are_held_for_some_clients_at_once_and_small_ones_for_all(home: Path) -> None:
    limits = HttpLimits(1_000_000, max_bodies=2)
    with running(home, limits=limits, max_payload_bytes=10_000, max_body_bytes=1_000_000) as server:
        peers = [server.unix() for _ in range(3)]
        for peer in peers[:2]:
            peer.send(head(999_999) + b" " * 900_000)
        _until(lambda: server.server.held_bytes == 1_800_000)
        peers[2].send(head(999_999) + b" " * 900_000)
        refused = peers[2].reply()
        assert (refused.status, refused.error["code"], refused.headers["retry-after"]) == (503, 4003, "1")
        with server.unix() as small:
            assert small.rpc("admin.stats.v1").status == 200
        for peer in peers:
            peer.sock.close()
        _until(lambda: server.server.held_bytes == 0)
        with server.unix() as large:
            assert large.post(big(900_000)).status == 200
            assert server.server.held_bytes == 0


def test_requests_before_their_turn_do_not_delay_others(home: Path) -> None:
    """As many pipelines as may be in work at once wait here; a request by itself is answered."""
    with running(home) as server:
        server.hold()
        peers = [server.unix() for _ in range(6)]
        for peer in peers:
            peer.send(post(STATS) + post(ENQUEUE) + post(STATS))
        _until(lambda: len(server.operations.calls) == 6)
        hold, server.operations.hold = server.operations.hold, None
        with server.unix() as peer:
            assert peer.rpc("admin.stats.v1").status == 200
        server.operations.hold = hold
        server.release()
        for peer in peers:
            assert [peer.reply().json["id"] for _ in range(3)] == [1, 3, 1]
            peer.sock.close()


def test_waits_of_pipelines_do_not_delay_other_pipelines(home: Path) -> None:
    with running(home) as server:
        server.hold()
        peers = [server.unix() for _ in range(6)]
        for peer in peers:
            peer.send(post(STATS) + post(WAIT))
        _until(lambda: len(server.operations.calls) == 6)
        first = server.operations.hold
        assert first is not None
        server.hold()
        server.call(first.set)
        for peer in peers:
            assert peer.reply().status == 200
        _until(lambda: len(server.operations.calls) == 12)
        server.operations.hold = None
        with server.unix() as peer:
            peer.send(post(STATS) + post(STATS))
            assert [peer.reply().status for _ in range(2)] == [200, 200]
        for peer in peers:
            peer.sock.close()
        _until(lambda: server.operations.cancelled == ["wait"] * 6)


def test_busy_connections_are_never_closed_for_a_new_one(hasty: Running) -> None:
    hasty.hold()
    peers = [hasty.unix() for _ in range(8)]
    try:
        for peer in peers:
            peer.send(post(ENQUEUE))
        _until(lambda: len(hasty.operations.calls) == 8)
        with hasty.unix() as another:
            refused = another.reply()
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert another.closed()
        hasty.release()
        assert [peer.reply().status for peer in peers] == [200] * 8
        with hasty.unix() as another:
            assert another.rpc("admin.stats.v1").status == 200
    finally:
        for peer in peers:
            peer.sock.close()


def test_a_wait_ends_with_its_caller(home: Path) -> None:
    with running(home) as server:
        server.hold()
        with server.unix() as peer:
            peer.send(post(WAIT))
            assert server.operations.entered.wait(20)
        _until(lambda: server.operations.cancelled == ["wait"])


def test_a_change_does_not_end_with_its_caller(home: Path) -> None:
    """What arrived whole is executed, also the requests that wait behind the one in work."""
    with running(home) as server:
        server.hold()
        with server.unix() as peer:
            peer.send(post(ENQUEUE) + post(STATS))
            assert server.operations.entered.wait(20)
        server.release()
        _until(lambda: server.operations.names() == ["enqueue", "stats"])
        assert server.operations.cancelled == []


def test_all_that_was_pipelined_is_executed_though_its_caller_has_gone(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is held back until the first ones are answered; half of a request is dropped."""
    with running(home) as server:
        note = server.operations._note

        async def slowly(*args: Any) -> Any:
            result = await note(*args)
            await asyncio.sleep(0.02)  # after the first answer the loss of the connection is noticed
            return result

        monkeypatch.setattr(server.operations, "_note", slowly)
        server.hold()
        with server.unix() as peer:
            peer.send(post(ENQUEUE) * 6 + post(STATS)[:-3])
            assert server.operations.entered.wait(20)
        server.release()
        _until(lambda: len(server.operations.names()) == 6)
        _until(lambda: server.server.held_bytes == 0)
        assert server.operations.cancelled == []
    assert not caplog.records


def test_a_thousand_connections_in_a_row_leave_nothing_behind(home: Path) -> None:
    with running(home, max_connections=8) as server:
        for _ in range(1000):
            server.unix().sock.close()
        with server.unix() as peer:
            assert peer.rpc("admin.stats.v1").status == 200
            _until(lambda: len(server.server.pool) == 1)


pieces = st.lists(
    st.sampled_from(
        [
            *(
                b"POST /rpc HTTP/1.1\r\n",
                b"GET /healthz HTTP/1.1\r\n",
                b"HEAD / HTTP/1.0\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
            ),
            *(b"Content-Type: application/json\r\n", b"Content-Length: 2\r\n", b"Content-Length: 50\r\n"),
            *(b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"),
            *(
                b"Expect: 100-continue\r\n",
                b"Host: a\r\n",
                b"X: " + b"y" * 5000 + b"\r\n",
                b"\r\n",
                b"\n",
                b"\r",
                b" ",
                b"\0",
            ),
            *(b"2\r\n{}\r\n", b"0\r\n\r\n", b"ffffffffff\r\n", b"{}", STATS, post(STATS), post(STATS), post(ENQUEUE)),
        ]
    )
    | st.binary(max_size=20),
    max_size=12,
).map(b"".join)


@given(pieces, st.integers(1, 4000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_answered_or_refused(
    server: Running, caplog: pytest.LogCaptureFixture, data: bytes, step: int
) -> None:
    """In whatever pieces they arrive. Nothing is logged, and the next client is served."""
    with server.unix() as peer:
        with contextlib.suppress(BrokenPipeError):
            for start in range(0, len(data), step):
                peer.send(data[start : start + step])
            peer.sock.shutdown(socket.SHUT_WR)
        answers = b"".join(iter(lambda: peer.sock.recv(1 << 20), b""))
    assert answers == b"" or answers.startswith(b"HTTP/1.1 ")
    with server.unix() as peer:
        assert peer.rpc("admin.stats.v1").status == 200
    assert caplog.records == []


def _until(condition: Callable[[], bool], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)
