"""The doors of the daemon held to the table of requests, and the table held to doors with holes in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semtask.api import guard, listeners, parameters
from semtask.api.access import OWNER, Credentials
from semtask.api.messages import Head, Refused, Response
from semtask.api.methods import Caller
from semtask.api.routes import Request, Route, RouteTable
from semtask.model.scope import Grant, Scope
from semtask.protocol import jsonrpc
from semtask.protocol.methods import METHODS
from tests.api.running import Running, running
from tests.security.table import (
    BODIES,
    GOOD,
    HEADS,
    JSON,
    LOCAL,
    PATHS,
    ROUTES,
    STATS,
    TABLE,
    UNIX,
    Case,
    host,
    request,
    send,
    wrong,
)


@pytest.mark.parametrize(
    "cases", [HEADS, UNIX, ROUTES, BODIES, PATHS], ids=["heads", "unix", "routes", "bodies", "paths"]
)
def test_each_request_comes_to_what_the_table_says(server: Running, cases: list[Case]) -> None:
    assert wrong(server, cases) == []


def test_the_table_is_long_enough_and_names_each_request_once() -> None:
    assert len({case.name for case in TABLE}) == len(TABLE)
    assert sum(case.refused for case in TABLE) >= 60


def _nothing(*_args: object) -> None:
    pass


def _first_route(table: RouteTable, _head: Head) -> Route:
    return next(iter(next(iter(table._routes.values())).values()))


MUTATIONS: list[tuple[str, Any, str, Callable[..., Any], list[Case], str]] = [
    ("Origin check alone", guard, "_check_host", _nothing, HEADS, "rebinding"),
    ("Host check alone", guard, "_check_origin", _nothing, HEADS, "cross origin"),
    ("any content type", guard, "_check_content", _nothing, HEADS, "form text/plain"),
    ("any token", Credentials, "access", lambda *_: OWNER, HEADS, "wrong token"),
    ("any framing", guard, "_check_framing", _nothing, HEADS, "too large"),
    ("any path", RouteTable, "find", _first_route, ROUTES, "tcp: POST /x/../rpc"),
    ("any depth", jsonrpc, "deeper_than", lambda *_: False, BODIES, "params too deep"),
    ("any depth of a payload", parameters, "deeper_than", lambda *_: False, BODIES, "a payload of 65 levels"),
]


@pytest.mark.parametrize(
    ("place", "name", "hole", "cases", "caught"), [m[1:] for m in MUTATIONS], ids=[m[0] for m in MUTATIONS]
)
def test_a_hole_is_found(
    server: Running,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    hole: Callable[..., Any],
    cases: list[Case],
    caught: str,
) -> None:
    monkeypatch.setattr(place, name, hole)
    [case] = [case for case in cases if case.name == caught]
    assert wrong(server, [case], patience_s=1) != []


def test_another_user_is_refused_before_a_byte_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says who connects: here it is the daemon that is somebody else."""
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(listeners, "listen_unix", _listen_without_looking)
    with running(home) as server, server.unix() as peer:
        refused = peer.reply()
        assert (refused.status, refused.error["code"]) == (403, 4004)
        assert peer.closed()
    assert server.operations.calls == []


def _listen_without_looking(path: Path) -> Any:
    import socket

    path.parent.mkdir(mode=0o700)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    return listener


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"{}\n",
        b"POST\r\n\r\n",
        b"POST /rpc HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0" * 64,
        b"POST /rpc\0 HTTP/1.1\r\n\r\n",
        b"POST /rpc HTTP/1.1\r\n: nameless\r\n\r\n",
        b"POST /rpc HTTP/1.1\r\nHost\r\n\r\n",
        b"POST /rpc HTTP/1.1\r\nA\0: b\r\n\r\n",
    ],
    ids=["TLS", "newline JSON", "half a line", "unknown version", "HTTP/2", "NUL", "NUL in the path", "nameless header",
         "header without a colon", "NUL in a name"],
)  # fmt: skip
def test_what_is_no_http_is_told_so(server: Running, junk: bytes) -> None:
    with server.unix() as peer:
        peer.send(junk)
        assert peer.reply().status == 400
        assert peer.closed()
    assert server.operations.calls == []


CHUNKS = [
    ("a size that is no number", b"x\r\n"),
    ("a size with a sign", b"-1\r\n"),
    ("a size beyond all limits", b"ffffffffffffffffff\r\n"),
    ("a chunk longer than its size", b"1\r\nabc\r\n0\r\n\r\n"),
    ("a chunk without its end", b"1\r\na0\r\n\r\n"),
    ("a hexadecimal prefix", b"0x5\r\nabcde\r\n0\r\n\r\n"),
]


@pytest.mark.parametrize("chunks", [case[1] for case in CHUNKS], ids=[case[0] for case in CHUNKS])
def test_a_body_in_bad_chunks_is_refused(server: Running, chunks: bytes) -> None:
    with server.unix() as peer:
        peer.send(request([JSON, ("Transfer-Encoding", "chunked")], body=chunks))
        assert peer.reply().status in {400, 413}
        assert peer.closed()
    assert server.operations.calls == []


def test_a_refused_request_smuggles_no_second_one(server: Running) -> None:
    """The body of a request that is refused by its head is never read as a request of its own."""
    inner = request([*GOOD, ("Content-Length", str(len(STATS)))])
    for headers in (
        [JSON, ("Content-Length", "0"), ("Content-Length", str(len(inner)))],
        [JSON, ("Content-Length", "4"), ("Transfer-Encoding", "chunked")],
        [JSON, ("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "identity")],
        [JSON, ("Content-Length ", "4")],
        [("Content-Type", "text/plain"), ("Content-Length", "0")],
    ):
        with server.unix() as peer:
            peer.send(request(headers, body=b"0\r\n\r\n" + inner))
            assert peer.reply().status in {400, 415}
            assert peer.closed()
    assert server.operations.calls == []


def test_behind_a_refused_request_nothing_of_the_pipeline_is_read(server: Running) -> None:
    good = request([JSON, ("Content-Length", str(len(STATS)))])
    with server.unix() as peer:
        peer.send(good + request([("Content-Type", "text/plain"), ("Content-Length", "0")], body=b"") + good)
        assert [peer.reply().status for _ in range(2)] == [200, 415]
        assert peer.closed()
    assert server.operations.names() == ["stats"]


def test_a_401_says_nothing_but_that(server: Running) -> None:
    with server.tcp() as peer:
        missing = send(peer, server, Case("", [LOCAL, JSON]))
    with server.tcp() as peer:
        wrong_one = send(peer, server, Case("", [LOCAL, JSON, ("Authorization", "Bearer wrong")]))
    with server.tcp() as peer:
        elsewhere = send(peer, server, Case("", [LOCAL, JSON], target="/nowhere"))
    assert missing == wrong_one == elsewhere
    assert missing.headers["www-authenticate"] == "Bearer"


def test_without_a_token_the_rest_of_the_guard_stands(home: Path) -> None:
    with running(home, tcp=True, rpc_port=0, tcp_auth="off") as server:
        assert not server.settings.token_file.exists()
        for headers, status in ((GOOD[:2], 200), (host("evil.com:PORT")[:2], 403)):
            lines = [(name, value.replace("PORT", str(server.port))) for name, value in headers]
            with server.tcp() as peer:
                peer.send(request([*lines, ("Content-Length", str(len(STATS)))]))
                assert peer.reply().status == status


def test_the_table_of_methods_is_reached_only_past_the_guard(server: Running) -> None:
    """Every method, without its token: nothing is executed."""
    for name in METHODS:
        body = b'{"jsonrpc":"2.0","id":1,"method":"%s"}' % name.encode()
        with server.tcp() as peer:
            lines = [("Host", f"localhost:{server.port}"), JSON, ("Content-Length", str(len(body)))]
            peer.send(request(lines, body=body))
            assert peer.reply().status == 401
    assert server.operations.calls == []


def test_a_length_and_a_coding_exclude_each_other_whatever_the_parser_thinks() -> None:
    both = {b"content-type": [b"application/json"], b"content-length": [b"5"], b"transfer-encoding": [b"chunked"]}

    async def never(_request: Request, _caller: Caller) -> Response:
        raise AssertionError

    routes = RouteTable([Route(b"POST", b"/rpc", never)])
    with pytest.raises(Refused) as caught:
        guard.check_head(Head(b"POST", b"/rpc", both), guard.Endpoint(), routes, 100)
    assert caught.value.status == 400


def test_a_token_without_the_scope_of_a_route_is_refused_before_the_body_is_read(tmp_path: Path) -> None:
    async def never(_request: Request, _caller: Caller) -> Response:
        raise AssertionError

    routes = RouteTable([Route(b"GET", b"/open", never), Route(b"GET", b"/read", never, Scope.READ, "reading this")])
    grant = Grant("a job", frozenset({Scope.ENQUEUE}))
    endpoint = guard.Endpoint(None, Credentials(None, tmp_path, lambda: 0, lambda _digest: grant))
    given = {b"authorization": [b"Bearer x"]}
    assert guard.check_head(Head(b"GET", b"/open", given), endpoint, routes, 100)[0].path == b"/open"
    with pytest.raises(Refused, match="reading this needs the scope `read`") as caught:
        guard.check_head(Head(b"GET", b"/read", given), endpoint, routes, 100)
    assert caught.value.status == 403
