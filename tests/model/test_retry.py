from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semtask.model import outcome as outcomes
from semtask.model.job import ExecutionMode, Job, OnInterrupt
from semtask.model.outcome import FailureClass, Outcome
from semtask.model.retry import MAX_CRASHES, MAX_INTERRUPTIONS, decide, retry_delay_ms
from semtask.model.state import FINAL, TRANSITIONS, WAITING, EndCause, Event, State, StopReason

RUNNING = Job(
    seq=1,
    job_id="01890000-0000-7000-8000-000000000000",
    queue="default",
    job_type="t",
    execution_mode=ExecutionMode.SUBPROCESS,
    state=State.RUNNING,
    payload="{}",
    created_at=0,
    on_interrupt=OnInterrupt.FAIL,
    content_hash=b"",
    claim_no=1,
    started_at=0,
)


def running(**fields: object) -> Job:
    return msgspec.structs.replace(RUNNING, **fields)


FAILED = outcomes.of_command(3 << 8)
JITTER = st.floats(0.9, 1.1)
OUTCOMES = st.builds(
    Outcome,
    end_cause=st.sampled_from(EndCause),
    failure=st.none() | st.sampled_from(FailureClass),
    exit_code=st.none() | st.integers(0, 255),
    error=st.none() | st.text(max_size=9),
    stopped=st.booleans(),
)
JOBS = st.builds(
    running,
    max_attempts=st.integers(0, 5),
    failures=st.integers(0, 6),
    crashes=st.integers(0, MAX_CRASHES),
    interruptions=st.integers(0, MAX_INTERRUPTIONS + 1),
    on_interrupt=st.sampled_from(OnInterrupt),
    retry_on_crash=st.booleans(),
    stop_reason=st.none() | st.sampled_from(StopReason),
    superseded_by=st.none() | st.just("01890000-0000-7000-8000-000000000001"),
    retry_base_delay_ms=st.integers(0, 10_000_000),
    retry_max_delay_ms=st.integers(0, 3_600_000),
    backoff_factor=st.floats(0.1, 100),
)


# --- the delay ---


@given(JOBS, st.integers(0, 2000), JITTER)
def test_a_delay_is_within_its_jitter_and_under_its_cap(job: Job, nth: int, jitter: float) -> None:
    delay = retry_delay_ms(job, nth, jitter)
    assert isinstance(delay, int)
    assert 0 <= delay <= job.retry_max_delay_ms
    try:
        exact = job.retry_base_delay_ms * job.backoff_factor**nth
    except OverflowError:
        exact = math.inf
    assert delay >= min(exact * 0.9, job.retry_max_delay_ms) - 1
    assert delay <= min(exact * 1.1, job.retry_max_delay_ms) + 1


@given(st.integers(0, 40), JITTER)
def test_delays_grow_by_the_factor(nth: int, jitter: float) -> None:
    job = running(retry_max_delay_ms=1 << 62)
    assert retry_delay_ms(job, nth, jitter) == int(1000 * 2.0**nth * jitter)


@pytest.mark.parametrize("jitter", [0.0, 0.89, 1.11, -1.0, math.nan, math.inf])
def test_a_jitter_out_of_its_range_is_a_bug_of_the_caller(jitter: float) -> None:
    with pytest.raises(ValueError, match="jitter"):
        retry_delay_ms(running(), 0, jitter)


def test_the_first_retry_waits_the_base() -> None:
    decision = decide(running(max_attempts=2), FAILED, jitter=1.0)
    assert (decision.state, decision.delay_ms) == (State.SCHEDULED, 1000)


# --- what holds for every end ---


@given(JOBS, OUTCOMES, JITTER)
def test_every_end_is_decided(job: Job, outcome: Outcome, jitter: float) -> None:
    decision = decide(job, outcome, jitter=jitter)
    assert (State.RUNNING, decision.event) in TRANSITIONS
    assert decision.attempts == int(outcome.executed) or decision.state in FINAL
    assert decision.failures + decision.crashes + decision.interruptions <= 1
    assert {decision.attempts, decision.failures, decision.crashes, decision.interruptions} <= {0, 1}
    assert decision.delay_ms == 0 or decision.state is State.SCHEDULED
    if decision.state is State.DONE:
        assert outcome.failure is None


@given(JOBS, OUTCOMES, JITTER)
def test_a_committed_reason_decides_whatever_the_outcome(job: Job, outcome: Outcome, jitter: float) -> None:
    decision = decide(job, outcome, jitter=jitter)
    match job.stop_reason:
        case StopReason.CANCEL:
            assert (decision.state, decision.end_cause) == (State.CANCELLED, EndCause.CANCELLED)
        case StopReason.SUPERSEDED:
            assert (decision.state, decision.end_cause) == (State.SUPERSEDED, EndCause.SUPERSEDED)
        case StopReason.DEADLINE:
            assert (decision.state, decision.end_cause) == (State.FAILED, EndCause.DEADLINE)
        case StopReason.LOG_LIMIT:
            assert (decision.state, decision.end_cause) == (State.FAILED, EndCause.LOG_LIMIT)
        case StopReason.TIMEOUT:
            assert decision.state is not State.DONE
        case StopReason.SHUTDOWN:
            assert decision.state is not State.DONE or not outcome.stopped


@given(JOBS, OUTCOMES, JITTER)
def test_a_superseded_job_never_waits_again_but_may_succeed(job: Job, outcome: Outcome, jitter: float) -> None:
    alone = decide(msgspec.structs.replace(job, superseded_by=None), outcome, jitter=jitter)
    decision = decide(job, outcome, jitter=jitter)
    if job.superseded_by is None or alone.state not in WAITING:
        assert decision == alone
    else:
        assert (decision.state, decision.end_cause) == (State.SUPERSEDED, EndCause.SUPERSEDED)


@given(JOBS, st.sampled_from([outcomes.never_ran("x"), outcomes.no_room("x")]), JITTER)
def test_given_back_moves_no_counter(job: Job, outcome: Outcome, jitter: float) -> None:
    unstopped = msgspec.structs.replace(job, stop_reason=None, superseded_by=None)
    decision = decide(unstopped, outcome, jitter=jitter)
    assert decision.event is Event.GIVE_BACK
    assert (decision.attempts, decision.failures, decision.crashes, decision.interruptions) == (0, 0, 0, 0)


# --- the budgets ---


@pytest.mark.parametrize(("max_attempts", "executions"), [(0, 1), (1, 1), (2, 2), (5, 5)])
def test_max_attempts_is_the_number_of_executions(max_attempts: int, executions: int) -> None:
    job, ran = running(max_attempts=max_attempts), 0
    while True:
        ran += 1
        decision = decide(job, FAILED, jitter=1.0)
        job = msgspec.structs.replace(job, failures=job.failures + decision.failures)
        if decision.state is State.FAILED:
            break
    assert (ran, decision.end_cause) == (executions, EndCause.EXIT_CODE)


def test_interruptions_and_crashes_leave_the_failures_alone() -> None:
    job = running(max_attempts=2, interruptions=19, crashes=2, on_interrupt=OnInterrupt.REQUEUE)
    assert decide(job, FAILED, jitter=1.0).event is Event.RETRY


def test_a_requeued_job_is_interrupted_at_most_twenty_times() -> None:
    job, outcome = running(on_interrupt=OnInterrupt.REQUEUE), outcomes.interrupted("the daemon died")
    for _ in range(MAX_INTERRUPTIONS):
        decision = decide(job, outcome, jitter=1.0)
        assert (decision.event, decision.delay_ms, decision.interruptions) == (Event.REQUEUE, 0, 1)
        job = msgspec.structs.replace(job, interruptions=job.interruptions + 1)
    decision = decide(job, outcome, jitter=1.0)
    assert (decision.state, decision.end_cause) == (State.FAILED, EndCause.QUARANTINED)


def test_a_job_that_starts_at_most_once_fails_when_interrupted() -> None:
    decision = decide(running(), outcomes.interrupted("the daemon died"), jitter=1.0)
    assert (decision.state, decision.end_cause) == (State.FAILED, EndCause.INTERRUPTED)


@pytest.mark.parametrize("outcome", [FAILED, outcomes.of_command(15), outcomes.of_command(0)])
def test_a_shutdown_follows_the_interruption_rule(outcome: Outcome) -> None:
    stopped = msgspec.structs.replace(outcome, stopped=True)
    for on_interrupt, state in ((OnInterrupt.REQUEUE, State.QUEUED), (OnInterrupt.FAIL, State.FAILED)):
        decision = decide(running(stop_reason=StopReason.SHUTDOWN, on_interrupt=on_interrupt), stopped, jitter=1.0)
        assert decision.error == "the daemon stopped while the job ran"
        assert (decision.state, decision.end_cause) == (state, EndCause.INTERRUPTED)


@pytest.mark.parametrize("reason", [StopReason.INTERRUPTED, StopReason.SHUTDOWN])
def test_a_natural_end_wins_over_interrupted_and_shutdown(reason: StopReason) -> None:
    decision = decide(running(stop_reason=reason), outcomes.of_command(0), jitter=1.0)
    assert decision.state is State.DONE


def test_a_shim_lost_in_a_shutdown_is_an_interruption() -> None:
    decision = decide(running(stop_reason=StopReason.SHUTDOWN), outcomes.lost("the shim is gone"), jitter=1.0)
    assert decision.end_cause is EndCause.INTERRUPTED


def test_crashes_are_retried_only_on_request_and_at_most_three_times() -> None:
    outcome = outcomes.lost("the shim is gone")
    assert decide(running(max_attempts=9), outcome, jitter=1.0).end_cause is EndCause.WORKER_CRASH
    job, events = running(retry_on_crash=True), []
    for _ in range(MAX_CRASHES):
        decision = decide(job, outcome, jitter=1.0)
        events.append((decision.event, decision.delay_ms))
        job = msgspec.structs.replace(job, crashes=job.crashes + decision.crashes)
    assert events == [(Event.RETRY, 1000), (Event.RETRY, 2000), (Event.FAIL, 0)]
    assert decision.end_cause is EndCause.QUARANTINED


@pytest.mark.parametrize("max_attempts", [1, 9])
def test_permanent_failures_are_not_retried(max_attempts: int) -> None:
    decision = decide(running(max_attempts=max_attempts), outcomes.spawn_failed("no such program"), jitter=1.0)
    assert (decision.state, decision.end_cause) == (State.FAILED, EndCause.SPAWN_FAILED)


def test_a_timeout_is_retried_like_a_failure() -> None:
    job = running(stop_reason=StopReason.TIMEOUT, max_attempts=2, timeout_ms=30)
    decision = decide(job, outcomes.of_command(9), jitter=1.0)
    assert (decision.event, decision.end_cause) == (Event.RETRY, EndCause.TIMEOUT)
    decision = decide(msgspec.structs.replace(job, failures=1), outcomes.of_command(0), jitter=1.0)
    assert (decision.state, decision.end_cause) == (State.FAILED, EndCause.TIMEOUT)
    assert "timeout_ms=30" in str(decision.error)
