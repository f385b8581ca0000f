"""What follows from the end of an attempt. Pure: the row, the outcome and the jitter are passed in."""

from __future__ import annotations

import msgspec

from semtask.model.job import Job, OnInterrupt
from semtask.model.outcome import FailureClass, Outcome
from semtask.model.state import TRANSITIONS, EndCause, Event, State, StopReason

MAX_INTERRUPTIONS = 20
MAX_CRASHES = 3
JITTER_LOW = 0.9
JITTER_HIGH = 1.1


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the store must write. The counters are increments (0 or 1)."""

    event: Event
    end_cause: EndCause
    delay_ms: int = 0
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0
    error: str | None = None

    @property
    def state(self) -> State:
        return TRANSITIONS[State.RUNNING, self.event]


def retry_delay_ms(job: Job, nth: int, jitter: float) -> int:
    """The pause before the n-th retry (n = 0, 1, ...): base * factor^n * jitter, capped.

    `jitter` is drawn for each retry from [0.9, 1.1]; the cap holds for the product.
    """
    if not JITTER_LOW <= jitter <= JITTER_HIGH:
        raise ValueError(f"jitter must be within {JITTER_LOW} and {JITTER_HIGH}, not {jitter}")
    try:
        delay = job.retry_base_delay_ms * job.backoff_factor**nth * jitter
    except OverflowError:
        return job.retry_max_delay_ms
    return int(min(delay, job.retry_max_delay_ms))


def decide(job: Job, outcome: Outcome, *, jitter: float) -> Decision:
    """What becomes of a RUNNING job whose attempt has ended with `outcome`.

    A committed stop reason decides first, then the failure class.
    """
    decision = _after_stop(job, outcome) or _after_end(job, outcome, jitter)
    if job.superseded_by is not None and decision.state in {State.QUEUED, State.SCHEDULED}:
        return msgspec.structs.replace(decision, event=Event.SUPERSEDE, end_cause=EndCause.SUPERSEDED, delay_ms=0)
    return decision


def _after_stop(job: Job, outcome: Outcome) -> Decision | None:
    ran = int(outcome.executed)
    match job.stop_reason:
        case StopReason.CANCEL:
            return Decision(event=Event.CANCEL, end_cause=EndCause.CANCELLED, attempts=ran, error=outcome.error)
        case StopReason.SUPERSEDED:
            return Decision(event=Event.SUPERSEDE, end_cause=EndCause.SUPERSEDED, attempts=ran, error=outcome.error)
        case StopReason.DEADLINE:
            return Decision(
                event=Event.FAIL,
                end_cause=EndCause.DEADLINE,
                attempts=ran,
                failures=1,
                error="the deadline passed while the job ran",
            )
        case StopReason.LOG_LIMIT:
            return Decision(
                event=Event.FAIL,
                end_cause=EndCause.LOG_LIMIT,
                attempts=ran,
                failures=1,
                error="the log grew over log_max_bytes and this file system cannot cut it",
            )
        case _:
            return None


def _after_end(job: Job, outcome: Outcome, jitter: float) -> Decision:
    if outcome.failure in {FailureClass.INFRA, FailureClass.NEVER_RAN}:
        return Decision(event=Event.GIVE_BACK, end_cause=outcome.end_cause, error=outcome.error)
    if job.stop_reason is StopReason.TIMEOUT:
        return _handler_failed(job, EndCause.TIMEOUT, f"ran longer than timeout_ms={job.timeout_ms}", jitter)
    if outcome.failure is FailureClass.DISPLACED:
        return _displaced(job, outcome)
    if outcome.failure is FailureClass.INTERRUPTED or _shut_down(job, outcome):
        return _interrupted(job, outcome)
    match outcome.failure:
        case None:
            return Decision(event=Event.SUCCEED, end_cause=outcome.end_cause, attempts=1)
        case FailureClass.HANDLER:
            return _handler_failed(job, outcome.end_cause, outcome.error, jitter, outcome.delay_ms)
        case FailureClass.CRASH:
            return _crashed(job, outcome, jitter)
        case FailureClass.CANCEL:
            return Decision(event=Event.CANCEL, end_cause=EndCause.CANCELLED, attempts=1, error=outcome.error)
        case FailureClass.SNOOZE:
            delay = outcome.delay_ms or 0
            return Decision(event=Event.RETRY, end_cause=outcome.end_cause, delay_ms=delay, attempts=1)
        case _:
            return Decision(event=Event.FAIL, end_cause=outcome.end_cause, attempts=1, failures=1, error=outcome.error)


def _shut_down(job: Job, outcome: Outcome) -> bool:
    """Whether the shutdown ended it. A natural end that was quicker wins over the shutdown."""
    lost = outcome.failure is FailureClass.CRASH
    return job.stop_reason is StopReason.SHUTDOWN and (outcome.stopped or lost)


def _handler_failed(
    job: Job, cause: EndCause, error: str | None, jitter: float, wanted_delay_ms: int | None = None
) -> Decision:
    if job.max_attempts - 1 - job.failures > 0:
        delay = retry_delay_ms(job, job.failures, jitter) if wanted_delay_ms is None else wanted_delay_ms
        return Decision(event=Event.RETRY, end_cause=cause, delay_ms=delay, attempts=1, failures=1, error=error)
    return Decision(event=Event.FAIL, end_cause=cause, attempts=1, failures=1, error=error)


def _displaced(job: Job, outcome: Outcome) -> Decision:
    """It loses no attempt. What may be started only once ends, as it was started."""
    if job.on_interrupt is OnInterrupt.FAIL:
        return Decision(event=Event.FAIL, end_cause=EndCause.INTERRUPTED, attempts=1, error=outcome.error)
    return Decision(event=Event.GIVE_BACK, end_cause=outcome.end_cause, error=outcome.error)


def is_last_straw(job: Job, outcome: Outcome) -> bool:
    """Whether this crash or interruption may be the one that brings the job into quarantine."""
    if outcome.failure is FailureClass.CRASH and job.retry_on_crash:
        return job.crashes + 1 >= MAX_CRASHES
    return job.interruptions >= MAX_INTERRUPTIONS and job.on_interrupt is OnInterrupt.REQUEUE


def _crashed(job: Job, outcome: Outcome, jitter: float) -> Decision:
    if not job.retry_on_crash:
        return Decision(event=Event.FAIL, end_cause=outcome.end_cause, attempts=1, crashes=1, error=outcome.error)
    if job.crashes + 1 >= MAX_CRASHES:
        error = f"crashed {MAX_CRASHES} times, the last time: {outcome.error}"
        return Decision(event=Event.FAIL, end_cause=EndCause.QUARANTINED, attempts=1, crashes=1, error=error)
    return Decision(
        event=Event.RETRY,
        end_cause=outcome.end_cause,
        delay_ms=retry_delay_ms(job, job.crashes, jitter),
        attempts=1,
        crashes=1,
        error=outcome.error,
    )


def _interrupted(job: Job, outcome: Outcome) -> Decision:
    # How a command ends that we stop is no reason: its exit code and signal are recorded anyway.
    error = "the daemon stopped while the job ran" if outcome.stopped else outcome.error
    if job.on_interrupt is OnInterrupt.FAIL:
        return Decision(event=Event.FAIL, end_cause=EndCause.INTERRUPTED, attempts=1, interruptions=1, error=error)
    if job.interruptions >= MAX_INTERRUPTIONS:
        error = f"interrupted {job.interruptions + 1} times, the last time: {error}"
        return Decision(event=Event.FAIL, end_cause=EndCause.QUARANTINED, attempts=1, interruptions=1, error=error)
    return Decision(event=Event.REQUEUE, end_cause=EndCause.INTERRUPTED, attempts=1, interruptions=1, error=error)
