"""Requests that must be refused, and some that must not, byte by byte: one table, each with what must come of it.

`wrong` sends all of them to a running server and names those that fare otherwise, so that a test can hold the table
to a guard with a hole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tests.api.running import JOB_ID, Peer, Reply, Running

STATS = b'{"jsonrpc":"2.0","id":1,"method":"admin.stats.v1"}'
OK = 200
Headers = list[tuple[str, str]]

JSON = ("Content-Type", "application/json")
AUTH = ("Authorization", "Bearer TOKEN")
LOCAL = ("Host", "localhost:PORT")
GOOD = [LOCAL, JSON, AUTH]
FRAMING = {"content-length", "transfer-encoding"}


@dataclass(frozen=True)
class Case:
    """One request. PORT and TOKEN in header values stand for those of the server.

    `status` is HTTP's; `code` the error of JSON-RPC where the request got past the guard, 0 for none.
    """

    name: str
    headers: Headers = field(default_factory=lambda: GOOD)
    status: int = OK
    code: int = 0
    method: str = "POST"
    target: str = "/rpc"
    body: bytes = STATS
    door: str = "tcp"

    @property
    def refused(self) -> bool:
        return self.status != OK or self.code != 0


def request(headers: Headers, *, method: str = "POST", target: str = "/rpc", body: bytes = STATS) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def send(peer: Peer, server: Running, case: Case) -> Reply:
    headers = [(n, v.replace("PORT", str(server.port)).replace("TOKEN", server.token)) for n, v in case.headers]
    if not FRAMING & {name.lower() for name, _ in headers}:
        headers.append(("Content-Length", str(len(case.body))))
    peer.send(request(headers, method=case.method, target=case.target, body=case.body))
    return peer.reply()


def wrong(server: Running, cases: list[Case], patience_s: float = 20) -> list[str]:
    """Name and outcome of each request that did not come to what the table says, or that left a trace."""
    found = []
    for case in cases:
        server.operations.calls.clear()
        with server.tcp() if case.door == "tcp" else server.unix() as peer:
            peer.sock.settimeout(patience_s)
            try:
                problem = _problem(case, send(peer, server, case), server.operations.names(), peer)
            except (EOFError, OSError) as error:
                problem = f"no answer: {error!r}"
        if problem:
            found.append(f"{case.name}: {problem}")
    return found


def _problem(case: Case, reply: Reply, executed: list[str], peer: Peer) -> str:
    if reply.status != case.status:
        return f"{reply.status} instead of {case.status}"
    if case.refused and executed:
        return f"executed {executed}"
    if any(name.startswith("access-control") for name in reply.headers):
        return "answered with CORS headers"
    if "semtask-version" not in reply.headers:
        return "answered without the version"
    if case.status != OK:
        return _no_refusal(case, reply, peer)
    if case.code and reply.error["code"] != case.code:
        return f"error {reply.error} instead of {case.code}"
    return "" if case.code or "error" not in reply.body.decode() else f"refused: {reply.body.decode()}"


def _no_refusal(case: Case, reply: Reply, peer: Peer) -> str:
    """Why this is not how the guard refuses; nothing if it is."""
    if case.method != "HEAD" and (reply.json["id"] is not None or reply.error["code"] not in {-32600, 4004}):
        return f"the body of the refusal is {reply.body.decode()}"
    return "" if reply.headers["connection"] == "close" and peer.closed() else "the connection goes on"


def host(value: str) -> Headers:
    return [("Host", value), JSON, AUTH]


def call(method: str, params: Any = None, **more: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}, **more}).encode()


def enqueue(**params: Any) -> bytes:
    return call("dev.enqueue.v1", {"job_type": "x", "payload": {}, **params})


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


# name, headers, status
_AT_TCP: list[tuple[str, Headers, int]] = [
    ("curl", host("127.0.0.1:PORT"), 200),
    ("localhost", host("localhost:PORT"), 200),
    ("upper case host", host("LOCALHOST:PORT"), 200),
    ("ipv6", host("[::1]:PORT"), 200),
    ("dashboard", [*GOOD, ("Origin", "http://localhost:PORT"), ("Sec-Fetch-Site", "same-origin")], 200),
    ("dashboard by address", [*GOOD, ("Origin", "http://127.0.0.1:PORT")], 200),
    ("typed in the address bar", [*GOOD, ("Sec-Fetch-Site", "none")], 200),
    ("json-rpc", [LOCAL, ("Content-Type", "application/json-rpc"), AUTH], 200),
    ("jsonrequest", [LOCAL, ("Content-Type", "application/jsonrequest"), AUTH], 200),
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
    ("basic with another password", [LOCAL, JSON, ("Authorization", "Basic c2VtdGFzazp3cm9uZw==")], 401),
    ("basic that is no base64", [LOCAL, JSON, ("Authorization", "Basic c2VtdGFzazp3?")], 401),
    ("proxy authorization without a proxy", [LOCAL, JSON, ("Proxy-Authorization", "Bearer TOKEN")], 401),
    ("two tokens", [LOCAL, JSON, AUTH, AUTH], 401),
    ("wrong and right token", [LOCAL, JSON, ("Authorization", "Bearer no"), AUTH], 401),
    ("token as a cookie", [LOCAL, JSON, ("Cookie", "token=TOKEN")], 401),
    ("token in another header", [LOCAL, JSON, ("X-Token", "TOKEN")], 401),
    # framing
    ("two lengths", [*GOOD, ("Content-Length", str(len(STATS))), ("Content-Length", str(len(STATS)))], 400),
    ("different lengths", [*GOOD, ("Content-Length", "0"), ("Content-Length", str(len(STATS)))], 400),
    ("a list of lengths", [*GOOD, ("Content-Length", f"{len(STATS)}, {len(STATS)}")], 400),
    ("negative length", [*GOOD, ("Content-Length", "-1")], 400),
    ("signed length", [*GOOD, ("Content-Length", f"+{len(STATS)}")], 400),
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

# method, target, status: at both doors
_ROUTES = [
    ("POST", "/rpc", 200),
    ("POST", "/", 200),
    ("POST", "/rpc?x=1", 200),
    ("POST", "/rpc/", 404),
    ("POST", "//rpc", 404),
    ("POST", "/%72pc", 404),
    ("POST", "/x/../rpc", 404),
    ("POST", "/RPC", 404),
    ("POST", "http://evil.com/rpc", 403),
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
    ("GET", "/health", 200),
    ("POST", "/health", 405),
    ("GET", "/readyz", 200),
    ("GET", "/metrics", 200),
    ("POST", "/metrics", 405),
    ("GET", "/metrics/", 404),
    ("GET", "/etc/passwd", 404),
    ("OPTIONS", "*", 404),
    ("CONNECT", "localhost:80", 404),
    ("BREW", "/rpc", 400),
]

# name, headers, status
_AT_UNIX: list[tuple[str, Headers, int]] = [
    ("no token is asked for", [("Host", "localhost"), JSON], 200),
    ("a token that is given is looked at", [JSON, ("Authorization", "Bearer wrong")], 401),
    ("a password", [JSON, ("Authorization", "Basic dG9rZW46")], 401),
    ("the token of the port", [JSON, AUTH], 200),
    ("any host", [("Host", "semtask"), JSON], 200),
    ("no host", [JSON], 200),
    ("two hosts", [("Host", "a"), ("Host", "b"), JSON], 400),
    ("a page behind a proxy", [("Host", "localhost"), JSON, ("Origin", "http://localhost:PORT")], 403),
    ("cross site behind a proxy", [("Host", "localhost"), JSON, ("Sec-Fetch-Site", "cross-site")], 403),
    ("text", [("Host", "localhost"), ("Content-Type", "text/plain")], 415),
]

_HUGE = "a" * 300
# name, body, code of the error: what gets past the guard, and no further
_BODIES: list[tuple[str, bytes, int]] = [
    ("nothing", b"", -32700),
    ("half an object", b"{", -32700),
    ("NaN", b"NaN", -32700),
    ("infinity by exponent", call("admin.stats.v1").replace(b"{}", b'{"a":1e999}'), -32700),
    ("a lone surrogate", call("admin.stats.v1").replace(b"{}", b'{"a":"\\ud800"}'), -32700),
    ("bytes that are no UTF-8", call("admin.stats.v1").replace(b"{}", b'{"a":"\xff"}'), -32700),
    ("UTF-16", call("admin.stats.v1").decode().encode("utf-16"), -32700),
    ("a byte order mark", b"\xef\xbb\xbf" + call("admin.stats.v1"), -32700),
    ("two requests in a row", call("admin.stats.v1") * 2, -32700),
    ("100,000 brackets", b"[" * 100_000 + b"]" * 100_000, -32700),
    ("100,000 braces", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, -32700),
    ("brackets that do not close", b"[" * 1_000_000, -32700),
    ("a payload of 65 levels", enqueue(payload=nested(65)), 4000),
    ("params too deep", call("admin.stats.v1", {"a": nested(80)}), -32700),
    ("an empty batch", b"[]", -32600),
    ("a batch of 1,001", b"[" + b",".join([STATS] * 1001) + b"]", -32600),
    ("a batch of 100,000", b"[" + b",".join([b"1"] * 100_000) + b"]", -32600),
    ("no JSON-RPC", b'"text"', -32600),
    ("another version", call("admin.stats.v1", jsonrpc="1.0"), -32600),
    ("an unknown member", call("admin.stats.v1", token="x"), -32600),
    ("an id that is an object", call("admin.stats.v1", id={}), -32600),
    ("an unknown method", call("admin.stats.v2"), -32601),
    ("an operation of the engine", call("enqueue"), -32601),
    ("an attribute of Python", call("__init__"), -32601),
    ("a path of Python", call("os.system"), -32601),
    ("a method with NUL", call("admin.stats.v1\0"), -32601),
    ("a method in other letters", call("Admin.Stats.v1"), -32601),
    ("a method that looks alike", call("\u0430dmin.stats.v1"), -32601),
    ("an endless method", call("x" * 1_000_000), -32601),
    ("too many params by position", call("admin.stats.v1").replace(b"{}", b"[1]"), -32602),
    ("params null", call("admin.stats.v1").replace(b"{}", b"null"), -32602),
    ("an unknown parameter", call("admin.stats.v1", {"home": "/"}), 4000),
    ("a module of Python", call("apps.reload.v1", {"module": "os:system"}), 4000),
    ("an app that is a path", call("apps.reload.v1", {"app": _HUGE}), 4000),
    ("10,001 jobs", call("dev.enqueue_many.v1", {"jobs": [{"job_type": "x", "payload": {}}] * 10_001}), 4000),
    ("no jobs", call("dev.enqueue_many.v1", {"jobs": []}), 4000),
    ("1,001 ids", call("dev.wait.v1", {"job_ids": [JOB_ID] * 1001}), 4000),
    ("201 of a page", call("dev.query_jobs.v1", {"limit": 201}), 4000),
    ("a wait of an hour", call("dev.wait.v1", {"job_ids": [JOB_ID], "timeout_ms": 3_600_000}), 4000),
    ("a subject with NUL", enqueue(subject_key="a\0b"), 4000),
    ("an endless job_type", enqueue(job_type="x" * 129), 4000),
    ("a number beyond its limit", enqueue(priority=10**30), 4000),
    ("a priority that is a text", enqueue(priority="1; drop table jobs"), 4000),
    ("a state that is none", call("dev.query_jobs.v1", {"filter": {"state": ["x' or 1=1"]}}), 4000),
    ("a traceparent with a line feed", enqueue(traceparent=f"00-{'a' * 32}-{'b' * 16}-01\n"), 4000),
]
# What is asked for as a job or a queue, and must be none; the same strings for each method that takes one.
NAMES = [
    "../../etc/passwd",
    "..",
    ".",
    "/etc/passwd",
    "~",
    "a/b",
    "a\\b",
    "%2e%2e%2f",
    "a\0b",
    "a\nb",
    " a",
    "-rf ",
    _HUGE,
    "a\u202eb",  # right to left
    "\uff0e\uff0e\uff0f",  # full width ../
    "\u0430",  # Cyrillic a
    "\u0000",
    "",
]
_NAMED: list[tuple[str, str, dict[str, Any]]] = [
    ("job_id", "dev.get_job.v1", {}),
    ("job_id", "dev.cancel.v1", {}),
    ("job_id", "dev.retry.v1", {}),
    ("job_id", "logs.tail.v1", {}),
    ("parent_job_id", "dev.enqueue.v1", {"job_type": "x", "payload": {}}),
    ("queue", "dev.enqueue.v1", {"job_type": "x", "payload": {}}),
    ("queue", "queues.pause.v1", {}),
    ("queue", "queues.configure.v1", {}),
    ("queue", "dev.retry.v1", {}),
    ("stream", "logs.tail.v1", {"job_id": JOB_ID}),
    ("attempt", "logs.tail.v1", {"job_id": JOB_ID}),
]

HEADS = [Case(name, headers, status) for name, headers, status in _AT_TCP]
UNIX = [Case(f"unix: {name}", headers, status, door="unix") for name, headers, status in _AT_UNIX]
ROUTES = [
    Case(f"{door}: {method} {target}", status=status, method=method, target=target, door=door)
    for method, target, status in _ROUTES
    for door in ("tcp", "unix")
]
BODIES = [Case(name, code=code, body=body) for name, body, code in _BODIES]
PATHS = [
    Case(f"{method} {parameter}={name[:20]!r}", code=4000, body=call(method, {parameter: name, **rest}))
    for parameter, method, rest in _NAMED
    for name in NAMES
]
TABLE = [*HEADS, *UNIX, *ROUTES, *BODIES, *PATHS]
