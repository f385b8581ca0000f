"""HTTP/1.1 without I/O: from bytes to the events of requests, and from responses to bytes."""

from __future__ import annotations

from enum import Enum
from http import HTTPStatus
from typing import NamedTuple

import httptools

from semtask.api.limits import HttpLimits
from semtask.api.messages import Head, Headers, Refused, Response, bad_request, too_large
from semtask.errors import InvalidRequest
from semtask.protocol import jsonrpc

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"
# What is parsed beyond the request in work is held as objects, which are many for few bytes.
_FEED_BYTES = 1024


class Phase(Enum):
    """What of a request comes next."""

    BETWEEN = "between"
    HEAD = "head"
    BODY = "body"


class End(NamedTuple):
    """The end of a request. Without `keep_alive` nothing that follows is parsed."""

    keep_alive: bool


Event = Head | bytes | End | Refused
"""The head of a request, a part of its body, its end; or why it is refused, and then nothing follows."""


class RequestParser:
    """Parses the requests of one connection, and refuses what is not HTTP/1.1 or larger than the limits."""

    def __init__(self, limits: HttpLimits) -> None:
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._events: list[Event] = []
        self._ended = False
        self.phase = Phase.BETWEEN
        self.begun = 0  # requests whose first byte was parsed
        self.head: Head | None = None  # of the present request, once it is complete
        self._target = b""
        self._headers: dict[bytes, list[bytes]] = {}
        self._head_bytes = 0  # of the target and the complete headers
        self._body_bytes = 0
        self._announced_bytes = 0  # of the body; chunks are not announced
        self._fed = 0  # in pieces that lie wholly within the head, or within the body

    @property
    def feed_bytes(self) -> int:
        """How much to feed next: what is left of a body has no other request in it."""
        if self.phase is not Phase.BODY:
            return _FEED_BYTES
        return max(_FEED_BYTES, self._announced_bytes - self._body_bytes)

    def feed(self, data: memoryview) -> list[Event]:
        """The events that these bytes complete; give at most `feed_bytes` of them."""
        if self._ended:
            return []
        begun, phase = self.begun, self.phase
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # refused with its head
        except httptools.HttpParserCallbackError:
            raise  # a fault of this class
        except httptools.HttpParserError as error:
            self._refuse(bad_request(f"This is not an HTTP request: {error}"))
        if begun == self.begun and phase is self.phase:
            self._fed += len(data)
            self._check_fed()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Nothing more is fed."""
        self._ended = True
        del self._parser  # they hold each other

    # --- httptools -------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.phase = Phase.HEAD
        self.begun += 1
        self.head = None
        self._target = b""
        self._headers = {}
        self._head_bytes = self._body_bytes = self._announced_bytes = self._fed = 0

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_bytes += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase is Phase.HEAD:  # else it is a trailer of a chunked body
            self._headers.setdefault(name.lower(), []).append(value)
            self._head_bytes += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        self.phase = Phase.BODY
        self._fed = 0
        parser = self._parser
        self.head = head = Head(parser.get_method(), self._target, self._headers, parser.get_http_version())
        self._check_head_size(self._head_bytes)
        if self._ended:
            return
        self._events.append(head)
        if parser.should_upgrade():
            self._refuse(bad_request("This server speaks HTTP/1.1 only and upgrades to nothing."))
        for length in head.values(b"content-length"):
            self._announced_bytes = int(length[:20]) if length.isdigit() else 0

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.max_body_bytes:
            self._refuse(too_large(self._limits.max_body_bytes))
        elif not self._ended:
            self._events.append(body)

    def on_message_complete(self) -> None:
        self.phase = Phase.BETWEEN
        if not self._ended:
            keep_alive = self._parser.should_keep_alive()
            self._events.append(End(keep_alive))
            self._ended = not keep_alive

    # --- limits ----------------------------------------------------------------------------------------------------

    def _check_fed(self) -> None:
        """The parser keeps the header, or the trailer, that is not complete yet: it must not grow without end."""
        if self.phase is Phase.HEAD:
            self._check_head_size(self._fed)
        elif self.phase is Phase.BODY and self._fed > 2 * self._limits.max_body_bytes:
            self._refuse(too_large(self._limits.max_body_bytes))

    def _check_head_size(self, size: int) -> None:
        if size > self._limits.max_head_bytes:
            error = InvalidRequest(f"The head of the request is larger than {self._limits.max_head_bytes} bytes.")
            self._refuse(Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, error))

    def _refuse(self, refused: Refused) -> None:
        if not self._ended:
            self._ended = True
            self._events.append(refused)


class Serializer:
    """Writes responses. `version` is the value of their header `semtask-version`."""

    def __init__(self, version: bytes) -> None:
        self._starts = {
            status: b"HTTP/1.1 %d %s\r\nsemtask-version: %s\r\n" % (status, status.phrase.encode(), version)
            for status in HTTPStatus
        }

    def whole(self, response: Response, body: bytes, *, keep_alive: bool) -> bytes:
        """A response whose body is known."""
        framing = b"content-length: %d\r\n" % len(body)
        if response.status is HTTPStatus.NO_CONTENT:
            return self._head(response.status, response.headers, keep_alive) + b"\r\n"
        framed = b"content-type: %s\r\n%s" % (response.content_type, framing)
        return self._head(response.status, response.headers, keep_alive) + framed + b"\r\n" + body

    def start(self, response: Response, *, chunked: bool, keep_alive: bool) -> bytes:
        """The head of a response whose body follows in parts: in chunks, or up to the end of the connection."""
        framing = b"transfer-encoding: chunked\r\n" if chunked else b""
        framed = b"content-type: %s\r\n%s" % (response.content_type, framing)
        return self._head(response.status, response.headers, keep_alive) + framed + b"\r\n"

    def _head(self, status: HTTPStatus, headers: Headers, keep_alive: bool) -> bytes:
        head = self._starts[status]
        for name, value in headers:
            head += name + b": " + value + b"\r\n"
        return head if keep_alive else head + b"connection: close\r\n"


def chunk(data: bytes) -> bytes:
    """A part of a chunked body; it must not be empty, as that would be its end."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def refusal(refused: Refused, head: Head | None = None) -> Response:
    """The response to a request with this head, which may not be known."""
    to_head_method = head is not None and head.method == b"HEAD"
    return Response(refused.status, b"" if to_head_method else jsonrpc.failure(None, refused.error), refused.headers)
