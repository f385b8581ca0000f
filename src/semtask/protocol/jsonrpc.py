"""JSON-RPC 2.0 without I/O: the bytes of a request body to calls, and results to the bytes of a response body.

`params` stay raw JSON until the method is known. Whatever the bytes are, reading them raises nothing but RpcError.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

from semtask.errors import InvalidRequest, ParseError, RpcError

MAX_BATCH = 1000
MAX_PAYLOAD_DEPTH = 64
# A payload lies at most five levels down: batch, request, params, list of jobs, job.
MAX_DEPTH = MAX_PAYLOAD_DEPTH + 5

RequestId: TypeAlias = str | int | float | None

# Brackets become steps up and down, as signed bytes; whether their kinds match is the parser's business.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_STRUCTURE = bytes(byte for byte in range(256) if byte not in b'"[]{}')
_STRING = re.compile(rb'"[^"]*"')
_ESCAPED_BACKSLASH = rb"\\"
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
# A number this large may be out of the range of a double: it is looked at closely.
_SHAPE = bytes.maketrans(b"123456789E", b"000000000e")
_MAYBE_INFINITE = (b"0e000", b"0e+000", b"0" * 309)


class Call(Struct, frozen=True):
    """One request. An `id` that is unset makes it a notification: executed, and never answered."""

    method: str
    params: msgspec.Raw
    id: RequestId | UnsetType = UNSET


class BadCall(Struct, frozen=True):
    """A member of a batch that is no request; `id` is None if it could not be read."""

    error: RpcError
    id: RequestId = None


class Message(Struct, frozen=True):
    """The content of one request body."""

    calls: Sequence[Call | BadCall]
    is_batch: bool


class _Envelope(Struct, forbid_unknown_fields=True):
    jsonrpc: Literal["2.0"]
    method: str
    id: RequestId | UnsetType = UNSET
    params: msgspec.Raw = msgspec.Raw(b"{}")


class _OnlyId(Struct):
    id: RequestId = None


_envelope = msgspec.json.Decoder(_Envelope)
_only_id = msgspec.json.Decoder(_OnlyId)
_raw = msgspec.json.Decoder(msgspec.Raw)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_anything = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


def read(body: bytes) -> Message:
    """Read a request body: one request, or a batch of at most 1,000.

    Raises ParseError for what is no JSON (also NaN, lone surrogates, invalid UTF-8, numbers out of range, too deep
    nesting) and InvalidRequest for a body that is no request and no batch.
    """
    _require_utf8(body)
    if deeper_than(body, MAX_DEPTH):
        raise ParseError(f"The request body is nested too deep: a payload may have {MAX_PAYLOAD_DEPTH} levels.")
    _require_finite(body)
    if body.lstrip(b" \t\r\n")[:1] == b"[":
        return Message(_read_batch(body), is_batch=True)
    return Message([_read_call(body)], is_batch=False)


def deeper_than(data: bytes | msgspec.Raw, limit: int) -> bool:
    """Whether the brackets of a JSON text nest deeper than `limit`; those inside strings do not count.

    Never recursive, and linear: 11 MB of nothing but brackets take half a second, of anything else a tenth of it.
    """
    text = bytes(data)
    if text.count(b"[") + text.count(b"{") <= limit:
        return False
    if b"\\" in text:
        text = text.replace(rb"\\", b"").replace(rb"\"", b"")
    structure = text.translate(_STEPS, _NOT_STRUCTURE).replace(b'""', b"")
    steps = memoryview(_STRING.sub(b"", structure)).cast("b")
    return max(accumulate(steps), default=0) > limit


def success(request_id: RequestId, result: Any) -> bytes:
    """The response with a result: a message struct, or anything else that is JSON."""
    return _encode({"jsonrpc": "2.0", "result": result, "id": request_id})


def failure(request_id: RequestId, error: RpcError) -> bytes:
    """The response with an error."""
    return _encode({"jsonrpc": "2.0", "error": error.to_wire(), "id": request_id})


def batch(responses: Sequence[bytes]) -> bytes:
    """The response to a batch: those of its members that were no notifications, in order."""
    return b"[" + b",".join(responses) + b"]"


def _read_batch(body: bytes) -> list[Call | BadCall]:
    try:
        members = _raw_list.decode(body)
    except msgspec.DecodeError as error:
        raise _parse_error(error, body) from None
    if not members:
        raise InvalidRequest("A batch holds at least one request.")
    if len(members) > MAX_BATCH:
        raise InvalidRequest(f"A batch holds at most {MAX_BATCH} requests, and this one has {len(members)}.")
    return [_read_call(member) for member in members]


def _read_call(text: bytes | msgspec.Raw) -> Call | BadCall:
    try:
        envelope = _envelope.decode(text)
    except msgspec.ValidationError as error:
        _require_json(text)
        return BadCall(InvalidRequest(f"This is not a JSON-RPC 2.0 request: {error}"), _read_id(text))
    except msgspec.DecodeError as error:
        raise _parse_error(error, text) from None
    return Call(envelope.method, envelope.params, envelope.id)


def _read_id(text: bytes | msgspec.Raw) -> RequestId:
    try:
        return _only_id.decode(text).id
    except msgspec.ValidationError:
        return None


def _require_json(text: bytes | msgspec.Raw) -> None:
    try:
        _raw.decode(text)
    except msgspec.DecodeError as error:
        raise _parse_error(error, text) from None


def _require_utf8(body: bytes) -> None:
    try:
        body.isascii() or str(body, "utf-8")
    except UnicodeDecodeError as error:
        raise ParseError(f"The request body is not UTF-8: {error.reason} at byte {error.start}.") from None


def _require_finite(body: bytes) -> None:
    shape = body.translate(_SHAPE)
    if not any(pattern in shape for pattern in _MAYBE_INFINITE):
        return
    try:
        _anything.decode(body)
    except msgspec.DecodeError as error:
        raise _parse_error(error, body) from None


def _parse_error(error: msgspec.DecodeError, text: bytes | msgspec.Raw) -> ParseError:
    """msgspec takes half of a surrogate pair at the end of a string for truncated data."""
    half = _LONE_SURROGATE.search(bytes(text).replace(_ESCAPED_BACKSLASH, b"  "))
    if half is not None and any(word in str(error) for word in ("truncated", "surrogate", "hex escape")):
        return ParseError(f"The request body is not valid JSON: {half[0].decode()} is half of a surrogate pair.")
    return ParseError(f"The request body is not valid JSON: {error}")
