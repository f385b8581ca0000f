"""What is said about stored jobs: how they are shown, found, awaited, cancelled and retried."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from semtask.model.job import SettledOptions
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import EndCause, State, StopReason
from semtask.protocol.fields import EpochMs, GraceMs, JobId, JobType, Params, QueueName, Result, SubjectKey, Tag

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
    "other_job",
    "deadlock",
]


class Waiting(Result):
    """Why a job is not running; of one that runs, which other jobs it waits for."""

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
    """One execution of a job. A command has `pid`, `exit_code` or `signal`; times are epoch ms."""

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


class JobView(SettledOptions, Result, frozen=True):  # type: ignore[misc]  # Result has no field that could change
    """A job as the API shows it: what it was enqueued with, and what became of it. Times are epoch ms.

    `payload`, `result`, `exception` and `attempts_list` only where asked for.
    """

    job_id: str
    state: State
    created_at: int
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
    generation: int | None = None
    superseded_by: str | None = None
    retry_of: str | None = None
    trace_context: str | None = None
    node_id: str | None = None
    log_path: str | None = None
    command: str | None = None  # of a SUBPROCESS job: the program and its arguments, for people
    waiting: Waiting | None = None
    progress: ProgressView | None = None
    exception: ExceptionView | None = None
    artifacts: list[ArtifactView] | None = None
    result: Any = None  # any JSON; None also where it is an artifact
    attempts_list: list[AttemptView] | None = None


class GetJobParams(Params):
    """`include` adds parts: `payload`, `attempts`, `result` (with the exception).

    In the payload of a command *** stands for values of `env` whose names look like those of secrets (TOKEN, SECRET,
    PASSWORD, KEY, ...) and for URLs with a login; `secrets` instead of `payload` shows them, and takes the scope admin.
    """

    job_id: JobId
    include: list[Literal["payload", "secrets", "attempts", "result"]] = []


class QueryFilter(Params):
    """Which jobs: all that is given must hold. An empty list, like none, lets all through."""

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
    """One page: `cursor` is the `next_cursor` of the page before, with the same filter and sort."""

    filter: QueryFilter = msgspec.field(default_factory=QueryFilter)
    sort: Literal["newest", "oldest"] = "newest"
    limit: Annotated[int, Meta(ge=1, le=200)] = 50
    cursor: Annotated[str, Meta(max_length=64)] | UnsetType = UNSET


class QueriedJobs(Result):
    """One page of jobs, and how to get the next one."""

    items: list[JobView]
    next_cursor: str | None = None


class WaitParams(Params):
    """Wait for the end of any or of all `job_ids`, `timeout_ms` at most."""

    job_ids: Annotated[list[JobId], Meta(min_length=1, max_length=1000)]
    mode: Literal["any", "all"] = "all"
    timeout_ms: Annotated[int, Meta(ge=0, le=60_000)] = 30_000
    include: list[Literal["result"]] = []


class Waited(Result):
    """`jobs` are in the order asked for; `timed_out`: the condition was not met yet."""

    jobs: list[JobView]
    timed_out: bool


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
    ended_as: State | None = None


class RetryParams(Params):
    """One finished job by `job_id`, or all FAILED ones of a `tag`, a `chain_group_id` or a `queue`: exactly one.

    Of a tag, a group or a queue only jobs that were not retried yet are taken, at most 200 a call.
    """

    job_id: JobId | UnsetType = UNSET
    tag: Tag | UnsetType = UNSET
    chain_group_id: Tag | UnsetType = UNSET
    queue: QueueName | UnsetType = UNSET


class RetriedJob(Result):
    """A copy, and what it is a copy of."""

    job_id: str
    retry_of: str


class Retried(Result):
    """`job_id` is the copy and `retry_of` the job it was made of, where one job was named. `more`: call again."""

    retried_count: int
    more: bool
    jobs: list[RetriedJob]
    job_id: str | None = None
    retry_of: str | None = None
