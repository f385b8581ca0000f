"""Requests and answers as bytes, without a connection: what the transports with and without asyncio have in common.

It is the small part of HTTP/1.1 that the daemon answers with (one request at a time, keep-alive, Content-Length):
`http.client` alone would cost the command line 20 ms at every start, and twice the time per request. Standard library
only.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from semtask import __version__, errors
from semtask.client.address import Address
from semtask.config.environment import ENV_ATTEMPT, ENV_JOB_ID

CONNECT_TIMEOUT = 5.0
DEFAULT_TIMEOUT = 30.0
READ_SIZE = 262_144
_MAX_HEAD = 65_536

# Seconds before a request whose answer was lost is sent again, if that is safe. More than once, since a daemon that is
# being killed may close a connection before the socket that takes the next one.
REPEATS = (0.0, 0.05, 0.25)

# Requests that change nothing: they may be sent again when the connection broke before the answer.
READS = frozenset(
    {
        "dev.get_job.v1",
        "dev.query_jobs.v1",
        "dev.wait.v1",
        "logs.tail.v1",
        "queues.list.v1",
        "apps.list.v1",
        "tasks.list.v1",
        "workers.list.v1",
        "admin.stats.v1",
        "rpc.discover",
    }
)

Notice = Callable[[str], None]


def print_notice(line: str) -> None:
    """One line for the person, on stderr: stdout belongs to data."""
    sys.stderr.write(f"semtask: {line}\n")


class ConnectionLost(Exception):
    """The connection ended before a whole answer had come."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def is_last(self) -> bool:
        """Whether the daemon closes the connection after it."""
        return self.headers.get("connection", "").lower() == "close"


def request(method: str, params: bytes) -> bytes:
    """The body of a request; `params` is a JSON object."""
    return b'{"jsonrpc":"2.0","id":1,"method":"%b","params":%b}' % (method.encode(), params)


class Protocol:
    """What is said to one daemon. `notice` gets one line if it is of another version than this client."""

    def __init__(self, address: Address, notice: Notice) -> None:
        self._address = address
        self._notice = notice
        self._skew_told = False
        self._attempt = _own_attempt(os.environ)

    def request(self, body: bytes, authorization: str | None) -> bytes:
        head = f"POST /rpc HTTP/1.1\r\nHost: {self._address.host}\r\nContent-Type: application/json\r\n"
        if authorization:
            head += f"Authorization: {authorization}\r\n"
        if self._attempt:
            head += f"Semtask-Attempt: {self._attempt}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def reader(self) -> AnswerReader:
        return AnswerReader(self._address)

    def accept(self, answer: Answer) -> bytes:
        """The JSON-RPC response. Raises the error of the guard, which runs before the methods."""
        self._compare_versions(answer.headers.get("semtask-version"))
        if answer.status != 200:
            raise self._refusal(answer)
        return answer.body

    def timed_out(self, method: str, timeout: float) -> errors.DaemonUnavailable:
        return errors.DaemonUnavailable(f"the daemon at {self._address} did not answer {method} within {timeout:g} s")

    def lost(self, method: str, *, repeatable: bool) -> errors.DaemonUnavailable:
        if repeatable:
            return errors.DaemonUnavailable(
                f"the connection to the daemon at {self._address} broke {1 + len(REPEATS)} times before it answered "
                f"{method}; `semtask logs --daemon` has what it says"
            )
        return errors.DaemonUnavailable(
            f"the connection to the daemon broke before it answered {method}; "
            "look whether it was carried out before you repeat it"
        )

    def _compare_versions(self, theirs: str | None) -> None:
        if theirs is None or self._skew_told or theirs.split(".")[:2] == __version__.split(".")[:2]:
            return
        self._skew_told = True
        self._notice(
            f"the daemon is version {theirs}, this client is {__version__}; `semtask down`, then `semtask up` renews it"
        )

    def _refusal(self, answer: Answer) -> errors.SemtaskError:
        try:
            error = dict(json.loads(answer.body)["error"])
        except (ValueError, KeyError, TypeError):
            return _no_daemon(self._address, f"HTTP status {answer.status} without a JSON-RPC error")
        by_status: dict[int, type[errors.RpcError]] = {
            401: errors.Unauthorized,
            403: errors.Unauthorized,
            429: errors.Throttled,
            503: errors.Throttled,
        }
        cls = by_status.get(answer.status)
        refusal = errors.from_wire(error if cls is None else error | {"code": cls.code})
        seconds = answer.headers.get("retry-after", "")
        if refusal.retry_after_ms is None and seconds.isdigit():
            refusal.retry_after_ms = int(seconds) * 1000
        return refusal


class AnswerReader:
    """Puts one answer together from what is received."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._data = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._length = 0

    def feed(self, data: bytes) -> Answer | None:
        """The answer once it is whole. `data` is empty at the end of the connection. Raises ConnectionLost."""
        if not data:
            raise ConnectionLost
        self._data += data
        if self._head is None and not self._read_head():
            return None
        assert self._head is not None
        if len(self._data) < self._length:
            return None
        return Answer(*self._head, bytes(self._data))

    def _read_head(self) -> bool:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            if len(self._data) > _MAX_HEAD:
                raise _no_daemon(self._address, "an endless HTTP head")
            return False
        status, headers = self._parse_head(bytes(self._data[:end]))
        del self._data[: end + 4]
        if status != 204:
            length = headers.get("content-length", "")
            if not length.isdigit():
                raise _no_daemon(self._address, "an HTTP answer without a length")
            self._length = int(length)
        self._head = status, headers
        return True

    def _parse_head(self, head: bytes) -> tuple[int, dict[str, str]]:
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if not words[0].startswith("HTTP/1.") or len(words) < 2 or not words[1].isdigit():
            raise _no_daemon(self._address, "something other than HTTP")
        pairs = (line.partition(":") for line in lines)
        return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _own_attempt(env: Mapping[str, str]) -> str | None:
    """Of which job this process is, for the daemon that runs that: while it waits for another one it takes no place."""
    said = f"{env.get(ENV_ATTEMPT, '')} {env.get(ENV_JOB_ID, '')}".rstrip()
    return said if said.isascii() and said.isprintable() and not said.startswith(" ") and len(said) < 256 else None


def is_stale(connection: socket.socket) -> bool:
    """Whether an idle connection has something to read, which can only be its end."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def encode(params: Mapping[str, Any]) -> bytes:
    """Parameters as JSON. Raises ValidationError for what JSON cannot hold."""
    try:
        return json.dumps(params, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise errors.ValidationError(f"the parameters cannot be sent as JSON: {error}") from error


def is_repeatable(method: str, params: Mapping[str, Any]) -> bool:
    """Whether a request whose answer was lost may be sent again: a read, or an enqueue with an idempotency key."""
    if method == "dev.enqueue.v1":
        return "idempotency_key" in params
    if method == "dev.enqueue_many.v1":
        return all("idempotency_key" in job for job in params["jobs"])
    return method in READS


def _no_daemon(address: Address, what: str) -> errors.DaemonUnavailable:
    return errors.DaemonUnavailable(f"what answers at {address} is no semtask daemon: it sent {what}")
