"""One client that asks too often waits; the others do not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from semtask.api.messages import Refused
from semtask.api.rate import RateLimit
from semtask.host.tokens import add_token
from semtask.model.scope import Scope
from tests.api.running import Peer, Running, running
from tests.security.table import JSON, STATS, request


def post(peer: Peer, server: Running, token: str) -> int:
    headers = [
        ("Host", f"localhost:{server.port}"),
        ("Content-Type", "application/json"),
        ("Authorization", f"Bearer {token}"),
        ("Content-Length", str(len(STATS))),
    ]
    peer.send(request(headers))
    reply = peer.reply()
    return reply.error["code"] if "error" in reply.json else reply.status


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(limit: RateLimit, client: str) -> Refused | None:
    try:
        limit.admit(client)
    except Refused as error:
        return error
    return None


def test_a_client_may_send_a_seconds_worth_at_once_and_then_so_many_a_second() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    assert [refused(limit, "a") is None for _ in range(12)] == [True] * 10 + [False] * 2
    assert refused(limit, "b") is None
    error = refused(limit, "a")
    assert error is not None
    assert error.status == 429
    assert error.error.retry_after_ms == pytest.approx(100, abs=1)
    assert dict(error.headers) == {b"retry-after": b"1"}
    clock.now += 0.1
    assert [refused(limit, "a") is None for _ in range(2)] == [True, False]
    clock.now += 60
    assert [refused(limit, "a") is None for _ in range(12)].count(True) == 10


def test_a_batch_is_paid_for_later_and_not_for_ever() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    limit.admit("a")
    limit.charge("a", 999)
    assert refused(limit, "a") is not None
    clock.now += 59.2
    assert refused(limit, "a") is None


def test_clients_that_were_seen_once_are_forgotten() -> None:
    clock = Clock()
    limit = RateLimit(10, clock)
    for number in range(10_000):
        limit.admit(number)
        clock.now += 0.001
    size = len(limit._used_until)
    clock.now += 1
    limit.admit("one more")
    assert (size, len(limit._used_until)) == (10_000, 1)


def test_without_the_setting_there_is_no_limit() -> None:
    limit = RateLimit(0, Clock())
    assert not any(refused(limit, "a") for _ in range(1000))
    assert not limit._used_until


def test_over_the_wire(home: Path) -> None:
    with running(home, tcp=True, rpc_port=0, rate_limit_requests=3) as server:
        quick, calm = (add_token(home, name, [Scope.READ], now_ms=0) for name in ("quick", "calm"))
        for _ in range(3):
            with server.tcp() as peer:
                assert post(peer, server, quick) == 200
        with server.tcp() as peer:
            assert post(peer, server, quick) == 4003
            assert post(peer, server, quick) == 4003  # the connection goes on
        with server.tcp() as peer:
            assert post(peer, server, calm) == 200
        with server.unix() as peer:
            assert [peer.rpc("admin.stats.v1").status for _ in range(3)] == [200] * 3
            late = peer.rpc("admin.stats.v1")
            assert (late.status, late.error["code"], late.json["id"]) == (200, 4003, 1)
            assert 0 < late.error["data"]["retry_after_ms"] <= 1000
            assert int(late.headers["retry-after"]) == 1
            batch = peer.post(b"[" + STATS + b"," + STATS.replace(b'"id":1', b'"id":"b"') + b"]")
            assert [(one["id"], one["error"]["code"]) for one in batch.json] == [(1, 4003), ("b", 4003)]
            peer.send(request([JSON, ("Content-Length", "100000")], body=b""))  # not waited for, and not read
            assert peer.reply().status == 429
            assert peer.closed()
        with server.unix() as peer:
            peer.send(b"GET /readyz HTTP/1.1\r\n\r\n")  # those who watch over the daemon are not counted
            assert peer.reply().status == 200


def test_the_members_of_a_batch_count(home: Path) -> None:
    with running(home, rate_limit_requests=5) as server:
        with server.unix() as peer:
            assert peer.post(b"[" + b",".join([STATS] * 20) + b"]").status == 200
            assert peer.rpc("admin.stats.v1").error["code"] == 4003


@pytest.mark.skipif(sys.platform != "linux", reason="peers are told by their pid")
def test_another_process_is_another_client(home: Path) -> None:
    import subprocess

    code = (
        "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
        "s.sendall(sys.stdin.buffer.read())\nprint(s.recv(99).split()[1].decode())"
    )
    with running(home, rate_limit_requests=1) as server, server.unix() as peer:
        assert peer.rpc("admin.stats.v1").status == 200
        body = request([("Content-Type", "application/json"), ("Content-Length", str(len(STATS)))])
        argv = [sys.executable, "-c", code, str(server.settings.socket)]
        assert subprocess.run(argv, input=body, capture_output=True, check=True).stdout == b"200\n"
        assert peer.rpc("admin.stats.v1").error["code"] == 4003
