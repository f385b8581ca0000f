"""The keywords of the options of jobs and tasks, for type checkers and editors.

Written by docs/generate.py from model/job.py, which is the place to change it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias, TypedDict

from semtask.tasks.control import Retry
from semtask.tasks.options import Seconds

DurabilityOption: TypeAlias = Literal["fsync", "os"]
OnDuplicateOption: TypeAlias = Literal["supersede", "supersede_running", "join", "reject", "after"]
OnInterruptOption: TypeAlias = Literal["requeue", "fail"]


class EnqueueOptions(TypedDict, total=False):
    """What can be said about a single job. Durations are seconds or timedelta."""

    queue: str
    """The queue it waits in; a queue need not be declared. Default: `default`."""

    priority: int
    """Higher goes first, equal ones in the order in which they were enqueued; below 0 it waits while the machine is
    busy. Default: 0; -100 to 100.
    """

    tag: str
    """A word by which jobs can be listed, cancelled and retried."""

    subject: str
    """What it is about: of the jobs of one name and subject, only one runs at a time."""

    idempotency_key: str
    """Enqueueing again with the same key returns the first job, as long as that is stored."""

    retry: Retry | int
    """How it is tried again if it fails: a Retry, or how often it may run in all."""

    retry_on_crash: bool
    """Retry it also if the process that ran it was lost; then it runs at most 3 times."""

    timeout: Seconds
    """The longest time that one attempt may take."""

    deadline: Seconds | datetime
    """When the job must have ended: a time, or a duration from the enqueue, or from `delay` or `at`."""

    ttl: Seconds
    """Skip it if it has not started this long after it became due."""

    grace: Seconds
    """The time from SIGTERM to SIGKILL when it is stopped. Default: 5 s; at most 60 s."""

    on_interrupt: OnInterruptOption
    """If the daemon stops or dies while it runs: run it again (requeue), or end it as FAILED (fail). Default:
    `fail` for a command, `requeue` for a task.
    """

    delay: Seconds
    """It does not run before this much time has passed."""

    at: datetime
    """It does not run before this time, which needs a time zone."""

    on_duplicate: OnDuplicateOption
    """What happens to the live jobs of its subject: the new one replaces those that wait (supersede), also stops
    the one that runs (supersede_running), joins one that waits (join), is refused (reject), or follows them
    (after). Default: `supersede`.
    """

    durability: DurabilityOption
    """`fsync` survives a power cut, `os` any crash of a process. Default: `fsync`."""


class TaskKeywords(TypedDict, total=False):
    """What a task can say for all of its jobs. Durations are seconds or timedelta."""

    queue: str | None
    """The queue it waits in; a queue need not be declared. Default: `default`."""

    priority: int | None
    """Higher goes first, equal ones in the order in which they were enqueued; below 0 it waits while the machine is
    busy. Default: 0; -100 to 100.
    """

    tag: str | None
    """A word by which jobs can be listed, cancelled and retried."""

    retry: Retry | int | None
    """How it is tried again if it fails: a Retry, or how often it may run in all."""

    retry_on_crash: bool | None
    """Retry it also if the process that ran it was lost; then it runs at most 3 times."""

    timeout: Seconds | None
    """The longest time that one attempt may take."""

    deadline: Seconds | None
    """How long the job may take in all, counted from its enqueue, or from `delay` or `at`."""

    ttl: Seconds | None
    """Skip it if it has not started this long after it became due."""

    grace: Seconds | None
    """The time from SIGTERM to SIGKILL when it is stopped. Default: 5 s; at most 60 s."""

    on_interrupt: OnInterruptOption | None
    """If the daemon stops or dies while it runs: run it again (requeue), or end it as FAILED (fail). Default:
    `fail` for a command, `requeue` for a task.
    """

    on_duplicate: OnDuplicateOption | None
    """What happens to the live jobs of its subject: the new one replaces those that wait (supersede), also stops
    the one that runs (supersede_running), joins one that waits (join), is refused (reject), or follows them
    (after). Default: `supersede`.
    """

    durability: DurabilityOption | None
    """`fsync` survives a power cut, `os` any crash of a process. Default: `fsync`."""
