"""Requests that must be refused or accepted, byte by byte, at the real doors."""

from __future__ import annotations

from pathlib import Path

import pytest

from semtask.api import guard
from semtask.protocol.messages import METHODS
from tests.api.running import Peer, Reply, Running, running

BODY = b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1"}'
JSON = ("Content-Type", "application/json")
Headers = list[tuple[str, str]]


def request(headers: Headers, *, method: str = "POST", target: str = "/rpc", body: bytes = BODY) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def send(peer: Peer, server: Running, headers: Headers, method: str = "POST", target: str = "/rpc") -> Reply:
    """PORT and TOKEN in header values stand for those of the server."""
    filled = [(n, v.replace("PORT", str(server.port)).replace("TOKEN", server.token)) for n, v in headers]
    if not any(name.lower() in {"content-length", "transfer-encoding"} for name, _ in filled):
        filled.append(("Content-Length", str(len(BODY))))
    peer.send(request(filled, method=method, target=target))
    return peer.reply()


AUTH = ("Authorization", "Bearer TOKEN")
LOCAL = ("Host", "localhost:PORT")
GOOD = [LOCAL, JSON, AUTH]


def host(value: str) -> Headers:
    return [("Host", value), JSON, AUTH]


TCP: list[tuple[str, Headers, int]] = [
    ("curl", host("127.0.0.1:PORT"), 200),
    ("localhost", host("localhost:PORT"), 200),
    ("upper case host", host("LOCALHOST:PORT"), 200),
    ("ipv6", host("[::1]:PORT"), 200),
    ("dashboard", [*GOOD, ("Origin", "http://localhost:PORT"), ("Sec-Fetch-Site", "same-origin")], 200),
    ("dashboard by address", [*GOOD, ("Origin", "http://127.0.0.1:PORT")], 200),
    ("typed in the address bar", [*GOOD, ("Sec-Fetch-Site", "none")], 200),
    ("charset", [LOCAL, ("Content-Type", "application/json; charset=utf-8"), AUTH], 200),
    ("upper case content type", [LOCAL, ("Content-Type", "Application/JSON"), AUTH], 200),
    ("lower case bearer", [LOCAL, JSON, ("Authorization", "bearer TOKEN")], 200),
    ("cookies do not matter", [*GOOD, ("Cookie", "a=b")], 200),
    # DNS rebinding
    ("rebinding", host("evil.com:PORT"), 403),
    ("rebinding nip.io", host("127.0.0.1.nip.io:PORT"), 403),
    ("suffix", host("localhost.evil.com:PORT"), 403),
    ("prefix", host("evil-localhost:PORT"), 403),
    ("other port", host("127.0.0.1:80"), 403),
    ("no port", host("localhost"), 403),
    ("port with zeros", host("localhost:0PORT"), 403),
    ("empty port", host("localhost:"), 403),
    ("0.0.0.0", host("0.0.0.0:PORT"), 403),
    ("userinfo", host("localhost@evil.com:PORT"), 403),
    ("user at localhost", host("evil@localhost:PORT"), 403),
    ("decimal address", host("2130706433:PORT"), 403),
    ("hexadecimal address", host("0x7f.1:PORT"), 403),
    ("octal address", host("0177.0.0.1:PORT"), 403),
    ("short address", host("127.1:PORT"), 403),
    ("other loopback", host("127.0.0.2:PORT"), 403),
    ("mapped address", host("[::ffff:127.0.0.1]:PORT"), 403),
    ("bare ipv6", host("::1:PORT"), 403),
    ("trailing dot", host("localhost.:PORT"), 403),
    ("path in host", host("localhost:PORT/rpc"), 403),
    ("comma in host", host("localhost:PORT,evil.com"), 403),
    ("not ascii", host("loc\xe4lhost:PORT"), 403),
    ("empty host", host(""), 403),
    ("no host", [JSON, AUTH], 403),
    ("two hosts", [LOCAL, ("host", "evil.com"), JSON, AUTH], 403),
    ("the same host twice", [LOCAL, LOCAL, JSON, AUTH], 403),
    ("forwarded host is no host", [("Host", "evil.com"), ("X-Forwarded-Host", "localhost:PORT"), JSON, AUTH], 403),
    # pages of other origins
    ("cross origin", [*GOOD, ("Origin", "https://evil.com")], 403),
    ("origin null", [*GOOD, ("Origin", "null")], 403),
    ("empty origin", [*GOOD, ("Origin", "")], 403),
    ("another local application", [*GOOD, ("Origin", "http://localhost:3000")], 403),
    ("https of ourselves", [*GOOD, ("Origin", "https://localhost:PORT")], 403),
    ("origin without scheme", [*GOOD, ("Origin", "localhost:PORT")], 403),
    ("origin with a path", [*GOOD, ("Origin", "http://localhost:PORT/")], 403),
    ("origin suffix", [*GOOD, ("Origin", "http://localhost:PORT.evil.com")], 403),
    ("two origins", [*GOOD, ("Origin", "http://localhost:PORT"), ("Origin", "https://evil.com")], 403),
    ("the same origin twice", [*GOOD, *[("Origin", "http://localhost:PORT")] * 2], 403),
    ("cross site", [*GOOD, ("Sec-Fetch-Site", "cross-site")], 403),
    ("same site", [*GOOD, ("Sec-Fetch-Site", "same-site")], 403),
    ("unknown site", [*GOOD, ("Sec-Fetch-Site", "hello")], 403),
    ("two sites", [*GOOD, ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")], 403),
    ("websocket of a page", [*GOOD, ("Origin", "https://evil.com"), ("Upgrade", "websocket")], 403),
    # forms
    ("form", [LOCAL, ("Content-Type", "application/x-www-form-urlencoded"), AUTH], 415),
    ("form text/plain", [LOCAL, ("Content-Type", "text/plain"), AUTH], 415),
    ("form multipart", [LOCAL, ("Content-Type", "multipart/form-data; boundary=application/json"), AUTH], 415),
    ("hidden in parameters", [LOCAL, ("Content-Type", "text/plain; application/json"), AUTH], 415),
    ("a list of types", [LOCAL, ("Content-Type", "application/json, text/plain"), AUTH], 415),
    ("json like", [LOCAL, ("Content-Type", "application/json-patch+json"), AUTH], 415),
    ("no content type", [LOCAL, AUTH], 415),
    ("empty content type", [LOCAL, ("Content-Type", ""), AUTH], 415),
    ("two content types", [LOCAL, ("Content-Type", "text/plain"), JSON, AUTH], 415),
    ("the same content type twice", [LOCAL, JSON, JSON, AUTH], 415),
    ("compressed", [*GOOD, ("Content-Encoding", "gzip")], 415),
    # token
    ("no token", [LOCAL, JSON], 401),
    ("empty token", [LOCAL, JSON, ("Authorization", "Bearer ")], 401),
    ("wrong token", [LOCAL, JSON, ("Authorization", "Bearer wrong")], 401),
    ("token with a tail", [LOCAL, JSON, ("Authorization", "Bearer TOKENx")], 401),
    ("token in two parts", [LOCAL, JSON, ("Authorization", "Bearer TOKEN TOKEN")], 401),
    ("token that is not ascii", [LOCAL, JSON, ("Authorization", "Bearer \xe9")], 401),
    ("huge token", [LOCAL, JSON, ("Authorization", "Bearer " + "x" * 9000)], 401),
    ("no scheme", [LOCAL, JSON, ("Authorization", "TOKEN")], 401),
    ("basic", [LOCAL, JSON, ("Authorization", "Basic TOKEN")], 401),
    ("two tokens", [LOCAL, JSON, AUTH, AUTH], 401),
    ("wrong and right token", [LOCAL, JSON, ("Authorization", "Bearer no"), AUTH], 401),
    ("token as a cookie", [LOCAL, JSON, ("Cookie", "token=TOKEN")], 401),
    ("token in another header", [LOCAL, JSON, ("X-Token", "TOKEN")], 401),
    # framing
    ("two lengths", [*GOOD, ("Content-Length", str(len(BODY))), ("Content-Length", str(len(BODY)))], 400),
    ("different lengths", [*GOOD, ("Content-Length", "0"), ("Content-Length", str(len(BODY)))], 400),
    ("a list of lengths", [*GOOD, ("Content-Length", f"{len(BODY)}, {len(BODY)}")], 400),
    ("negative length", [*GOOD, ("Content-Length", "-1")], 400),
    ("signed length", [*GOOD, ("Content-Length", f"+{len(BODY)}")], 400),
    ("hexadecimal length", [*GOOD, ("Content-Length", "0x10")], 400),
    ("endless length", [*GOOD, ("Content-Length", "9" * 40)], 400),
    ("length and coding", [*GOOD, ("Content-Length", "5"), ("Transfer-Encoding", "chunked")], 400),
    ("coding and length", [*GOOD, ("Transfer-Encoding", "chunked"), ("Content-Length", "5")], 400),
    ("another coding", [*GOOD, ("Transfer-Encoding", "gzip, chunked")], 400),
    ("unknown coding", [*GOOD, ("Transfer-Encoding", "xchunked")], 400),
    ("twice chunked", [*GOOD, ("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")], 400),
    ("bad chunk", [*GOOD, ("Transfer-Encoding", "chunked")], 400),
    ("blank before the colon", [*GOOD, ("X-A ", "b")], 400),
    ("folded header", [*GOOD, ("X-A", "b\r\n c")], 400),
    ("bare line feed in a value", [*GOOD, ("X-A", "b\nContent-Length: 3")], 400),
    ("NUL in a value", [*GOOD, ("X-A", "b\0c")], 400),
    ("websocket", [*GOOD, ("Connection", "Upgrade"), ("Upgrade", "websocket")], 400),
    ("too large", [*GOOD, ("Content-Length", str(11 * 1024 * 1024 + 1))], 413),
    ("head too large", [*GOOD, ("X-A", "b" * 16 * 1024)], 431),
    ("too many headers", [*GOOD, *[("X-A", "b")] * 3000], 431),
]


@pytest.mark.parametrize(("headers", "status"), [case[1:] for case in TCP], ids=[case[0] for case in TCP])
def test_requests_at_the_tcp_door(server: Running, headers: Headers, status: int) -> None:
    with server.tcp() as peer:
        reply = send(peer, server, headers)
        assert reply.status == status
        assert server.operations.names() == (["stats"] if status == 200 else [])
        assert reply.headers["semtask-version"] == "1.2.3"
        assert not any(name.startswith("access-control") for name in reply.headers)
        if status != 200:
            assert reply.json["id"] is None
            assert reply.error["code"] in {-32600, 4004}
            assert reply.headers["connection"] == "close"
            assert peer.closed()


ROUTES = [
    ("POST", "/rpc", 200),
    ("POST", "/", 200),
    ("POST", "/rpc?x=1", 200),
    ("POST", "/rpc/", 404),
    ("POST", "//rpc", 404),
    ("POST", "/%72pc", 404),
    ("POST", "/x/../rpc", 404),
    ("POST", "/RPC", 404),
    ("POST", "http://evil.com/rpc", 404),
    ("GET", "/rpc", 405),
    ("GET", "/", 405),
    ("HEAD", "/rpc", 405),
    ("PUT", "/rpc", 405),
    ("DELETE", "/rpc", 405),
    ("OPTIONS", "/rpc", 405),
    ("PATCH", "/rpc", 405),
    ("TRACE", "/rpc", 405),
    ("POST", "/healthz", 405),
    ("GET", "/healthz", 200),
    ("GET", "/readyz", 200),
    ("GET", "/metrics", 200),
    ("POST", "/metrics", 405),
    ("GET", "/metrics/", 404),
    ("GET", "/etc/passwd", 404),
    ("OPTIONS", "*", 404),
    ("CONNECT", "localhost:80", 404),
    ("BREW", "/rpc", 400),
]


@pytest.mark.parametrize(("method", "target", "status"), ROUTES)
def test_routes(server: Running, method: str, target: str, status: int) -> None:
    for peer in (server.unix(), server.tcp()):
        with peer:
            assert send(peer, server, GOOD, method=method, target=target).status == status
    executed = status == 200 and method == "POST"
    assert server.operations.names() == (["stats"] * 2 if executed else [])


UNIX: list[tuple[str, Headers, int]] = [
    ("no token is asked for", [("Host", "localhost"), JSON], 200),
    ("any host", [("Host", "semtask"), JSON], 200),
    ("no host", [JSON], 200),
    ("two hosts", [("Host", "a"), ("Host", "b"), JSON], 400),
    ("a page behind a proxy", [("Host", "localhost"), JSON, ("Origin", "http://localhost:PORT")], 403),
    ("cross site behind a proxy", [("Host", "localhost"), JSON, ("Sec-Fetch-Site", "cross-site")], 403),
    ("text", [("Host", "localhost"), ("Content-Type", "text/plain")], 415),
]


@pytest.mark.parametrize(("headers", "status"), [case[1:] for case in UNIX], ids=[case[0] for case in UNIX])
def test_requests_at_the_unix_door(server: Running, headers: Headers, status: int) -> None:
    with server.unix() as peer:
        assert send(peer, server, headers).status == status
    assert server.operations.names() == (["stats"] if status == 200 else [])


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"{}\n",
        b"POST\r\n\r\n",
        b"POST /rpc HTTP/9.9\r\n\r\n",
        b"\0" * 64,
    ],
    ids=["TLS", "newline JSON", "half a line", "unknown version", "NUL"],
)
def test_what_is_no_http_is_told_so(server: Running, junk: bytes) -> None:
    with server.unix() as peer:
        peer.send(junk)
        assert peer.reply().status == 400
        assert peer.closed()


def test_a_refused_request_smuggles_no_second_one(server: Running) -> None:
    """The body of a request that is refused by its head is never read as a request of its own."""
    inner = request([*GOOD, ("Content-Length", str(len(BODY)))])
    for headers in (
        [JSON, ("Content-Length", "0"), ("Content-Length", str(len(inner)))],
        [JSON, ("Content-Length", "4"), ("Transfer-Encoding", "chunked")],
        [("Content-Type", "text/plain"), ("Content-Length", "0")],
    ):
        with server.unix() as peer:
            peer.send(request(headers, body=b"0\r\n\r\n" + inner))
            assert peer.reply().status in {400, 415}
            assert peer.closed()
    assert server.operations.calls == []


def test_a_401_says_nothing_but_that(server: Running) -> None:
    with server.tcp() as peer:
        missing = send(peer, server, [LOCAL, JSON])
    with server.tcp() as peer:
        wrong = send(peer, server, [LOCAL, JSON, ("Authorization", "Bearer wrong")])
    with server.tcp() as peer:
        elsewhere = send(peer, server, [LOCAL, JSON], target="/nowhere")
    assert missing == wrong == elsewhere
    assert missing.headers["www-authenticate"] == "Bearer"


def test_without_a_token_the_rest_of_the_guard_stands(home: Path) -> None:
    with running(home, tcp=True, rpc_port=0, tcp_auth="off") as server:
        assert not server.settings.token_file.exists()
        for headers, status in ((GOOD[:2], 200), (host("evil.com:PORT")[:2], 403)):
            lines = [(name, value.replace("PORT", str(server.port))) for name, value in headers]
            with server.tcp() as peer:
                peer.send(request([*lines, ("Content-Length", str(len(BODY)))]))
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
    with pytest.raises(guard.Refused) as caught:
        guard.check_head(guard.Head(b"POST", b"/rpc", both), guard.Place(), 100)
    assert caught.value.status == 400
