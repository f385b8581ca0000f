"""What is said to store a job: dev.enqueue.v1, dev.enqueue_many.v1 and the payload of a command."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from semtask.model.job import Durability, ExecutionMode, OnDuplicate, OnInterrupt
from semtask.model.sandbox import LEAST_LIMITS, SandboxLevel
from semtask.model.scope import Scope
from semtask.model.state import State
from semtask.protocol.fields import (
    AbsolutePath,
    DurationMs,
    EpochMs,
    GraceMs,
    JobId,
    JobType,
    Params,
    Priority,
    QueueName,
    Result,
    SubjectKey,
    Tag,
    TraceParent,
)


class Schedule(Params):
    """When a job becomes eligible: at once, AT `scheduled_at` (epoch ms), or AFTER `delay_ms`."""

    type: Literal["IMMEDIATE", "AT", "AFTER"]
    scheduled_at: EpochMs | UnsetType = UNSET
    delay_ms: DurationMs | UnsetType = UNSET


class Conditions(Params):
    """What a job may wait for besides its time; not served by this version."""

    wait_for_idle: bool = False
    require_charging: bool = False
    wait_for_event: str | None = None


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


LimitName = Literal["as", "core", "cpu", "data", "fsize", "memlock", "nofile", "nproc", "rss", "stack"]


class CommandPayload(Params):
    """The payload of a SUBPROCESS job. `umask` is a number (18 is 0o022).

    `nice`, `cpus` and `limits` are set as far as the operating system lets the daemon: without privileges a command
    cannot be less nice than the daemon, nor have a soft limit above the daemon's hard one. A limit of `sandbox` wins.

    With `access` each attempt gets a token of its own in SEMANTICA_TOKEN, which may do that much at this daemon, and
    only while the attempt runs. Nobody can give more than they have.
    """

    command: Annotated[str, Meta(min_length=1)]
    args: list[str] = []
    env: dict[str, str] = {}
    working_dir: str | UnsetType = UNSET
    umask: Annotated[int, Meta(ge=0, le=0o777)] | UnsetType = UNSET
    nice: Annotated[int, Meta(ge=-20, le=19)] | UnsetType = UNSET
    cpus: Annotated[list[Annotated[int, Meta(ge=0, le=1023)]], Meta(max_length=1024)] = []
    limits: dict[LimitName, Annotated[int, Meta(ge=0, le=2**63 - 1)] | None] = {}
    stderr: Literal["merged", "split"] = "merged"
    sandbox: SandboxLevel | SandboxWish | UnsetType = UNSET
    access: list[Scope] = []


class EnqueueParams(Params):
    """A job to be stored. Points of time are epoch ms, durations ms; a limit that is left out is none."""

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
    source: Annotated[str, Meta(min_length=1, max_length=4096)] | UnsetType = UNSET
    conditions: Conditions | UnsetType = UNSET
    depends_on: list[str] | UnsetType = UNSET


# Parameters of a job that this version refuses.
ENQUEUE_UNSERVED = frozenset({"conditions", "depends_on"})


class Enqueued(Result):
    """The stored job: the new one, or the one that was there already."""

    job_id: str
    state: State
    queue: str
    generation: int | None = None
    deduplicated: bool = False
    superseded: int = 0


class EnqueueManyParams(Params):
    """Jobs that are stored together, or none of them."""

    jobs: Annotated[list[EnqueueParams], Meta(min_length=1, max_length=10_000)]


class EnqueuedMany(Result):
    """The stored jobs."""

    jobs: list[Enqueued]
