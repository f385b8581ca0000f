"""What the engine tells its exporters of an attempt: only what is true, and only once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from semtask.engine.attempt import Attempts
from semtask.engine.command_gate import CommandGate
from semtask.engine.command_spec import CommandDefaults
from semtask.engine.floors import SandboxFloors
from semtask.engine.job_tokens import JobTokens
from semtask.engine.live import LiveAttempts
from semtask.executors.base import CommandSpec, Executor
from semtask.host.clocks import SystemClock
from semtask.host.command_policy import PolicyFile
from semtask.model import outcome as outcomes
from semtask.model.job import ClaimFacts, ExecutionMode, Job, OnInterrupt
from semtask.model.outcome import Outcome
from semtask.model.retry import Decision, decide
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import State
from semtask.store.base import Store
from semtask.store.requests import Finish, Finished
from semtask.telemetry.events import AttemptEnded, AttemptStarted, Committed, Events

DEFAULTS = CommandDefaults(env={}, working_dir="/", umask=0o22, home="/h")
JOB = Job(
    seq=1,
    job_id="j",
    queue="q",
    job_type="command",
    execution_mode=ExecutionMode.SUBPROCESS,
    state=State.RUNNING,
    payload='{"command": "true"}',
    created_at=1,
    on_interrupt=OnInterrupt.FAIL,
    content_hash=b"",
    claim_no=1,
    claim=ClaimFacts(daemon_epoch=1, boot_id="b", attempts_id="a", nonce="n"),
)


class AnExecutor:
    """Takes 50 ms for each attempt."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    async def run(self, spec: CommandSpec, on_started: Callable[[Any], None]) -> Outcome:
        await asyncio.sleep(0.05)
        return self._outcome


class AStore:
    """Decides as a store does; or knows of a later claim already."""

    def __init__(self, *, late: bool) -> None:
        self._late = late

    async def finish(self, finish: Finish) -> Finished:
        decision: Decision | None = None
        if not self._late:
            decision = decide(JOB, finish.outcome, jitter=finish.jitter)
        return Finished(decision=decision)


async def told(outcome: Outcome, *, late: bool = False) -> list[Any]:
    events = Events()
    seen: list[Any] = []
    for kind in (AttemptStarted, AttemptEnded, Committed):
        events.attach(kind, seen.append)
    live = LiveAttempts()
    attempts = Attempts(
        cast(Store, AStore(late=late)),
        cast(Executor, AnExecutor(outcome)),
        live=live,
        gate=CommandGate(PolicyFile(Path("/nowhere/commands.toml")), DEFAULTS, hold=lambda reason: None),
        floors=SandboxFloors(SandboxLevel.NONE),
        tokens=JobTokens(),
        defaults=DEFAULTS,
        clock=SystemClock(),
        jitter=lambda: 1.0,
        events=events,
        on_timeout=lambda job: None,
        on_finishing=lambda job, end: None,
        on_end=lambda job: None,
        evidence=lambda *_: None,
    )
    attempts.start(JOB)
    assert await live.idle(5)
    return seen


@pytest.mark.parametrize("outcome", [outcomes.success(exit_code=0), outcomes.of_command(3 << 8), outcomes.lost("gone")])
def test_an_attempt_that_ran_is_told_with_its_duration(outcome: Outcome) -> None:
    started, committed, ended = asyncio.run(told(outcome))
    assert started == AttemptStarted(JOB)
    assert isinstance(committed, Committed)
    assert (ended.job, ended.decision.end_cause) == (JOB, outcome.end_cause)
    assert 0.05 <= ended.ran_s < 5


@pytest.mark.parametrize("outcome", [outcomes.no_room("no processes left"), outcomes.never_ran("stopped before")])
def test_an_attempt_that_never_ran_has_no_duration(outcome: Outcome) -> None:
    *_, ended = asyncio.run(told(outcome))
    assert isinstance(ended, AttemptEnded)
    assert ended.ran_s is None


def test_a_late_report_is_no_end() -> None:
    seen = asyncio.run(told(outcomes.success(), late=True))
    assert [type(event) for event in seen] == [AttemptStarted, Committed]
