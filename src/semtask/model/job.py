"""A job, from what a user asks for to what is stored.

Times are epoch milliseconds (wall clock, UTC); durations are milliseconds.
"""

# Annotations are evaluated here, once: reading those of the options as text would take longer than all other imports of
# a worker that are ours.
from enum import StrEnum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from semtask.model import bounds
from semtask.model.option import Option, Use
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


# --- what a user can ask for ------------------------------------------------------------------------------------------


class StoredOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a user can ask of a job, as far as the job keeps it. A field that is None was left out.

    This is the only place where an option is spelled out: new and stored jobs, the messages of the API, the columns,
    the keywords of the clients and the SDK, the command line, what a retry copies and the reference follow from it.
    CONTRIBUTING.md has the recipe for a new one.
    """

    job_type: Annotated[
        str,
        Option(
            "what kind of job it is: the name of the task, or any name for a command",
            bounds.JOB_TYPE,
            Use.PROGRAMS,
            word="name",
        ),
    ]
    payload: Annotated[
        Any, Option("the arguments of a task by name, or the CommandPayload of a command", use=Use.PROGRAMS)
    ] = None
    queue: Annotated[
        str,
        Option("the queue it waits in; a queue need not be declared", bounds.QUEUE_NAME, flags=("-Q", "--queue")),
    ] = "default"
    execution_mode: Annotated[
        ExecutionMode | None,
        Option("SUBPROCESS runs a command, IN_PROCESS a Python task", use=Use.PROGRAMS, left_out="the payload decides"),
    ] = None
    priority: Annotated[
        int,
        Option(
            "higher goes first, equal ones in the order in which they were enqueued; below 0 it waits while the "
            "machine is busy",
            bounds.PRIORITY,
        ),
    ] = 0
    tag: Annotated[
        str | None,
        Option("a word by which jobs can be listed, cancelled and retried", bounds.TAG, flags=("-t", "--tag")),
    ] = None
    chain_group_id: Annotated[
        str | None, Option("a group by which jobs can be listed, cancelled and retried", bounds.TAG, Use.PROGRAMS)
    ] = None
    parent_job_id: Annotated[str | None, Option("the job that enqueues this one", bounds.JOB_ID, Use.PROGRAMS)] = None
    subject_key: Annotated[
        str | None,
        Option(
            "what it is about: of the jobs of one name and subject, only one runs at a time",
            bounds.SUBJECT_KEY,
            Use.ONE_JOB,
            word="subject",
        ),
    ] = None
    idempotency_key: Annotated[
        str | None,
        Option(
            "enqueueing again with the same key returns the first job, as long as that is stored",
            bounds.IDEMPOTENCY_KEY,
            Use.ONE_JOB,
        ),
    ] = None
    max_attempts: Annotated[
        int,
        Option("how often it may run in all; 0 and 1 mean no retry", bounds.MAX_ATTEMPTS, word="retry", within="retry"),
    ] = 1
    backoff_factor: Annotated[
        float,
        Option(
            "how much longer each pause is than the one before",
            bounds.BACKOFF_FACTOR,
            word="factor of retry",
            within="retry",
            flags=("--backoff",),
        ),
    ] = 2.0
    retry_base_delay_ms: Annotated[
        int | None,
        Option(
            "the pause before the first retry",
            bounds.RETRY_BASE_DELAY,
            left_out="the setting retry_base_delay_ms",
            word="base of retry",
            within="retry",
            flags=("--retry-base",),
        ),
    ] = None
    retry_max_delay_ms: Annotated[
        int,
        Option(
            "the longest pause before a retry",
            bounds.RETRY_MAX_DELAY,
            word="cap of retry",
            within="retry",
            flags=("--retry-max",),
        ),
    ] = 3_600_000
    retry_on_crash: Annotated[
        bool, Option("retry it also if the process that ran it was lost; then it runs at most 3 times")
    ] = False
    timeout_ms: Annotated[int | None, Option("the longest time that one attempt may take", bounds.TIMEOUT)] = None
    deadline: Annotated[
        int | None,
        Option(
            "when the job must have ended, all attempts and pauses included",
            bounds.MOMENT,
            unit="epoch ms",
            within="deadline",
        ),
    ] = None
    ttl_ms: Annotated[int | None, Option("skip it if it has not started this long after it became due", bounds.TTL)] = (
        None
    )
    grace_ms: Annotated[int, Option("the time from SIGTERM to SIGKILL when it is stopped", bounds.GRACE)] = 5000
    on_interrupt: Annotated[
        OnInterrupt | None,
        Option(
            "if the daemon stops or dies while it runs: run it again (requeue), or end it as FAILED (fail)",
            left_out="`fail` for a command, `requeue` for a task",
        ),
    ] = None
    source: Annotated[
        str | None,
        Option(
            "the file or project that defines the task where it is enqueued; the task of another one is never run",
            bounds.SOURCE,
            Use.PROGRAMS,
        ),
    ] = None


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """When a job becomes due: immediately, AT `scheduled_at` (epoch ms), or AFTER `delay_ms`."""

    type: Literal["IMMEDIATE", "AT", "AFTER"]
    scheduled_at: Annotated[int, bounds.MOMENT] | UnsetType = UNSET
    delay_ms: Annotated[int, bounds.DELAY] | UnsetType = UNSET


class JobSpec(StoredOptions, frozen=True, kw_only=True):
    """Everything a user can ask of a job: what the job keeps, and what only matters when it is enqueued."""

    schedule: Annotated[
        Schedule | None, Option("when it becomes due", use=Use.ONE_JOB, left_out="immediately", within="schedule")
    ] = None
    on_duplicate: Annotated[
        OnDuplicate | None,
        Option(
            "what happens to the live jobs of its subject: the new one replaces those that wait (supersede), "
            "also stops the one that runs (supersede_running), joins one that waits (join), is refused (reject), or "
            "follows them (after)",
            left_out="`supersede`",
        ),
    ] = None
    durability: Annotated[Durability, Option("`fsync` survives a power cut, `os` any crash of a process")] = (
        Durability.FSYNC
    )
    traceparent: Annotated[
        str | None,
        Option("the W3C trace it belongs to; the command finds it in TRACEPARENT", bounds.TRACE_PARENT, Use.PROGRAMS),
    ] = None


# --- new and stored jobs ----------------------------------------------------------------------------------------------


class SettledOptions(StoredOptions, frozen=True, kw_only=True):
    """The options of a job that was admitted: none is open any more."""

    execution_mode: ExecutionMode
    on_interrupt: OnInterrupt
    retry_base_delay_ms: int = 1000


class AdmittedJob(SettledOptions, frozen=True, kw_only=True):
    """What admission made of a request.

    `payload` is the JSON text as it came. `content_hash` stands for what an idempotency key protects; without a key
    there is none. `run_at` is None for a job that may run immediately.
    """

    job_id: str
    payload: str
    created_at: int
    run_at: int | None = None
    retry_of: str | None = None
    trace_context: str | None = None
    content_hash: bytes | None = None


class NewJob(AdmittedJob, frozen=True, kw_only=True):
    """A validated job that is not stored yet."""

    on_duplicate: OnDuplicate | None = None
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


class Job(AdmittedJob, frozen=True, kw_only=True):
    """A stored job. `claim` and `process` describe the present claim, or the last one of a job that waits or has ended.

    Of a task that does not run, `claim` is None when the claims of its worker are no longer kept.
    """

    seq: int
    state: State
    started_at: int | None = None
    finished_at: int | None = None
    stop_reason: StopReason | None = None
    stop_grace_ms: int | None = None
    kill_failed_at: int | None = None
    claim_no: int = 0
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0
    generation: int | None = None
    superseded_by: str | None = None
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
