"""Every message of the API, and METHODS: the one table that feeds server, client, `rpc.discover` and documents.

A parameter that is part of the contract but not served by this version is named in `Method.unserved`; sending it is
refused by name, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from semtask.model.app import AppState
from semtask.model.job import Durability, ExecutionMode, OnDuplicate, OnInterrupt, QueueClass
from semtask.model.sandbox import LEAST_LIMITS, SandboxLevel
from semtask.model.scope import Scope
from semtask.model.state import EndCause, State, StopReason
from semtask.model.trace_context import TRACEPARENT

QueueName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z", description="letters, digits, _ and -, 1 to 64")]
JobType = Annotated[str, Meta(min_length=1, max_length=128)]
SubjectKey = Annotated[
    str, Meta(min_length=1, max_length=512, pattern=r"^[^\0]*\Z", description="1 to 512 characters, no NUL")
]
Tag = Annotated[str, Meta(min_length=1, max_length=256)]
JobId = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z",
        description="a job id as dev.enqueue.v1 gave it",
    ),
]
Priority = Annotated[int, Meta(ge=-100, le=100)]
GraceMs = Annotated[int, Meta(ge=0, le=60_000)]
EpochMs = Annotated[int, Meta(ge=0, le=253_402_300_799_999)]
DurationMs = Annotated[int, Meta(ge=0, le=31_536_000_000_000)]
TraceParent = Annotated[
    str,
    Meta(
        pattern=rf"^{TRACEPARENT}\Z",
        description="a W3C traceparent header",
    ),
]


class Params(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parameters."""


class Result(Struct, kw_only=True):
    """Base of all results. Results only grow."""


# --- enqueue -----------------------------------------------------------------------------------------------------


class Schedule(Params):
    """When a job becomes eligible: at once, AT `scheduled_at` (epoch ms), or AFTER `delay_ms`."""

    type: Literal["IMMEDIATE", "AT", "AFTER"]
    scheduled_at: EpochMs | UnsetType = UNSET
    delay_ms: DurationMs | UnsetType = UNSET


class Conditions(Params):
    wait_for_idle: bool = False
    require_charging: bool = False
    wait_for_event: str | None = None


AbsolutePath = Annotated[str, Meta(min_length=1, max_length=4096, description="an absolute path")]


class SandboxWish(Params):
    """A sandbox for a command. A level alone stands for one without anything else; a stronger floor of the queue wins.

    Each limit is one of every process of the command by itself, not of all of them together.
    """

    level: SandboxLevel
    read: list[AbsolutePath] = []
    write: list[AbsolutePath] = []
    network: bool = False
    memory_mb: Annotated[int, Meta(ge=LEAST_LIMITS["memory_mb"], le=1 << 30)] | UnsetType = UNSET
    cpu_seconds: Annotated[int, Meta(ge=LEAST_LIMITS["cpu_seconds"], le=1 << 30)] | UnsetType = UNSET
    open_files: Annotated[int, Meta(ge=LEAST_LIMITS["open_files"], le=1 << 20)] | UnsetType = UNSET
    file_mb: Annotated[int, Meta(ge=LEAST_LIMITS["file_mb"], le=1 << 30)] | UnsetType = UNSET

    @property
    def limits(self) -> dict[str, int]:
        """Those that are set, by name."""
        return {name: value for name in LEAST_LIMITS if (value := getattr(self, name)) is not UNSET}


class CommandPayload(Params):
    """The payload of a SUBPROCESS job. `umask` is a number (18 is 0o022).

    With `access` each attempt gets a token of its own in SEMANTICA_TOKEN, which may do that much at this daemon, and
    only while the attempt runs. Nobody can give more than they have.
    """

    command: Annotated[str, Meta(min_length=1)]
    args: list[str] = []
    env: dict[str, str] = {}
    working_dir: str | UnsetType = UNSET
    umask: Annotated[int, Meta(ge=0, le=0o777)] | UnsetType = UNSET
    stderr: Literal["merged", "split"] = "merged"
    sandbox: SandboxLevel | SandboxWish | UnsetType = UNSET
    access: list[Scope] = []


class EnqueueParams(Params):
    job_type: JobType
    payload: msgspec.Raw
    queue: QueueName = "default"
    execution_mode: ExecutionMode | UnsetType = UNSET
    priority: Priority = 0
    schedule: Schedule | UnsetType = UNSET
    grace_ms: GraceMs = 5000
    tag: Tag | UnsetType = UNSET
    chain_group_id: Tag | UnsetType = UNSET
    parent_job_id: JobId | UnsetType = UNSET
    traceparent: TraceParent | UnsetType = UNSET
    idempotency_key: Annotated[str, Meta(min_length=1, max_length=256)] | UnsetType = UNSET
    on_interrupt: OnInterrupt | UnsetType = UNSET
    durability: Durability = Durability.FSYNC
    subject_key: SubjectKey | UnsetType = UNSET
    on_duplicate: OnDuplicate | UnsetType = UNSET
    max_attempts: Annotated[int, Meta(ge=0, le=1000)] = 1
    backoff_factor: Annotated[float, Meta(ge=1, le=1000)] = 2.0
    retry_base_delay_ms: Annotated[int, Meta(ge=0, le=86_400_000)] | UnsetType = UNSET
    retry_max_delay_ms: Annotated[int, Meta(ge=0, le=31_536_000_000)] = 3_600_000
    retry_on_crash: bool = False
    timeout_ms: Annotated[int, Meta(ge=1, le=31_536_000_000)] | UnsetType = UNSET
    deadline: EpochMs | UnsetType = UNSET
    ttl_ms: Annotated[int, Meta(ge=1, le=31_536_000_000_000)] | UnsetType = UNSET
    conditions: Conditions | UnsetType = UNSET
    depends_on: list[str] | UnsetType = UNSET


ENQUEUE_UNSERVED = frozenset({"conditions", "depends_on"})


class Enqueued(Result):
    job_id: str
    state: State
    queue: str
    generation: int | None = None
    deduplicated: bool = False
    superseded: int = 0


class EnqueueManyParams(Params):
    jobs: Annotated[list[EnqueueParams], Meta(min_length=1, max_length=10_000)]


class EnqueuedMany(Result):
    jobs: list[Enqueued]


# --- look ----------------------------------------------------------------------------------------------------------


WaitingReason = Literal[
    "scheduled",
    "retry",
    "subject_busy",
    "throttled",
    "policy",
    "queue_paused",
    "queue_full",
    "machine_full",
    "no_app",
    "app_starting",
    "app_failed",
    "task_full",
    "no_worker",
    "behind_others",
    "stopping_daemon",
]


class Waiting(Result):
    """Why a job is not running."""

    reason: WaitingReason
    text: str


class ProgressView(Result):
    """`done` of `total`, as the task counts it, and what it says about it."""

    done: float
    total: float | None = None
    text: str | None = None


class ExceptionView(Result):
    """What a task raised, with Python's traceback and what caused it."""

    type: str
    message: str
    traceback: str = ""
    cause: ExceptionView | None = None


class ArtifactView(Result):
    """A file that a job keeps until it is deleted. `path` is absolute; `is_result`: it is the result, as JSON."""

    name: str
    size: int
    sha256: str
    path: str
    is_result: bool = False


class AttemptView(Result):
    claim_no: int
    started_at: int
    finished_at: int | None = None
    end_cause: EndCause | None = None
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    stop_reason: StopReason | None = None
    pid: int | None = None
    log_bytes: int | None = None
    sandbox: SandboxLevel | None = None


class JobView(Result):
    """A job as the API shows it. Times are epoch ms.

    `payload`, `result`, `exception` and `attempts_list` only where asked for.
    """

    job_id: str
    queue: str
    job_type: str
    execution_mode: ExecutionMode
    state: State
    priority: int
    created_at: int
    on_interrupt: OnInterrupt
    run_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    stop_reason: StopReason | None = None
    kill_failed_at: int | None = None
    end_cause: EndCause | None = None
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    pid: int | None = None
    claim_no: int = 0
    attempts: int = 0
    failures: int = 0
    crashes: int = 0
    interruptions: int = 0
    max_attempts: int = 1
    backoff_factor: float = 2.0
    retry_base_delay_ms: int = 1000
    retry_max_delay_ms: int = 3_600_000
    retry_on_crash: bool = False
    timeout_ms: int | None = None
    deadline: int | None = None
    ttl_ms: int | None = None
    grace_ms: int = 5000
    subject_key: str | None = None
    generation: int | None = None
    superseded_by: str | None = None
    tag: str | None = None
    chain_group_id: str | None = None
    parent_job_id: str | None = None
    retry_of: str | None = None
    trace_context: str | None = None
    idempotency_key: str | None = None
    node_id: str | None = None
    log_path: str | None = None
    command: str | None = None  # of a SUBPROCESS job: the program and its arguments, for people
    waiting: Waiting | None = None
    progress: ProgressView | None = None
    exception: ExceptionView | None = None
    artifacts: list[ArtifactView] | None = None
    result: Any = None  # any JSON; None also where it is an artifact
    payload: Any = None  # any JSON; msgspec cannot decode a union with Raw
    attempts_list: list[AttemptView] | None = None


class GetJobParams(Params):
    """`include` adds parts: `payload`, `attempts`, `result` (with the exception).

    In the payload of a command *** stands for values of `env` whose names look like those of secrets (TOKEN, SECRET,
    PASSWORD, KEY, ...) and for URLs with a login; `secrets` instead of `payload` shows them, and takes the scope admin.
    """

    job_id: JobId
    include: list[Literal["payload", "secrets", "attempts", "result"]] = []


class QueryFilter(Params):
    state: list[State] = []
    queue: list[QueueName] = []
    job_type: JobType | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    chain_group_id: Tag | UnsetType = UNSET
    created_after: EpochMs | UnsetType = UNSET
    id_suffix: (
        Annotated[str, Meta(pattern=r"^[0-9a-f]{4,32}\Z", description="4 to 32 hexadecimal digits")] | UnsetType
    ) = UNSET
    subject_key_prefix: SubjectKey | UnsetType = UNSET


class QueryJobsParams(Params):
    filter: QueryFilter = msgspec.field(default_factory=QueryFilter)
    sort: Literal["newest", "oldest"] = "newest"
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


class QueriedJobs(Result):
    items: list[JobView]
    next_cursor: str | None = None


class WaitParams(Params):
    job_ids: Annotated[list[JobId], Meta(min_length=1, max_length=1000)]
    mode: Literal["any", "all"] = "all"
    timeout_ms: Annotated[int, Meta(ge=0, le=60_000)] = 30_000
    include: list[Literal["result"]] = []


class Waited(Result):
    """`jobs` are in the order asked for; `timed_out`: the condition was not met yet."""

    jobs: list[JobView]
    timed_out: bool


class TailParams(Params):
    """Either `lines` (the last ones), or a position: `offset` (a negative one counts from the end) and `limit`.

    `attempt` is a claim_no; without it the newest. With `wait_ms` the answer waits for new bytes or the end.
    """

    job_id: JobId
    lines: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType = UNSET
    attempt: Annotated[int, Meta(ge=1)] | UnsetType = UNSET
    stream: Literal["stdout", "stderr"] = "stdout"
    offset: int | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=1_048_576)] = 65_536
    wait_ms: Annotated[int, Meta(ge=0, le=30_000)] = 0


class TailedLines(Result):
    job_id: str
    log_path: str | None
    lines: list[str]


class TailedChunk(Result):
    """`chunk` is base64 if `encoding` says so (bytes that are no UTF-8), else text.

    `omitted_bytes` lie between the offset asked for and the first byte of the chunk: the cut-out middle of a log over
    its cap. `eof`: the attempt has ended and this was its last byte. `attempt` is the claim_no that was read.
    """

    chunk: str
    encoding: Literal["utf-8", "base64"]
    next_offset: int
    eof: bool
    omitted_bytes: int
    attempt: int


# --- change ----------------------------------------------------------------------------------------------------------


class CancelParams(Params):
    """Exactly one of `job_id`, `tag`, `chain_group_id`."""

    job_id: JobId | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    chain_group_id: Tag | UnsetType = UNSET
    grace_ms: GraceMs | UnsetType = UNSET


class Cancelled(Result):
    """`cancelled`: at least one job was ended or is being stopped. A running job ends later: see `dev.wait.v1`."""

    cancelled: bool
    cancelled_count: int
    job_id: str | None = None


class RetryParams(Params):
    """One finished job by `job_id`, or all FAILED ones of a `tag`, a `chain_group_id` or a `queue`: exactly one.

    Of a tag, a group or a queue only jobs that were not retried yet are taken, at most 200 a call.
    """

    job_id: JobId | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    chain_group_id: Tag | UnsetType = UNSET
    queue: QueueName | UnsetType = UNSET


class Retried(Result):
    """`job_id` is the copy and `retry_of` the job it was made of, where one job was named. `more`: call again."""

    retried_count: int
    more: bool
    jobs: list[RetriedJob]
    job_id: str | None = None
    retry_of: str | None = None


class RetriedJob(Result):
    job_id: str
    retry_of: str


class QueueParams(Params):
    queue: QueueName


class ConfigureQueueParams(Params):
    """`concurrency` None returns to the daemon's default.

    A queue of class `background` waits while the machine is busy. `sandbox` is the least that its commands run in;
    above `none` it takes no tasks.
    """

    queue: QueueName
    concurrency: Annotated[int, Meta(ge=1, le=100000)] | UnsetType | None = UNSET
    class_: QueueClass | UnsetType = msgspec.field(default=UNSET, name="class")
    sandbox: SandboxLevel | UnsetType = UNSET


class MaintenanceParams(Params):
    """`force_vacuum`: give all free pages back to the file system, not only some."""

    force_vacuum: bool = False


class Maintained(Result):
    """`vacuum_run`: pages were given back. Sizes are of the database with its write-ahead log, in bytes."""

    vacuum_run: bool
    jobs_deleted: int
    artifacts_deleted: int
    db_size_before: int
    db_size_after: int


class NoParams(Params):
    pass


# --- apps, tasks, workers --------------------------------------------------------------------------------------------


class ReloadAppsParams(Params):
    """Read the list of apps again and replace the workers of all of them, or of the one named `app`.

    With `wait_ms` the answer waits until each of them was imported or failed.
    """

    app: Annotated[str, Meta(min_length=1, max_length=64)] | UnsetType = UNSET
    wait_ms: Annotated[int, Meta(ge=0, le=60_000)] = 0


class AppView(Result):
    """An app, whether its tasks can be run, and why not."""

    name: str
    module: str
    directory: str
    python: str
    state: AppState
    tasks: int
    workers: int
    error: str | None = None
    traceback: str | None = None


class Apps(Result):
    apps: list[AppView]


class TaskView(Result):
    """A registered task. `parameters` is the JSON schema of its payload; `defaults` are options of dev.enqueue.v1 that
    the SDK and the command line send for it."""

    name: str
    app: str
    is_async: bool
    parameters: dict[str, Any]
    returns: dict[str, Any] | None = None
    doc: str | None = None
    defaults: dict[str, Any] = {}
    concurrency: int | None = None


class Tasks(Result):
    tasks: list[TaskView]


class WorkerView(Result):
    """A worker process. `running` are the jobs it has; of a sync worker the first one runs."""

    worker: str
    app: str
    pid: int | None
    state: Literal["starting", "idle", "busy", "leaving"]
    kind: Literal["sync", "async"] | None
    running: list[str]
    jobs_done: int
    started_at: int
    python: str | None = None


class Workers(Result):
    workers: list[WorkerView]


class QueueView(Result):
    name: str
    paused: bool
    concurrency: int
    class_: QueueClass = msgspec.field(name="class")
    scheduled: int
    queued: int
    running: int
    done: int
    failed: int
    cancelled: int
    superseded: int
    skipped: int
    sandbox: SandboxLevel = SandboxLevel.NONE


class Queues(Result):
    queues: list[QueueView]


class SystemView(Result):
    """`cpu_usage` and `memory_usage` in percent, smoothed; None while nothing needs them to be sampled."""

    cpu_count: int
    max_processes: int
    running_processes: int
    cpu_usage: float | None = None
    memory_usage: float | None = None


class ThrottleView(Result):
    """Whether background work waits for the machine to calm down, why, and since when (epoch ms)."""

    active: bool
    reason: str | None = None
    since: int | None = None


class DiskView(Result):
    """How the disk of the home is: what is refused and why, since when (epoch ms), and what is free of it, in bytes.

    Below `low_bytes` nothing new is taken.
    """

    state: Literal["OK", "LOW", "FULL", "DEGRADED"] = "OK"
    reason: str | None = None
    since: int | None = None
    free_bytes: int | None = None
    low_bytes: int | None = None


class Stats(Result):
    version: str
    pid: int
    total_jobs: int
    scheduled_jobs: int
    queued_jobs: int
    running_jobs: int
    done_jobs: int
    failed_jobs: int
    db_size_bytes: int
    uptime_seconds: float
    accepting: bool
    queues: list[QueueView]
    system: SystemView
    counters: dict[str, int]
    throttle: ThrottleView
    commands_held: str | None = None  # why no command is accepted or started
    disk: DiskView = msgspec.field(default_factory=DiskView)


# --- the table -------------------------------------------------------------------------------------------------------


class Method(Struct, frozen=True, kw_only=True):
    """`scope` is what a client needs to call it; a job that is a command needs `command` besides.

    `unserved` names parameters that are refused; a dot leads into a nested object, or into each item of a list.

    `operation` is the name of the engine's method; None where the API answers by itself. `told_scopes`: it takes what
    the caller may do besides. `new_work`: refused while the daemon is stopping. `waits`: may take long without changing
    anything, so it ends with its caller.
    """

    name: str
    scope: Scope
    params: type[Params]
    result: Any
    summary: str
    operation: str | None = None
    unserved: frozenset[str] = frozenset()
    told_scopes: bool = False
    new_work: bool = False
    waits: bool = False


METHODS: dict[str, Method] = {
    m.name: m
    for m in (
        Method(
            name="dev.enqueue.v1",
            scope=Scope.ENQUEUE,
            params=EnqueueParams,
            result=Enqueued,
            summary="Store a job. Once answered it survives any crash, and with durability=fsync a power cut.",
            operation="enqueue",
            new_work=True,
            unserved=ENQUEUE_UNSERVED,
        ),
        Method(
            name="dev.enqueue_many.v1",
            scope=Scope.ENQUEUE,
            params=EnqueueManyParams,
            result=EnqueuedMany,
            summary="Store up to 10,000 jobs in one transaction, all or none.",
            operation="enqueue_many",
            new_work=True,
            unserved=frozenset(f"jobs.{name}" for name in ENQUEUE_UNSERVED),
        ),
        Method(
            name="dev.get_job.v1",
            scope=Scope.READ,
            params=GetJobParams,
            result=JobView,
            summary="One job.",
            operation="get_job",
        ),
        Method(
            name="dev.query_jobs.v1",
            scope=Scope.READ,
            params=QueryJobsParams,
            result=QueriedJobs,
            summary="Jobs that match a filter, page by page.",
            operation="query_jobs",
        ),
        Method(
            name="dev.wait.v1",
            scope=Scope.READ,
            params=WaitParams,
            result=Waited,
            summary="Wait until any or all of the jobs have ended, or the time is over.",
            operation="wait",
            waits=True,
        ),
        Method(
            name="dev.cancel.v1",
            scope=Scope.ENQUEUE,
            params=CancelParams,
            result=Cancelled,
            summary="Cancel a job, or all live jobs of a tag or group.",
            operation="cancel",
        ),
        Method(
            name="dev.retry.v1",
            scope=Scope.COMMAND,
            params=RetryParams,
            result=Retried,
            summary="Enqueue a copy of a finished job, or of all failed jobs of a tag, a group or a queue.",
            operation="retry",
            told_scopes=True,
            new_work=True,
        ),
        Method(
            name="logs.tail.v1",
            scope=Scope.READ,
            params=TailParams,
            result=TailedLines | TailedChunk,
            summary="Read the output of a job: the last lines, or bytes from a position on.",
            operation="tail",
            waits=True,
        ),
        Method(
            name="queues.list.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Queues,
            summary="All queues with their counts.",
            operation="list_queues",
        ),
        Method(
            name="queues.pause.v1",
            scope=Scope.ADMIN,
            params=QueueParams,
            result=QueueView,
            summary="Start no more jobs of a queue. It goes on accepting them.",
            operation="pause_queue",
        ),
        Method(
            name="queues.resume.v1",
            scope=Scope.ADMIN,
            params=QueueParams,
            result=QueueView,
            summary="Start jobs of a queue again.",
            operation="resume_queue",
        ),
        Method(
            name="queues.configure.v1",
            scope=Scope.ADMIN,
            params=ConfigureQueueParams,
            result=QueueView,
            summary="Set how many jobs of a queue may run at once, and the least sandbox of its commands.",
            operation="configure_queue",
        ),
        Method(
            name="admin.stats.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Stats,
            summary="Counts, queues, limits and counters.",
            operation="stats",
        ),
        Method(
            name="admin.maintenance.v1",
            scope=Scope.ADMIN,
            params=MaintenanceParams,
            result=Maintained,
            summary="Delete what is over its retention now, and give free space back.",
            operation="maintenance",
        ),
        Method(
            name="apps.list.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Apps,
            summary="The apps of this daemon, and whether they could be imported.",
            operation="list_apps",
        ),
        Method(
            name="apps.reload.v1",
            scope=Scope.ADMIN,
            params=ReloadAppsParams,
            result=Apps,
            summary="Read the list of apps again and import them anew; running jobs end in their old workers.",
            operation="reload_apps",
            waits=True,
        ),
        Method(
            name="tasks.list.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Tasks,
            summary="The registered tasks with their signatures.",
            operation="list_tasks",
        ),
        Method(
            name="workers.list.v1",
            scope=Scope.READ,
            params=NoParams,
            result=Workers,
            summary="The worker processes.",
            operation="list_workers",
        ),
        Method(
            name="rpc.discover",
            scope=Scope.READ,
            params=NoParams,
            result=dict[str, Any],
            summary="This API as an OpenRPC document.",
        ),
    )
}
