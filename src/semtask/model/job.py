"""A job, as a value. Times are epoch milliseconds (wall clock, UTC); durations are milliseconds."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from semtask.model.sandbox import SandboxLevel
from semtask.model.state import EndCause, State, StopReason


class ExecutionMode(StrEnum):
    IN_PROCESS = "IN_PROCESS"  # a registered Python task, in a warm worker
    SUBPROCESS = "SUBPROCESS"  # a command


class OnInterrupt(StrEnum):
    """What follows when the daemon dies or shuts down under a running job."""

    REQUEUE = "requeue"  # at least once
    FAIL = "fail"  # started at most once


class OnDuplicate(StrEnum):
    """What an enqueue does to the live jobs of its subject."""

    SUPERSEDE = "supersede"
    SUPERSEDE_RUNNING = "supersede_running"
    JOIN = "join"
    REJECT = "reject"
    AFTER = "after"


class QueueClass(StrEnum):
    """How a queue yields to the people at the machine: only background queues pause while it is busy."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BACKGROUND = "background"


class Durability(StrEnum):
    FSYNC = "fsync"  # survives a power cut
    OS = "os"  # survives any crash of a process


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A validated job that is not stored yet.

    `payload` is the JSON text as it came. `content_hash` stands for what an idempotency key protects. `source`: the
    project that enqueued a task, see tasks.source.
    `run_at` is None for a job that may run at once.
    """

    job_id: str
    queue: str
    job_type: str
    execution_mode: ExecutionMode
    payload: str
    created_at: int
    on_interrupt: OnInterrupt
    content_hash: bytes
    run_at: int | None = None
    priority: int = 0
    max_attempts: int = 1
    backoff_factor: float = 2.0
    retry_base_delay_ms: int = 1000
    retry_max_delay_ms: int = 3_600_000
    timeout_ms: int | None = None
    grace_ms: int = 5000
    deadline: int | None = None
    ttl_ms: int | None = None
    subject_key: str | None = None
    on_duplicate: OnDuplicate | None = None
    tag: str | None = None
    chain_group_id: str | None = None
    parent_job_id: str | None = None
    retry_of: str | None = None
    trace_context: str | None = None
    idempotency_key: str | None = None
    source: str | None = None
    retry_on_crash: bool = False
    durability: Durability = Durability.FSYNC


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A process, told apart from a later one with the same pid.

    `start_ticks` is field 22 of /proc/PID/stat, only comparable within one boot, pid and time namespace;
    `pidfs_inode` is the inode of its pidfd where the kernel has pidfs (6.9 and later), else None.
    """

    boot_id: str
    pid_namespace: int
    pid: int
    start_ticks: int
    pidfs_inode: int | None = None


class ClaimFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is written with a claim, for the daemon that may have to judge it after a crash.

    `attempts_id` names the attempts folder (its `.id` file); `nonce` is the value of SEMANTICA_ATTEMPT in the
    environment of every process of the attempt. A task has no folder of its own: `worker` names the one of its worker.
    """

    daemon_epoch: int
    boot_id: str
    attempts_id: str
    nonce: str
    worker: str | None = None


class Taker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker that can take up to `limit` jobs of `tasks`. `facts` are written with each claim.

    `ahead`: what it takes waits in the worker until the job before it has ended. So only jobs of `queues` are taken,
    which cost no further slot there, only `tasks` that are known to be quick, and none with on_interrupt=fail. `queues`
    None: those of which the taker before it, of the same worker, got jobs in this claim (a worker that was idle).
    """

    facts: ClaimFacts
    tasks: frozenset[str]
    limit: int
    ahead: bool = False
    queues: frozenset[str] | None = None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A stored job. `claim` and `process` describe the present claim, or the last one of a finished job."""

    seq: int
    job_id: str
    queue: str
    job_type: str
    execution_mode: ExecutionMode
    state: State
    payload: str
    created_at: int
    on_interrupt: OnInterrupt
    content_hash: bytes
    run_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    stop_reason: StopReason | None = None
    stop_grace_ms: int | None = None
    kill_failed_at: int | None = None
    priority: int = 0
    claim_no: int = 0
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0
    max_attempts: int = 1
    backoff_factor: float = 2.0
    retry_base_delay_ms: int = 1000
    retry_max_delay_ms: int = 3_600_000
    timeout_ms: int | None = None
    grace_ms: int = 5000
    deadline: int | None = None
    ttl_ms: int | None = None
    subject_key: str | None = None
    generation: int | None = None
    superseded_by: str | None = None
    tag: str | None = None
    chain_group_id: str | None = None
    parent_job_id: str | None = None
    retry_of: str | None = None
    trace_context: str | None = None
    idempotency_key: str | None = None
    source: str | None = None
    retry_on_crash: bool = False
    end_cause: EndCause | None = None
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    result: str | None = None
    exception: str | None = None
    artifacts: str | None = None
    progress: str | None = None
    node_id: str | None = None
    claim: ClaimFacts | None = None
    process: ProcessIdentity | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """The row of an attempt that has ended."""

    claim_no: int
    started_at: int
    finished_at: int
    end_cause: EndCause
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    stop_reason: StopReason | None = None
    pid: int | None = None
    log_bytes: int | None = None
    sandbox: SandboxLevel | None = None


class ProgressNote(msgspec.Struct, frozen=True, kw_only=True):
    """`progress` is JSON text."""

    job_id: str
    claim_no: int
    progress: str
