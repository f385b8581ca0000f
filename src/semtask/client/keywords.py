"""The keywords of `enqueue`, for type checkers and editors.

Written by docs/generate.py from model/job.py, which is the place to change it.
"""

from __future__ import annotations

from typing import TypedDict

from semtask.model.job import Durability, ExecutionMode, OnDuplicate, OnInterrupt, Schedule


class EnqueueKeywords(TypedDict, total=False):
    """What can be said about a job besides its type and its payload. Left out, or None: the default."""

    queue: str
    """The queue it waits in; a queue need not be declared. Default: `default`."""

    execution_mode: ExecutionMode | None
    """SUBPROCESS runs a command, IN_PROCESS a Python task. Default: the payload decides."""

    priority: int
    """Higher goes first, equal ones in the order in which they were enqueued; below 0 it waits while the machine is
    busy. Default: 0; -100 to 100.
    """

    tag: str | None
    """A word by which jobs can be listed, cancelled and retried."""

    chain_group_id: str | None
    """A group by which jobs can be listed, cancelled and retried."""

    parent_job_id: str | None
    """The job that enqueues this one."""

    subject_key: str | None
    """What it is about: of the jobs of one name and subject, only one runs at a time."""

    idempotency_key: str | None
    """Enqueueing again with the same key returns the first job, as long as that is stored."""

    max_attempts: int
    """How often it may run in all; 0 and 1 mean no retry. Default: 1; 0 to 1000."""

    backoff_factor: float
    """How much longer each pause is than the one before. Default: 2; 1 to 1000."""

    retry_base_delay_ms: int | None
    """The pause before the first retry, ms. Default: the setting retry_base_delay_ms; at most 86400000 ms."""

    retry_max_delay_ms: int
    """The longest pause before a retry, ms. Default: 3600000 ms."""

    retry_on_crash: bool
    """Retry it also if the process that ran it was lost; then it runs at most 3 times."""

    timeout_ms: int | None
    """The longest time that one attempt may take, ms."""

    deadline: int | None
    """When the job must have ended, all attempts and pauses included, epoch ms."""

    ttl_ms: int | None
    """Skip it if it has not started this long after it became due, ms."""

    grace_ms: int
    """The time from SIGTERM to SIGKILL when it is stopped, ms. Default: 5000 ms; at most 60000 ms."""

    on_interrupt: OnInterrupt | None
    """If the daemon stops or dies while it runs: run it again (requeue), or end it as FAILED (fail). Default:
    `fail` for a command, `requeue` for a task.
    """

    source: str | None
    """The file or project that defines the task where it is enqueued; the task of another one is never run."""

    schedule: Schedule | None
    """When it becomes due. Default: immediately."""

    on_duplicate: OnDuplicate | None
    """What happens to the live jobs of its subject: the new one replaces those that wait (supersede), also stops
    the one that runs (supersede_running), joins one that waits (join), is refused (reject), or follows them
    (after). Default: `supersede`.
    """

    durability: Durability
    """`fsync` survives a power cut, `os` any crash of a process. Default: `fsync`."""

    traceparent: str | None
    """The W3C trace it belongs to; the command finds it in TRACEPARENT."""
