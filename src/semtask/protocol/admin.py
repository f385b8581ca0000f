"""What is said about the daemon and its machine: admin.*."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from semtask.protocol.fields import Params, Result
from semtask.protocol.queues import QueueView


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
    """How the daemon is. Counts of jobs are of what is stored now, `counters` of all time; sizes are bytes."""

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
    home: str | None = None  # the folder of its database, logs and socket


class MaintenanceParams(Params):
    """`force_vacuum`: give all free pages back to the file system, not only some."""

    force_vacuum: bool = False


class Maintained(Result):
    """`vacuum_run`: with `force_vacuum`, no free page is left; else, some were given back. Sizes are of the database
    with its write-ahead log, in bytes.
    """

    vacuum_run: bool
    jobs_deleted: int
    artifacts_deleted: int
    db_size_before: int
    db_size_after: int


class StartDaemonParams(Params):
    """`env` is the environment of the daemon to start, with SEMANTICA_HOME; `umask` that of its jobs."""

    env: dict[str, str]
    umask: Annotated[int, Meta(ge=0, le=0o777)] = 0o077


class StartedDaemon(Result):
    """`ready`: its sockets are open. `exit_code`: it has ended, with this one (below 0: by that signal)."""

    pid: int
    ready: bool
    exit_code: int | None = None
