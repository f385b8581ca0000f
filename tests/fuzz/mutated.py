"""Bytes that nearly are what a parser expects: most faults hide one step away from what is right."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

_ODD = [
    *(
        b"",
        b"\0",
        b"\n",
        b"\r\n",
        b" ",
        b"-",
        b"-1",
        b"\xff",
        b"\xc3\x28",
        b"\xed\xa0\x80",
        b'"',
        b"{",
        b"[",
        b"\\u0000",
    ),
    *(b"9" * 30, b"1e999", b"NaN", b"null", b"../", b"/", b"%00", b"=", b"[" * 300, b"\x7f\xff\xff\xff", b"\xc1"),
]


@st.composite
def mutated(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """One of the samples with up to six changes, or anything."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=300))
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        match draw(st.sampled_from(["replace", "insert", "delete", "cut", "repeat"])):
            case "replace":
                data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
            case "insert":
                data[at:at] = draw(st.sampled_from(_ODD))
            case "delete":
                del data[at : at + length]
            case "cut":
                del data[at:]
            case _:
                data[at:at] = data[at : at + length] * draw(st.integers(1, 5))
    return bytes(data)
