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
    delay_ms=st.none() | st.integers(0, 10_000_000),
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
    assert decision.attempts == int(outcome.executed) or decision.event is Event.GIVE_BACK or decision.state in FINAL
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


@given(JOBS, st.sampled_from([outcomes.never_ran("x"), outcomes.no_room("x"), outcomes.displaced("x")]), JITTER)
def test_given_back_moves_no_counter(job: Job, outcome: Outcome, jitter: float) -> None:
    unstopped = msgspec.structs.replace(
        job, stop_reason=None, superseded_by=None, on_interrupt=OnInterrupt.REQUEUE, interruptions=0
    )
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


# --- what tasks can ask for, and what their neighbours do to them ---


@given(JOBS, JITTER)
def test_what_may_be_started_once_ends_when_its_worker_is_ended_for_another_job(job: Job, jitter: float) -> None:
    once = msgspec.structs.replace(job, stop_reason=None, on_interrupt=OnInterrupt.FAIL)
    decision = decide(once, outcomes.displaced("another job crashed"), jitter=jitter)
    assert (decision.state, decision.end_cause) == (State.FAILED, EndCause.INTERRUPTED)
    assert (decision.attempts, decision.failures, decision.crashes) == (1, 0, 0)
    assert decision.error == "another job crashed"


@given(JOBS, JITTER)
def test_a_timeout_that_was_committed_is_not_forgotten_when_the_worker_is_ended(job: Job, jitter: float) -> None:
    late = msgspec.structs.replace(job, stop_reason=StopReason.TIMEOUT, superseded_by=None)
    decision = decide(late, outcomes.displaced("another job ran too long as well"), jitter=jitter)
    assert (decision.end_cause, decision.failures) == (EndCause.TIMEOUT, 1)


@given(JOBS, st.integers(0, 10_000_000), JITTER)
def test_a_snooze_costs_an_attempt_and_no_budget(job: Job, delay_ms: int, jitter: float) -> None:
    unstopped = msgspec.structs.replace(job, stop_reason=None, superseded_by=None)
    decision = decide(unstopped, outcomes.snoozed(delay_ms), jitter=jitter)
    assert (decision.state, decision.delay_ms, decision.error) == (State.SCHEDULED, delay_ms, None)
    assert (decision.attempts, decision.failures, decision.crashes, decision.interruptions) == (1, 0, 0, 0)


@given(JOBS, JITTER)
def test_a_superseded_job_does_not_snooze(job: Job, jitter: float) -> None:
    replaced = msgspec.structs.replace(job, stop_reason=None, superseded_by="01890000-0000-7000-8000-000000000001")
    decision = decide(replaced, outcomes.snoozed(1000), jitter=jitter)
    assert (decision.state, decision.end_cause, decision.delay_ms) == (State.SUPERSEDED, EndCause.SUPERSEDED, 0)


@given(JOBS, JITTER)
def test_a_task_may_cancel_itself(job: Job, jitter: float) -> None:
    decision = decide(msgspec.structs.replace(job, stop_reason=None), outcomes.cancelled("no work"), jitter=jitter)
    assert (decision.state, decision.end_cause, decision.error) == (State.CANCELLED, EndCause.CANCELLED, "no work")
    assert (decision.attempts, decision.failures) == (1, 0)


def test_a_task_may_say_when_it_wants_to_be_retried_within_its_budget() -> None:
    wish = outcomes.exception("busy", delay_ms=70)
    decision = decide(running(max_attempts=2), wish, jitter=1.0)
    assert (decision.event, decision.delay_ms, decision.failures) == (Event.RETRY, 70, 1)
    decision = decide(running(max_attempts=2, failures=1), wish, jitter=1.0)
    assert (decision.state, decision.end_cause) == (State.FAILED, EndCause.EXCEPTION)


@pytest.mark.parametrize("outcome", [outcomes.snoozed(9), outcomes.cancelled("x"), outcomes.exception("x", delay_ms=9)])
@pytest.mark.parametrize("reason", [StopReason.TIMEOUT, StopReason.DEADLINE, StopReason.CANCEL, StopReason.SUPERSEDED])
def test_what_a_task_asks_for_comes_after_a_committed_reason(outcome: Outcome, reason: StopReason) -> None:
    ends = {
        StopReason.TIMEOUT: (State.FAILED, EndCause.TIMEOUT),
        StopReason.DEADLINE: (State.FAILED, EndCause.DEADLINE),
        StopReason.CANCEL: (State.CANCELLED, EndCause.CANCELLED),
        StopReason.SUPERSEDED: (State.SUPERSEDED, EndCause.SUPERSEDED),
    }
    decision = decide(running(stop_reason=reason), outcome, jitter=1.0)
    assert (decision.state, decision.end_cause) == ends[reason]


def test_a_task_that_is_stopped_in_a_shutdown_runs_again_whatever_it_raised() -> None:
    job = running(stop_reason=StopReason.SHUTDOWN, on_interrupt=OnInterrupt.REQUEUE)
    decision = decide(job, outcomes.exception("Interrupted", stopped=True), jitter=1.0)
    assert (decision.event, decision.interruptions, decision.failures) == (Event.REQUEUE, 1, 0)


def test_a_permanent_exception_is_not_retried() -> None:
    decision = decide(running(max_attempts=9), outcomes.exception("no such user", permanent=True), jitter=1.0)
    assert (decision.state, decision.end_cause, decision.failures) == (State.FAILED, EndCause.EXCEPTION, 1)
