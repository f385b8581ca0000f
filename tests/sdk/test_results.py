"""What a finished job gives to whoever waits for it: its result, or an exception with all that is known."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest

from semtask import JobFailed, JobTimeout, errors
from semtask.protocol.jobs import JobView
from semtask.sdk.failures import failure_of
from semtask.sdk.results import any_of, result_of

JOB: dict[str, Any] = {
    "job_id": "01a207a1-0000-7000-8000-000000000000",
    "queue": "q",
    "job_type": "mod:work",
    "execution_mode": "IN_PROCESS",
    "state": "DONE",
    "priority": 0,
    "created_at": 1,
    "on_interrupt": "requeue",
    "end_cause": "success",
}
EXCEPTION = {
    "type": "ValueError",
    "message": "bad",
    "traceback": 'Traceback (most recent call last):\n  File "a.py", line 3\nValueError: bad\n',
    "cause": {"type": "KeyError", "message": "'x'"},
}


def view(**fields: Any) -> JobView:
    return msgspec.convert({**JOB, **fields}, JobView)


def test_a_result_is_decoded_by_the_annotation() -> None:
    assert result_of(view(result=["a"]), msgspec.json.Decoder(set[str]).decode) == {"a"}
    assert any_of(view(result={"a": 1.0})) == {"a": 1.0}
    assert any_of(view()) is None


def test_a_large_result_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("[1, 2]")
    artifact = {"name": "result.json", "size": 6, "sha256": "", "path": str(path), "is_result": True}
    job = view(artifacts=[{**artifact, "name": "other", "path": "/nowhere", "is_result": False}, artifact])
    assert result_of(job, msgspec.json.Decoder(tuple[int, int]).decode) == (1, 2)
    path.unlink()
    with pytest.raises(errors.NotFound, match=r"the file of the result of job .* is gone"):
        any_of(job)


def test_a_failure_tells_what_was_raised_and_where() -> None:
    failure = failure_of(view(state="FAILED", end_cause="exception", error="ValueError: bad", exception=EXCEPTION))
    assert isinstance(failure, JobFailed)
    assert str(failure).startswith(f"job {JOB['job_id']} (mod:work) failed: ValueError: bad\n\nIn the worker:\nTrace")
    assert 'File "a.py", line 3' in str(failure)
    assert failure.traceback == EXCEPTION["traceback"]
    assert failure.cause is not None
    assert failure.cause.type == "KeyError"
    assert failure.end_cause == "exception"


def test_a_failure_without_an_exception() -> None:
    failure = failure_of(view(state="FAILED", end_cause="worker_crash", error="the worker was ended by signal 11"))
    assert isinstance(failure, JobFailed)
    assert str(failure).endswith("failed: the worker was ended by signal 11")
    assert (failure.exception, failure.traceback, failure.cause) == (None, "", None)


def test_a_timeout_shows_where_the_task_was() -> None:
    failure = failure_of(view(state="FAILED", end_cause="timeout", error="ran longer", exception=EXCEPTION))
    assert isinstance(failure, JobTimeout)
    assert 'File "a.py", line 3' in str(failure)


def test_what_a_failure_says_cannot_steer_a_terminal() -> None:
    evil = {
        "type": "ValueError",
        "message": "a\x1b[2J\r\u202e",
        "traceback": "Traceback:\n\tValueError: a\x1b[2J\x9b\n",
    }
    for fields in (
        {"state": "FAILED", "end_cause": "exception", "exception": evil},
        {"state": "FAILED", "end_cause": "timeout", "error": "late \x1b[2J", "exception": evil},
        {"state": "CANCELLED", "end_cause": "cancelled", "error": "no \x1b[2J"},
    ):
        failure = failure_of(view(**fields))
        assert failure is not None
        assert r"\x1b[2J" in str(failure)
        assert not set(str(failure)) & set("\x1b\r\x9b\u202e")


def test_a_failure_survives_pickle() -> None:
    failure = failure_of(view(state="FAILED", end_cause="exception", exception=EXCEPTION))
    again = pickle.loads(pickle.dumps(failure))
    assert (type(again), str(again), again.job_id) == (JobFailed, str(failure), JOB["job_id"])
