from __future__ import annotations

import re
import secrets

import pytest

from semtask.model.trace_context import new_trace_id, trace_id_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_the_trace_id_of_a_valid_traceparent() -> None:
    assert trace_id_of(f"00-{TRACE}-{SPAN}-01") == TRACE
    assert trace_id_of(f"cc-{TRACE}-{SPAN}-00") == TRACE  # a later version, read as far as it is known


@pytest.mark.parametrize(
    "broken",
    [
        None,
        "",
        TRACE,
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
    ],
)
def test_a_broken_one_has_no_trace_id(broken: str | None) -> None:
    assert trace_id_of(broken) is None


def test_a_new_trace_id_comes_from_the_given_source_and_is_never_zero() -> None:
    draws = iter([bytes(16), bytes(range(16))])
    assert new_trace_id(lambda n: next(draws)[:n]) == "000102030405060708090a0b0c0d0e0f"
    ids = {new_trace_id(secrets.token_bytes) for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"[0-9a-f]{32}", trace_id) for trace_id in ids)
