"""Rows as the API shows them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from semtask.executors.base import AppStatus, WorkerStatus
from semtask.model.job import Attempt, ExecutionMode, Job
from semtask.model.redaction import hide_secrets
from semtask.model.state import WAITING, State
from semtask.protocol.apps import AppView, TaskView, WorkerView
from semtask.protocol.frames import ArtifactInfo, TaskInfo
from semtask.protocol.jobs import ArtifactView, AttemptView, ExceptionView, JobView, ProgressView, Waiting
from semtask.protocol.queues import QueueView
from semtask.store.requests import QueueRow

T = TypeVar("T")

_SHOWN_COMMAND = 200

# What has the same name in the row and in the view.
_SAME = tuple(
    name
    for name in JobView.__struct_fields__
    if name in set(Job.__struct_fields__) - {"payload", "result", "exception", "artifacts", "progress"}
)


class _CommandLine(msgspec.Struct):
    command: str = ""
    args: list[str] = []


def job_view(
    job: Job,
    *,
    waiting: Waiting | None,
    log_path: str | None,
    artifacts_dir: str,
    with_payload: bool = False,
    with_secrets: bool = False,
    with_result: bool = False,
    attempts: Sequence[Attempt] | None = None,
) -> JobView:
    """`attempts` are those that have ended, where they were asked for."""
    return JobView(
        **{name: getattr(job, name) for name in _SAME},
        pid=job.process.pid if job.process and job.state not in WAITING else None,
        command=command_line(job),
        waiting=waiting,
        log_path=log_path,
        progress=_decoded(job.progress, ProgressView),
        exception=_decoded(job.exception, ExceptionView) if with_result else None,
        artifacts=_artifacts(job.artifacts, artifacts_dir),
        result=_raw(job.result) if with_result else None,
        payload=_payload(job, with_secrets=with_secrets) if with_payload else None,
        attempts_list=None if attempts is None else _attempt_views(job, attempts),
    )


def app_view(status: AppStatus, workers: int) -> AppView:
    return AppView(
        **msgspec.structs.asdict(status.app),
        state=status.state,
        tasks=len(status.tasks),
        workers=workers,
        refused=dict(status.refused),
        error=status.error,
        traceback=status.traceback,
        conflict_with=status.conflict_with,
    )


def task_view(app: str, task: TaskInfo) -> TaskView:
    return TaskView(app=app, **msgspec.structs.asdict(task))


def worker_view(worker: WorkerStatus) -> WorkerView:
    return WorkerView(**{**msgspec.structs.asdict(worker), "running": list(worker.running)})


def _raw(text: str | None) -> msgspec.Raw | None:
    return None if text is None else msgspec.Raw(text.encode())


def _payload(job: Job, *, with_secrets: bool) -> msgspec.Raw | dict[str, Any] | None:
    """The payload; of a command with the secrets of its environment hidden, unless they are asked for."""
    if with_secrets or job.execution_mode is not ExecutionMode.SUBPROCESS:
        return _raw(job.payload)
    payload: dict[str, Any] = msgspec.json.decode(job.payload)
    return {**payload, "env": hide_secrets(payload["env"])} if "env" in payload else payload


def _decoded(text: str | None, kind: type[T]) -> T | None:
    return None if text is None else msgspec.json.decode(text, type=kind)


def _artifacts(text: str | None, folder: str) -> list[ArtifactView] | None:
    if text is None:
        return None
    infos = msgspec.json.decode(text, type=list[ArtifactInfo])
    return [ArtifactView(**{**msgspec.structs.asdict(info), "path": os.path.join(folder, info.path)}) for info in infos]


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


def _attempt_views(job: Job, ended: Sequence[Attempt]) -> list[AttemptView]:
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
        sandbox=row.sandbox,
        scheduled=counts[State.SCHEDULED],
        queued=counts[State.QUEUED],
        running=counts[State.RUNNING],
        done=counts[State.DONE],
        failed=counts[State.FAILED],
        cancelled=counts[State.CANCELLED],
        superseded=counts[State.SUPERSEDED],
        skipped=counts[State.SKIPPED_TTL] + counts[State.SKIPPED_DEADLINE],
    )
