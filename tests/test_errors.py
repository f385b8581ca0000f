"""Errors: one class per code, the same on both sides of the wire."""

from __future__ import annotations

import pytest

from semtask import errors
from semtask.errors import BY_CODE, ConfigError, RpcError, SemtaskError, StartupError, from_wire

CODES = {
    -32700: "PARSE_ERROR",
    -32600: "INVALID_REQUEST",
    -32601: "METHOD_NOT_FOUND",
    -32602: "INVALID_PARAMS",
    4000: "VALIDATION_ERROR",
    4001: "NOT_FOUND",
    4002: "CONFLICT",
    4003: "THROTTLED",
    4004: "UNAUTHORIZED",
    5000: "INTERNAL_ERROR",
    5001: "DB_ERROR",
    5002: "SYSTEM_ERROR",
}


def test_the_codes_and_kinds_are_those_of_the_contract() -> None:
    assert {code: cls.kind for code, cls in BY_CODE.items()} == CODES


@pytest.mark.parametrize("code", CODES)
def test_an_error_comes_out_of_the_wire_as_it_went_in(code: int) -> None:
    sent = BY_CODE[code]("what happened", details={"a": [1]}, retry_after_ms=0, trace_id="t")
    wire = sent.to_wire()
    assert wire == {
        "code": code,
        "message": "what happened",
        "data": {"kind": CODES[code], "details": {"a": [1]}, "trace_id": "t", "retry_after_ms": 0},
    }
    got = from_wire(wire)
    assert type(got) is type(sent)
    assert (got.message, got.details, got.retry_after_ms, got.trace_id) == ("what happened", {"a": [1]}, 0, "t")


def test_retry_after_is_absent_unless_it_means_something() -> None:
    assert "retry_after_ms" not in errors.Conflict().to_wire()["data"]


@pytest.mark.parametrize("code", CODES)
def test_the_docstring_is_the_default_message(code: int) -> None:
    error = BY_CODE[code]()
    assert str(error) == error.message == BY_CODE[code].__doc__
    assert error.message.endswith(".")


@pytest.mark.parametrize(
    "wire", [{}, {"code": 4999, "message": "new"}, {"code": 4001, "data": None}, {"message": None}]
)
def test_an_answer_of_another_version_is_still_an_error_that_can_be_shown(wire: dict[str, object]) -> None:
    error = from_wire(wire)
    assert isinstance(error, RpcError)
    assert error.message
    assert error.details == {}


def test_every_error_is_caught_by_the_one_base_class_and_start_errors_have_exit_codes() -> None:
    assert issubclass(RpcError, SemtaskError)
    assert issubclass(errors.DaemonUnavailable, SemtaskError)
    assert (StartupError("x").exit_code, StartupError("x", exit_code=100).exit_code) == (1, 100)
    assert isinstance(ConfigError("x"), StartupError)
    assert ConfigError("x").exit_code == 2
