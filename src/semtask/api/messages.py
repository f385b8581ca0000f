"""HTTP requests and responses as values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

from semtask.errors import InvalidRequest, RpcError, Throttled

Headers = Sequence[tuple[bytes, bytes]]


class Refused(Exception):
    """A request that is not executed: an HTTP status, and the error of the JSON-RPC body."""

    def __init__(self, status: HTTPStatus, error: RpcError, headers: Headers = ()) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.headers = headers


class Head(NamedTuple):
    """The head of a request: header names in lower case, and the values of each in order."""

    method: bytes
    target: bytes
    headers: Mapping[bytes, Sequence[bytes]]
    version: str = "1.1"

    @property
    def path(self) -> bytes:
        return self._parts[1].partition(b"?")[0] or b"/"

    @property
    def authority(self) -> bytes | None:
        """Of a target that is a whole URL, as it is sent to a proxy; None for a path."""
        return self._parts[0]

    @property
    def _parts(self) -> tuple[bytes | None, bytes]:
        if self.target[:7].lower() != b"http://":
            return None, self.target
        authority, slash, rest = self.target[7:].partition(b"/")
        return authority, slash + rest

    def values(self, name: bytes) -> Sequence[bytes]:
        return self.headers.get(name, ())


class Response(NamedTuple):
    """A response, without the headers that every response has.

    A `body` that is an async iterator is sent while it is produced, one chunk after another. It is asked for the next
    chunk when the client has taken the former ones, and is cancelled and closed when the client leaves, does not read,
    or the server closes. One that ends so is complete only if it is `endless`, as events are.
    """

    status: HTTPStatus
    body: bytes | AsyncIterator[bytes] = b""
    headers: Headers = ()
    content_type: bytes = b"application/json"
    endless: bool = False


def bad_request(reason: str) -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, InvalidRequest(reason))


def too_large(max_body_bytes: int) -> Refused:
    error = InvalidRequest(f"The body is larger than {max_body_bytes} bytes.")
    return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, error)


def too_many(what: str) -> Refused:
    """For what is above a limit of all clients together."""
    error = Throttled(f"Too many {what} now. Try again later.", retry_after_ms=1000)
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, error, [(b"retry-after", b"1")])


def no_descriptors() -> Refused:
    error = Throttled("The daemon has no file descriptor left for another connection. Try again.", retry_after_ms=1000)
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, error, [(b"retry-after", b"1")])
