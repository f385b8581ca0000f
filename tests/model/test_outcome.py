from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semtask.model import outcome as outcomes
from semtask.model.outcome import FailureClass
from semtask.model.state import EndCause


@given(st.integers(0, 255))
def test_an_exit_code(code: int) -> None:
    outcome = outcomes.of_command(code << 8, log_bytes=7)
    assert (outcome.exit_code, outcome.signal, outcome.log_bytes) == (code, None, 7)
    assert (outcome.end_cause, outcome.failure) == (
        (EndCause.EXIT_CODE, FailureClass.HANDLER) if code else (EndCause.SUCCESS, None)
    )


@given(st.integers(1, 64), st.booleans())
def test_a_signal_with_or_without_a_core(signal: int, core: bool) -> None:
    outcome = outcomes.of_command(signal | (0x80 if core else 0))
    assert (outcome.exit_code, outcome.signal) == (None, signal)
    assert (outcome.end_cause, outcome.failure) == (EndCause.SIGNAL, FailureClass.HANDLER)


@pytest.mark.parametrize(
    ("script", "code", "signal"), [("exit 0", 0, None), ("exit 7", 7, None), ("kill -9 $$", None, 9)]
)
def test_the_status_of_a_real_process(script: str, code: int | None, signal: int | None) -> None:
    process = subprocess.Popen(["sh", "-c", script])
    _, status = os.waitpid(process.pid, 0)
    process.returncode = 0  # reaped above
    outcome = outcomes.of_command(status)
    assert (outcome.exit_code, outcome.signal) == (code, signal)


def test_what_counts_as_an_execution() -> None:
    assert [
        outcome.executed
        for outcome in (
            outcomes.success(),
            outcomes.of_command(1 << 8),
            outcomes.interrupted("x"),
            outcomes.lost("x"),
            outcomes.crash("x", signal=11),
            outcomes.exception("x"),
            outcomes.snoozed(1),
            outcomes.spawn_failed("x"),
            outcomes.never_ran("x"),
            outcomes.no_room("x"),
        )
    ] == [True] * 8 + [False, False]
