"""Rows as the API shows them."""

from __future__ import annotations

import msgspec

from semtask.model.job import Attempt, ExecutionMode, Job
from semtask.model.state import WAITING, State
from semtask.protocol.messages import AttemptView, JobView, QueueView, Waiting
from semtask.store.base import QueueRow

_SHOWN_COMMAND = 200

# What stands under the same name in the row and in the view.
_SAME = tuple(name for name in JobView.__struct_fields__ if name in set(Job.__struct_fields__) - {"payload"})


class _CommandLine(msgspec.Struct):
    command: str = ""
    args: list[str] = []


def job_view(job: Job, *, waiting: Waiting | None, log_path: str | None, with_payload: bool = False) -> JobView:
    return JobView(
        **{name: getattr(job, name) for name in _SAME},
        pid=job.process.pid if job.process and job.state not in WAITING else None,
        command=command_line(job),
        waiting=waiting,
        log_path=log_path,
        payload=msgspec.Raw(job.payload.encode()) if with_payload else None,
    )


def command_line(job: Job) -> str | None:
    """The program and its arguments for people, cut to a length that fits a table; None for a task."""
    if job.execution_mode is not ExecutionMode.SUBPROCESS:
        return None
    import shlex

    try:
        payload = msgspec.json.decode(job.payload, type=_CommandLine)
    except msgspec.MsgspecError:
        return None
    words: list[str] = []
    length = 0
    for word in (payload.command, *payload.args):
        words.append(shlex.quote(word[:_SHOWN_COMMAND]))
        length += len(words[-1]) + 1
        if length > _SHOWN_COMMAND:
            return " ".join(words)[:_SHOWN_COMMAND] + "..."
    return " ".join(words)


def attempt_views(job: Job, ended: list[Attempt]) -> list[AttemptView]:
    """The ended attempts, and the present one of a running job."""
    views = [msgspec.convert(a, AttemptView, from_attributes=True) for a in ended]
    if job.state is State.RUNNING and job.started_at is not None:
        views.append(
            AttemptView(
                claim_no=job.claim_no,
                started_at=job.started_at,
                stop_reason=job.stop_reason,
                pid=job.process.pid if job.process else None,
            )
        )
    return views


def queue_view(row: QueueRow, default_concurrency: int) -> QueueView:
    counts = row.counts
    return QueueView(
        name=row.name,
        paused=row.paused,
        concurrency=row.concurrency or default_concurrency,
        class_=row.queue_class,
        scheduled=counts[State.SCHEDULED],
        queued=counts[State.QUEUED],
        running=counts[State.RUNNING],
        done=counts[State.DONE],
        failed=counts[State.FAILED],
        cancelled=counts[State.CANCELLED],
        superseded=counts[State.SUPERSEDED],
        skipped=counts[State.SKIPPED_TTL] + counts[State.SKIPPED_DEADLINE],
    )
