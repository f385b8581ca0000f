"""One HTTP connection to the daemon, over its unix socket or the loopback port. Standard library only.

It speaks the small part of HTTP/1.1 that the daemon answers with (one request at a time, keep-alive, Content-Length)
itself: `http.client` alone would cost the command line 20 ms at every start, and twice the time per request.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from semtask import __version__, errors
from semtask.config import Settings

CONNECT_TIMEOUT = 5.0
DEFAULT_TIMEOUT = 30.0
_MAX_HEAD = 65_536
_READ_SIZE = 262_144

# Requests that change nothing: they may be sent again when the connection broke before the answer.
READS = frozenset(
    {
        "dev.get_job.v1",
        "dev.query_jobs.v1",
        "dev.wait.v1",
        "logs.tail.v1",
        "queues.list.v1",
        "admin.stats.v1",
        "rpc.discover",
    }
)

Notice = Callable[[str], None]


def print_notice(line: str) -> None:
    """One line for the person, on stderr: stdout belongs to data."""
    sys.stderr.write(f"semtask: {line}\n")


class NotRunning(errors.DaemonUnavailable):
    """No semtask daemon answers. Start one with `semtask up`."""


class _ConnectionLost(Exception):
    """The connection ended before a whole answer had come."""


@dataclass(frozen=True)
class UnixAddress:
    """The socket in `run_dir`, reached through the folder's descriptor, so that no path is too long."""

    run_dir: Path
    host = "localhost"

    def __str__(self) -> str:
        return str(self.run_dir / "rpc.sock")

    def authorization(self) -> str | None:
        return None

    def open(self, timeout: float) -> socket.socket:
        folder = os.open(self.run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                # A non-blocking connect fails at once where the daemon's backlog is full; this one waits for room.
                connection.setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
                )
                connection.connect(f"/proc/self/fd/{folder}/rpc.sock")
                _require_own(connection, self)
            except BaseException:
                connection.close()
                raise
            return connection
        finally:
            os.close(folder)


@dataclass(frozen=True)
class TcpAddress:
    """A port on the loopback; the bearer token is read from `token_file` where there is one."""

    host: str
    port: int
    token_file: Path

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"

    def authorization(self) -> str | None:
        try:
            return f"Bearer {self.token_file.read_text(encoding='ascii').strip()}"
        except FileNotFoundError:
            return None  # a daemon with tcp_auth=off has none; any other one says that it wants it

    def open(self, timeout: float) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


Address = UnixAddress | TcpAddress


def address_of(settings: Settings, url: str | None = None, env: Mapping[str, str] | None = None) -> Address:
    """Where the daemon is: `url`, else SEMANTICA_RPC_URL, else the unix socket of the home. Raises ConfigError."""
    env = os.environ if env is None else env
    url = url or env.get("SEMANTICA_RPC_URL")
    if not url:
        return UnixAddress(settings.run_dir)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme != "http" or parts.hostname not in {"127.0.0.1", "localhost"} or port is None:
        raise errors.ConfigError(f"the address of the daemon must be like http://127.0.0.1:9527, not {url!r}")
    return TcpAddress(parts.hostname, port, settings.token_file)


def _peer(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process that listens at the other end of a unix socket."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _gid = struct.unpack("3i", raw)
    return pid, uid


def _require_own(connection: socket.socket, address: UnixAddress) -> None:
    uid = _peer(connection)[1]
    if uid != os.geteuid():
        raise errors.Unauthorized(f"the daemon at {address} belongs to user id {uid}, not to you ({os.geteuid()})")


class Transport:
    """Requests to one daemon, one at a time, over a connection that is kept. Not thread-safe: one per thread.

    `notice` gets one line if the daemon is of another version than this client.
    """

    def __init__(self, address: Address, *, notice: Notice = print_notice) -> None:
        self.address = address
        self._notice = notice
        self._connection: socket.socket | None = None
        self._authorization: str | None = None
        self._skew_told = False

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
        if self._connection is not None:
            return
        try:
            self._connection = self.address.open(timeout)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
            raise NotRunning(f"no daemon answers at {self.address}; start one with `semtask up`") from error
        except (BlockingIOError, TimeoutError) as error:
            raise errors.DaemonUnavailable(
                f"the daemon at {self.address} accepts no connection within {timeout:g} s; is it stopped or overloaded?"
            ) from error
        except OSError as error:
            raise errors.DaemonUnavailable(f"cannot connect to {self.address}: {error.strerror or error}") from error
        self._authorization = self.address.authorization()

    def peer_pid(self) -> int:
        """The pid of the daemon as the kernel knows it; 0 if it cannot be seen from here. Unix socket only."""
        self.connect()
        assert self._connection is not None
        return _peer(self._connection)[0] if self._connection.family == socket.AF_UNIX else 0

    def call(self, method: str, params: Mapping[str, Any], timeout: float = DEFAULT_TIMEOUT) -> Any:
        """The result of a method, as decoded JSON. `timeout` in seconds covers the whole exchange.

        Raises the class of errors.py that stands for the daemon's error code, or DaemonUnavailable. A request whose
        answer was lost is repeated once if that is safe: a read, or an enqueue with an idempotency key.
        """
        answer = json.loads(
            self.exchange(method, _encode(params), timeout=timeout, repeatable=_repeatable(method, params))
        )
        if "error" in answer:
            raise errors.from_wire(answer["error"])
        return answer["result"]

    def exchange(self, method: str, params: bytes, *, timeout: float, repeatable: bool) -> bytes:
        """The JSON-RPC response to `params` (a JSON object), undecoded; it holds `result` or `error`."""
        body = b'{"jsonrpc":"2.0","id":1,"method":"%b","params":%b}' % (method.encode(), params)
        deadline = time.monotonic() + timeout
        try:
            return self._attempt(body, deadline)
        except TimeoutError:
            raise errors.DaemonUnavailable(
                f"the daemon at {self.address} did not answer {method} within {timeout:g} s"
            ) from None
        except _ConnectionLost as lost:
            if not repeatable:
                raise errors.DaemonUnavailable(
                    f"the connection to the daemon broke before it answered {method}; "
                    "look whether it was carried out before you repeat it"
                ) from lost
        try:
            return self._attempt(body, deadline)
        except (TimeoutError, _ConnectionLost) as error:
            raise errors.DaemonUnavailable(f"the connection to the daemon at {self.address} broke twice") from error

    def _attempt(self, body: bytes, deadline: float) -> bytes:
        if self._connection is not None and _is_stale(self._connection):
            self.close()
        self.connect()
        try:
            self._send(body, deadline)
            status, headers, answer = self._receive(deadline)
        except BaseException:
            self.close()  # what would be read next is no longer known
            raise
        if headers.get("connection", "").lower() == "close":
            self.close()
        self._compare_versions(headers.get("semtask-version"))
        if status != 200:
            raise self._refusal(status, headers, answer)
        return answer

    def _send(self, body: bytes, deadline: float) -> None:
        head = f"POST /rpc HTTP/1.1\r\nHost: {self._host()}\r\nContent-Type: application/json\r\n"
        if self._authorization:
            head += f"Authorization: {self._authorization}\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        assert self._connection is not None
        self._connection.settimeout(_left(deadline))
        try:
            self._connection.sendall(request)
        except TimeoutError:
            raise
        except OSError:
            return  # refused before it was read whole, or gone: the answer tells, or its absence

    def _host(self) -> str:
        return (
            self.address.host if isinstance(self.address, UnixAddress) else f"{self.address.host}:{self.address.port}"
        )

    def _receive(self, deadline: float) -> tuple[int, dict[str, str], bytes]:
        data = bytearray()
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _MAX_HEAD:
                raise self._no_daemon("an endless HTTP head")
            data += self._read(deadline)
        status, headers = self._parse_head(bytes(data[:end]))
        del data[: end + 4]
        if status == 204:
            return status, headers, b""
        length = headers.get("content-length", "")
        if not length.isdigit():
            raise self._no_daemon("an HTTP answer without a length")
        while len(data) < int(length):
            data += self._read(deadline)
        return status, headers, bytes(data)

    def _read(self, deadline: float) -> bytes:
        assert self._connection is not None
        self._connection.settimeout(_left(deadline))
        try:
            data = self._connection.recv(_READ_SIZE)
        except TimeoutError:
            raise
        except OSError as error:
            raise _ConnectionLost from error
        if not data:
            raise _ConnectionLost
        return data

    def _parse_head(self, head: bytes) -> tuple[int, dict[str, str]]:
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            raise self._no_daemon("something other than HTTP")
        pairs = (line.partition(":") for line in lines)
        return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}

    def _no_daemon(self, what: str) -> errors.DaemonUnavailable:
        return errors.DaemonUnavailable(f"what answers at {self.address} is no semtask daemon: it sent {what}")

    def _compare_versions(self, theirs: str | None) -> None:
        if theirs is None or self._skew_told or theirs.split(".")[:2] == __version__.split(".")[:2]:
            return
        self._skew_told = True
        self._notice(
            f"the daemon is version {theirs}, this client is {__version__}; `semtask down`, then `semtask up` renews it"
        )

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> errors.SemtaskError:
        """The error for an answer of the guard, which stands before the methods."""
        try:
            error = dict(json.loads(body)["error"])
        except (ValueError, KeyError, TypeError):
            return self._no_daemon(f"HTTP status {status} without a JSON-RPC error")
        cls = {401: errors.Unauthorized, 403: errors.Unauthorized, 429: errors.Throttled, 503: errors.Throttled}.get(
            status
        )
        refusal = errors.from_wire(error if cls is None else error | {"code": cls.code})
        seconds = headers.get("retry-after", "")
        if refusal.retry_after_ms is None and seconds.isdigit():
            refusal.retry_after_ms = int(seconds) * 1000
        return refusal


def _encode(params: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(params, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise errors.ValidationError(f"the parameters cannot be sent as JSON: {error}") from error


def _repeatable(method: str, params: Mapping[str, Any]) -> bool:
    if method == "dev.enqueue.v1":
        return "idempotency_key" in params
    if method == "dev.enqueue_many.v1":
        return all("idempotency_key" in job for job in params["jobs"])
    return method in READS


def _is_stale(connection: socket.socket) -> bool:
    """Whether an idle connection has something to read, which can only be its end."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
