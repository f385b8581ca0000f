from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from semtask.errors import InvalidRequest, NotFound, ParseError
from semtask.protocol import jsonrpc
from semtask.protocol.jsonrpc import BadCall, Call


def request(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "method": "m", **members}).encode()


def only(body: bytes) -> Call | BadCall:
    message = jsonrpc.read(body)
    assert not message.is_batch
    (call,) = message.calls
    return call


@pytest.mark.parametrize("request_id", ["a", "", 0, -1, 2**63, 2**64, 10**300, None])
def test_every_kind_of_id_is_kept(request_id: Any) -> None:
    call = only(request(id=request_id))
    assert isinstance(call, Call)
    assert call.id == request_id
    assert json.loads(jsonrpc.success(request_id, 1))["id"] == request_id


def test_without_an_id_it_is_a_notification() -> None:
    call = only(request())
    assert isinstance(call, Call)
    assert call.id is msgspec.UNSET


def test_params_stay_raw() -> None:
    call = only(b' {"jsonrpc":"2.0","method":"m","params": {"a" : 1.0} , "id":1} ')
    assert isinstance(call, Call)
    assert bytes(call.params) == b'{"a" : 1.0}'


NO_JSON = {
    "empty": b"",
    "blank": b" \n",
    "truncated": b'{"jsonrpc":"2.0"',
    "bad before it is cut": b'{"jsonrpc":"1.0", oops',
    "two values": b"{} {}",
    "trailing comma": request()[:-1] + b",}",
    "comment": b"/* */" + request(),
    "byte order mark": b"\xef\xbb\xbf" + request(),
    "UTF-16": request().decode().encode("utf-16"),
    "NaN": b'{"jsonrpc":"2.0","method":"m","params":{"a":NaN}}',
    "Infinity": b'{"jsonrpc":"2.0","method":"m","params":{"a":[Infinity]}}',
    "-Infinity": b'{"jsonrpc":"2.0","method":"m","params":{"a":-Infinity}}',
    "1e999": b'{"jsonrpc":"2.0","method":"m","params":{"a":1e999}}',
    "1E+400": b'{"jsonrpc":"2.0","method":"m","params":{"a":-1E+400}}',
    "310 digits": b'{"jsonrpc":"2.0","method":"m","params":{"a":%s.0}}' % (b"9" * 310),
    "leading zero": b'{"jsonrpc":"2.0","method":"m","params":{"a":01}}',
    "lone high surrogate": b'{"jsonrpc":"2.0","method":"m","params":{"a":"\\ud800"}}',
    "lone low surrogate": b'{"jsonrpc":"2.0","method":"m","params":{"a":"\\udc00"}}',
    "surrogates in the wrong order": b'{"jsonrpc":"2.0","method":"m","params":{"\\udc00\\ud800":1}}',
    "surrogate in UTF-8": b'{"jsonrpc":"2.0","method":"m","params":{"a":"\xed\xa0\x80"}}',
    "invalid UTF-8": b'{"jsonrpc":"2.0","method":"m","params":{"a":"\xff"}}',
    "overlong UTF-8": b'{"jsonrpc":"2.0","method":"m","params":{"a":"\xc0\x80"}}',
    "control character": b'{"jsonrpc":"2.0","method":"m","params":{"a":"\x01"}}',
    "bad escape": b'{"jsonrpc":"2.0","method":"m","params":{"a":"\\x41"}}',
    "NUL": b"\0",
    "100k arrays": b"[" * 100_000,
    "100k objects": b'{"a":' * 100_000,
    "100k in params": b'{"jsonrpc":"2.0","method":"m","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100k behind a string": b'{"jsonrpc":"2.0","method":"m","params":["\\\\",' + b"[" * 100_000,
    "100k behind a quote in a string": b'["\\"' + b'",' + b"[" * 100_000,
}


@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
def test_what_is_no_json_is_a_parse_error(body: bytes) -> None:
    with pytest.raises(ParseError) as caught:
        jsonrpc.read(body)
    assert len(caught.value.message) < 300
    assert json.loads(jsonrpc.failure(None, caught.value))["error"]["code"] == -32700


@pytest.mark.parametrize("sent", ["1.5", "1e3", "-0.25", "1E-7", "12345678901234567890123", "0", "-1"])
def test_any_number_is_an_id_and_comes_back_equal(sent: str) -> None:
    call = only(b'{"jsonrpc":"2.0","method":"m","id":%s}' % sent.encode())
    assert isinstance(call, Call)
    assert call.id is not msgspec.UNSET
    assert json.loads(jsonrpc.success(call.id, {}))["id"] == json.loads(sent)


@pytest.mark.parametrize("half", [r"\ud800", r"\uDFFF", r"x\ud83d", r"\udc00\ud800", r"\ud800\ud800", r"\\\ud800"])
@pytest.mark.parametrize("place", ['{"a":"%s"}', '{"a":"%s","b":1}', '{"%s":1}'])
def test_half_of_a_surrogate_pair_is_named(half: str, place: str) -> None:
    body = '{"jsonrpc":"2.0","method":"m","params":%s}' % (place % half)
    with pytest.raises(ParseError, match=r"\\u[dD][89a-fA-F].. is half of a surrogate pair"):
        jsonrpc.read(body.encode())


def test_text_that_looks_like_half_of_a_pair_is_text() -> None:
    body = rb'{"jsonrpc":"2.0","method":"m","params":{"a":"\\ud800 \ud83d\ude00"}}'
    assert isinstance(only(body), Call)
    with pytest.raises(ParseError) as caught:
        jsonrpc.read(body[:-1])
    assert "surrogate" not in caught.value.message


NO_REQUEST: dict[str, tuple[bytes, Any]] = {
    "number": (b"1", None),
    "string": (b'"m"', None),
    "null": (b"null", None),
    "empty object": (b"{}", None),
    "no version": (b'{"method":"m","id":7}', 7),
    "version 1": (b'{"jsonrpc":"1.0","method":"m","id":7}', 7),
    "version as a number": (b'{"jsonrpc":2.0,"method":"m","id":"x"}', "x"),
    "no method": (b'{"jsonrpc":"2.0","id":7}', 7),
    "method null": (b'{"jsonrpc":"2.0","method":null,"id":7}', 7),
    "method as a number": (b'{"jsonrpc":"2.0","method":1,"id":7}', 7),
    "boolean id": (b'{"jsonrpc":"2.0","method":"m","id":true}', None),
    "id as a list": (b'{"jsonrpc":"2.0","method":"m","id":[1]}', None),
    "a member that nobody knows": (b'{"jsonrpc":"2.0","method":"m","id":7,"prams":{}}', 7),
}


@pytest.mark.parametrize(("body", "request_id"), NO_REQUEST.values(), ids=NO_REQUEST)
def test_json_that_is_no_request(body: bytes, request_id: Any) -> None:
    call = only(body)
    assert isinstance(call, BadCall)
    assert (call.error.code, call.id) == (-32600, request_id)


def test_harmless_look_alikes_are_accepted() -> None:
    for text in [
        "1e999",
        "[" * 200,
        '\\"[{' * 50,
        "9" * 400,
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    ]:
        assert isinstance(only(request(params={"a": text})), Call)
    for number in (b"1e308", b"1e-999", b"0e000", b"12345678901234567890123", b"9" * 308):
        assert isinstance(only(b'{"jsonrpc":"2.0","method":"m","params":{"a":%s}}' % number), Call)


def test_a_batch_keeps_order_and_tells_good_from_bad() -> None:
    message = jsonrpc.read(b"\n [%s, 1, %s, {}]" % (request(id=1), request(id=2)))
    assert message.is_batch
    assert [type(call) for call in message.calls] == [Call, BadCall, Call, BadCall]
    assert [call.id for call in message.calls] == [1, None, 2, None]


@pytest.mark.parametrize(
    "body", [b"[]", b" [ ] ", b"[" + b",".join([request()] * 1001) + b"]", b"[" + b"1," * 5000 + b"1]"]
)
def test_a_batch_has_one_to_a_thousand_members(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        jsonrpc.read(body)


def test_a_batch_of_a_thousand() -> None:
    assert len(jsonrpc.read(b"[" + b",".join([request()] * 1000) + b"]").calls) == 1000


def test_responses() -> None:
    good = json.loads(jsonrpc.success("x", {"a": 1}))
    assert good == {"jsonrpc": "2.0", "result": {"a": 1}, "id": "x"}
    bad = json.loads(jsonrpc.failure(None, NotFound("no such job", details={"job_id": "j"}, retry_after_ms=5)))
    assert bad["id"] is None
    assert bad["error"] == {
        "code": 4001,
        "message": "no such job",
        "data": {"kind": "NOT_FOUND", "details": {"job_id": "j"}, "trace_id": None, "retry_after_ms": 5},
    }
    assert json.loads(jsonrpc.batch([jsonrpc.success(1, 1), jsonrpc.success(2, 2)]))[1]["id"] == 2


# --- depth ---------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a"\\[]{}é', max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('b"\\[{', max_size=4), inner, max_size=4),
    max_leaves=40,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(json_values, st.booleans())
def test_the_depth_is_that_of_the_value(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    real = depth(value)
    assert not jsonrpc.deeper_than(text, real)
    assert real == 0 or jsonrpc.deeper_than(text, real - 1)


def test_the_limit_is_exact() -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        assert not jsonrpc.deeper_than(opening * 64 + b"1" + closing * 64, 64)
        assert jsonrpc.deeper_than(opening * 65 + b"1" + closing * 65, 64)


# --- any bytes -----------------------------------------------------------------------------------------------------

fragments = st.lists(
    st.sampled_from(
        [
            *(
                b"{",
                b"}",
                b"[",
                b"]",
                b'"',
                b"\\",
                b",",
                b":",
                b" ",
                b"-",
                b"1e999",
                b"NaN",
                b"null",
                b"\xff",
                b"\\ud800",
            ),
            *(b'"jsonrpc":"2.0"', b'"id":1', b'"method":"m"', b'"params":{}', request(), request(id=1)),
        ]
    ),
    max_size=60,
).map(b"".join)


@given(st.binary(max_size=200) | fragments | json_values.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 5000)
@example(b'{"jsonrpc":"2.0","method":"m","id":' + b"9" * 400 + b"}")
def test_no_bytes_make_the_reader_raise_anything_but_its_own_errors(body: bytes) -> None:
    try:
        message = jsonrpc.read(body)
    except (ParseError, InvalidRequest) as error:
        json.loads(jsonrpc.failure(None, error))
        return
    json.loads(body)
    for call in message.calls:
        if isinstance(call, BadCall):
            json.loads(jsonrpc.failure(call.id, call.error))
        else:
            json.loads(bytes(call.params))
            json.loads(jsonrpc.success(None if call.id is msgspec.UNSET else call.id, 1))
