"""The life of a job: states, events, and the one table that says which event leads where.

Everything else follows from this table: the SQL guards, the CHECKs, the documents and the tests.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job is in its life. The last six are final: a finished row never changes."""

    SCHEDULED = "SCHEDULED"  # waits for a time, a backoff, an event or another job
    QUEUED = "QUEUED"  # may be claimed
    RUNNING = "RUNNING"  # claimed; also while it is being stopped
    DONE = "DONE"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SUPERSEDED = "SUPERSEDED"
    SKIPPED_TTL = "SKIPPED_TTL"  # not claimed in time
    SKIPPED_DEADLINE = "SKIPPED_DEADLINE"  # its deadline passed before it ran


LIVE = frozenset({State.SCHEDULED, State.QUEUED, State.RUNNING})
WAITING = frozenset({State.SCHEDULED, State.QUEUED})
FINAL = frozenset(State) - LIVE


class Event(StrEnum):
    """What can happen to a job."""

    BECOME_DUE = "become_due"
    CLAIM = "claim"
    SUCCEED = "succeed"
    FAIL = "fail"
    RETRY = "retry"  # another attempt after a delay
    REQUEUE = "requeue"  # interrupted: another attempt immediately
    GIVE_BACK = "give_back"  # the claim was never executed; no counter but claim_no moved
    CANCEL = "cancel"
    SUPERSEDE = "supersede"
    EXPIRE = "expire"
    MISS_DEADLINE = "miss_deadline"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.SCHEDULED, Event.BECOME_DUE): State.QUEUED,
    (State.SCHEDULED, Event.CANCEL): State.CANCELLED,
    (State.SCHEDULED, Event.SUPERSEDE): State.SUPERSEDED,
    (State.SCHEDULED, Event.MISS_DEADLINE): State.SKIPPED_DEADLINE,
    (State.QUEUED, Event.CLAIM): State.RUNNING,
    (State.QUEUED, Event.CANCEL): State.CANCELLED,
    (State.QUEUED, Event.SUPERSEDE): State.SUPERSEDED,
    (State.QUEUED, Event.EXPIRE): State.SKIPPED_TTL,
    (State.QUEUED, Event.MISS_DEADLINE): State.SKIPPED_DEADLINE,
    (State.RUNNING, Event.SUCCEED): State.DONE,
    (State.RUNNING, Event.FAIL): State.FAILED,
    (State.RUNNING, Event.RETRY): State.SCHEDULED,
    (State.RUNNING, Event.REQUEUE): State.QUEUED,
    (State.RUNNING, Event.GIVE_BACK): State.QUEUED,
    (State.RUNNING, Event.CANCEL): State.CANCELLED,
    (State.RUNNING, Event.SUPERSEDE): State.SUPERSEDED,
}


class StopReason(StrEnum):
    """Why a running job is being stopped. A committed reason may only be raised, never lowered."""

    INTERRUPTED = "interrupted"  # the daemon died under it
    SHUTDOWN = "shutdown"
    TIMEOUT = "timeout"
    LOG_LIMIT = "log_limit"
    DEADLINE = "deadline"
    SUPERSEDED = "superseded"
    CANCEL = "cancel"


RANK: dict[StopReason, int] = {
    StopReason.INTERRUPTED: 1,
    StopReason.SHUTDOWN: 1,
    StopReason.TIMEOUT: 2,
    StopReason.LOG_LIMIT: 2,
    StopReason.DEADLINE: 3,
    StopReason.SUPERSEDED: 4,
    StopReason.CANCEL: 5,
}


def may_raise(present: StopReason | None, wanted: StopReason) -> bool:
    """Whether `wanted` may replace `present`: only a higher rank does; among equals the first one stays."""
    return present is None or RANK[wanted] > RANK[present]


class EndCause(StrEnum):
    """Why a job, or an attempt of it, ended. Every end has exactly one."""

    SUCCESS = "success"
    EXCEPTION = "exception"
    EXIT_CODE = "exit_code"
    SIGNAL = "signal"
    OOM = "oom"
    TIMEOUT = "timeout"
    DEADLINE = "deadline"
    TTL = "ttl"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    WORKER_CRASH = "worker_crash"
    INTERRUPTED = "interrupted"
    QUARANTINED = "quarantined"
    SPAWN_FAILED = "spawn_failed"
    BAD_PAYLOAD = "bad_payload"
    DEPENDENCY_FAILED = "dependency_failed"
    LOG_LIMIT = "log_limit"
