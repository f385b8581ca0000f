"""The framing of HTTP without a socket: the same events whatever the pieces, and the limits."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semtask.api import framing
from semtask.api.framing import End, Event, Phase, RequestParser, Serializer
from semtask.api.limits import HttpLimits
from semtask.api.messages import Head, Refused, Response

LIMITS = HttpLimits(1000, max_head_bytes=200)
HEAD = b"POST /rpc HTTP/1.1\r\nA: 1\r\na: 2\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def events(data: bytes, step: int = 1 << 20) -> list[Event]:
    parser = RequestParser(LIMITS)
    found: list[Event] = []
    while data:
        size = min(step, parser.feed_bytes)
        found += parser.feed(memoryview(data)[:size])
        data = data[size:]
    return found


def summary(found: list[Event]) -> list[object]:
    """Parts of a body together, as their borders follow the pieces that were read."""
    told: list[object] = []
    for event in found:
        if isinstance(event, bytes) and told and isinstance(told[-1], bytes):
            told[-1] += event
        else:
            told.append(event.status if isinstance(event, Refused) else event)
    return told


@given(st.integers(1, 200))
def test_the_pieces_do_not_matter(step: int) -> None:
    data = (
        HEAD
        + b"Content-Length: 5\r\n\r\nhello"
        + CHUNKED
        + b"2\r\nab\r\n3\r\ncde\r\n0\r\nT: 1\r\n\r\n"
        + HEAD
        + b"\r\n"
    )
    posted = {b"a": [b"1", b"2"]}
    assert summary(events(data, step)) == [
        Head(b"POST", b"/rpc", {**posted, b"content-length": [b"5"]}),
        b"hello",
        End(keep_alive=True),
        Head(b"POST", b"/rpc", {**posted, b"transfer-encoding": [b"chunked"]}),
        b"abcde",
        End(keep_alive=True),
        Head(b"POST", b"/rpc", posted),
        End(keep_alive=True),
    ]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (HEAD + b"Upgrade: x\r\nConnection: upgrade\r\n\r\n", 400),
        (HEAD + b"B: " + b"y" * 200, 431),
        (HEAD + b"B: " + b"y" * 200 + b"\r\n\r\n", 431),
        (CHUNKED + b"3e9\r\n" + b"x" * 1001, 413),
        (CHUNKED + b"0\r\nT: " + b"y" * 5000, 413),
    ],
)
def test_after_a_refusal_nothing_follows(data: bytes, status: int) -> None:
    for step in (1, 64, 1 << 20):
        found = events(data + b"\r\n\r\n" + HEAD + b"\r\n", step)
        assert [event.status for event in found if isinstance(event, Refused)] == [status]
        assert isinstance(found[-1], Refused)


def test_after_the_last_request_nothing_follows() -> None:
    found = events(HEAD + b"Connection: close\r\n\r\n" + HEAD + b"\r\n")
    assert [type(event) for event in found] == [Head, End]
    assert found[1] == End(keep_alive=False)


def test_what_is_left_of_a_body_may_be_fed_whole() -> None:
    parser = RequestParser(HttpLimits(1_000_000))
    parser.feed(memoryview(HEAD + b"Content-Length: 900000\r\n\r\n12345"))
    assert (parser.phase, parser.feed_bytes) == (Phase.BODY, 899_995)


def test_responses_as_bytes() -> None:
    serializer = Serializer(b"9")
    response = Response(HTTPStatus.OK, b"", [(b"x", b"y")])
    assert serializer.whole(response, b"{}", keep_alive=True) == (
        b"HTTP/1.1 200 OK\r\nsemtask-version: 9\r\nx: y\r\n"
        b"content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    )
    assert serializer.whole(Response(HTTPStatus.NO_CONTENT), b"", keep_alive=False) == (
        b"HTTP/1.1 204 No Content\r\nsemtask-version: 9\r\nconnection: close\r\n\r\n"
    )
    assert framing.chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"
