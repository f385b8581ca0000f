"""What the clients can ask for: one function for each of their methods, which says what is sent and what comes back.

`Client` and `AsyncClient` have these functions as methods; all they add is the connection.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeVar, Unpack

import msgspec
from msgspec import UNSET, UnsetType

from semtask import errors
from semtask.client.http import DEFAULT_TIMEOUT, READS
from semtask.client.keywords import EnqueueKeywords
from semtask.client.messages import TAIL, WAIT, Request
from semtask.model.job import JobSpec, QueueClass
from semtask.model.option import declared
from semtask.model.sandbox import SandboxLevel
from semtask.model.state import State
from semtask.protocol.admin import Maintained, MaintenanceParams, StartDaemonParams, StartedDaemon, Stats
from semtask.protocol.apps import Apps, AppView, ReloadAppsParams, Tasks, TaskView, Workers, WorkerView
from semtask.protocol.enqueue import Enqueued, EnqueuedMany, EnqueueManyParams, EnqueueParams
from semtask.protocol.fields import NoParams, Params
from semtask.protocol.jobs import (
    Cancelled,
    CancelParams,
    GetJobParams,
    JobView,
    QueriedJobs,
    QueryFilter,
    QueryJobsParams,
    Retried,
    RetryParams,
    Waited,
    WaitParams,
)
from semtask.protocol.logs import TailedChunk, TailedLines, TailParams
from semtask.protocol.queues import ConfigureQueueParams, QueueParams, Queues, QueueView

R = TypeVar("R")
MAINTENANCE_LIMIT_MS = 600_000


class _Answer(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class Call(Generic[R]):
    """A request of one method, and how its result is read. `wait_ms`: how long the daemon may take over it."""

    method: str
    params: Params
    read: Callable[[msgspec.Raw], R]
    has_key: bool = False
    wait_ms: int = 0

    @property
    def body(self) -> bytes:
        return msgspec.json.encode(self.params)

    @property
    def timeout(self) -> float:
        """Seconds for the whole exchange."""
        return DEFAULT_TIMEOUT + self.wait_ms / 1000

    @property
    def repeatable(self) -> bool:
        """Whether it may be sent again when its answer was lost."""
        return self.has_key or self.method in READS

    def result(self, response: bytes) -> R:
        """What the JSON-RPC response says. Raises the class of `errors.py` for its error code."""
        answer = msgspec.json.decode(response, type=_Answer)
        if answer.error is not None:
            raise errors.from_wire(answer.error)
        return self.read(answer.result)


def _decode(kind: type[R], raw: msgspec.Raw) -> R:
    return msgspec.json.decode(raw, type=kind)


def _as(kind: type[R]) -> Callable[[msgspec.Raw], R]:
    return partial(_decode, kind)


# --- enqueue ---------------------------------------------------------------------------------------------------------


def enqueue(job_type: str, payload: Any, **options: Unpack[EnqueueKeywords]) -> Call[Enqueued]:
    """Store a job; once this returns, it survives any crash. `payload` is anything that JSON can hold.

    With an `idempotency_key` the request is repeated if its answer gets lost; it still makes one job. `max_attempts`
    counts executions: 1 means no retry. `timeout_ms` is for each attempt, `deadline` (epoch ms) for the whole job,
    `ttl_ms` for the time until it starts. `on_duplicate` says what happens to live jobs of the same `subject_key`.
    With a `source` (`source` of `tasks.list.v1`) only the project that defines the task runs it.
    """
    params = EnqueueParams(job_type=job_type, payload=_raw(payload), **options)
    return Call("dev.enqueue.v1", params, _as(Enqueued), has_key=params.idempotency_key is not None)


def _spell_out(function: Callable[..., Any]) -> None:
    """Show the keywords of the options to help() and notebooks, which know nothing of a TypedDict."""
    wanted = inspect.signature(function)
    parameters = [one for one in wanted.parameters.values() if one.kind is not one.VAR_KEYWORD]
    for option in declared(JobSpec):
        if (kind := EnqueueKeywords.__annotations__.get(option.name)) is not None:
            about: Any = {"default": option.default, "annotation": kind.__forward_arg__}
            parameters.append(inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, **about))
    function.__signature__ = wanted.replace(parameters=parameters)  # type: ignore[attr-defined]


_spell_out(enqueue)


def enqueue_many(jobs: Sequence[EnqueueParams | Mapping[str, Any]]) -> Call[list[Enqueued]]:
    """Store up to 10,000 jobs in one transaction, all or none. A job is EnqueueParams or a mapping like it."""
    members = [job if isinstance(job, EnqueueParams) else _enqueue_params(job) for job in jobs]
    keyed = all(job.idempotency_key is not None for job in members)
    params = EnqueueManyParams(jobs=members)
    return Call("dev.enqueue_many.v1", params, lambda raw: _decode(EnqueuedMany, raw).jobs, has_key=keyed)


# --- look ------------------------------------------------------------------------------------------------------------


def get_job(
    job_id: str, *, include: Sequence[Literal["payload", "secrets", "attempts", "result"]] = ()
) -> Call[JobView]:
    """One job; `include` adds its payload, its attempts, or its result with the exception."""
    return Call("dev.get_job.v1", GetJobParams(job_id=job_id, include=list(include)), _as(JobView))


def query_jobs(
    *,
    state: Sequence[State] = (),
    queue: Sequence[str] = (),
    job_type: str | UnsetType = UNSET,
    tag: str | UnsetType = UNSET,
    chain_group_id: str | UnsetType = UNSET,
    created_after: int | UnsetType = UNSET,
    id_suffix: str | UnsetType = UNSET,
    subject_key_prefix: str | UnsetType = UNSET,
    sort: Literal["newest", "oldest"] = "newest",
    limit: int = 50,
    cursor: str | UnsetType = UNSET,
) -> Call[QueriedJobs]:
    """One page of jobs that match all filters; `next_cursor` of the answer leads to the next page."""
    wanted = QueryFilter(
        state=list(state),
        queue=list(queue),
        job_type=job_type,
        tag=tag,
        chain_group_id=chain_group_id,
        created_after=created_after,
        id_suffix=id_suffix,
        subject_key_prefix=subject_key_prefix,
    )
    params = QueryJobsParams(filter=wanted, sort=sort, limit=limit, cursor=cursor)
    return Call("dev.query_jobs.v1", params, _as(QueriedJobs))


def wait(
    job_ids: Sequence[str],
    *,
    mode: Literal["any", "all"] = "all",
    timeout_ms: int = 30_000,
    include: Sequence[Literal["result"]] = (),
) -> Call[Waited]:
    """Wait until any or all of the jobs have ended. After `timeout_ms` (at most 60,000) `timed_out` is set.

    `include` adds their results, with the exceptions.
    """
    params = WaitParams(job_ids=list(job_ids), mode=mode, timeout_ms=timeout_ms, include=list(include))
    return Call("dev.wait.v1", params, _as(Waited), wait_ms=timeout_ms)


def tail_lines(
    job_id: str,
    *,
    lines: int = 50,
    attempt: int | UnsetType = UNSET,
    stream: Literal["stdout", "stderr"] = "stdout",
) -> Call[TailedLines]:
    """The last lines of a job's output."""
    params = TailParams(job_id=job_id, lines=lines, attempt=attempt, stream=stream)
    return Call("logs.tail.v1", params, _as(TailedLines))


def read_log(
    job_id: str,
    *,
    offset: int = 0,
    attempt: int | UnsetType = UNSET,
    stream: Literal["stdout", "stderr"] = "stdout",
    limit: int = 65_536,
    wait_ms: int = 0,
) -> Call[TailedChunk]:
    """Output from byte `offset` on (negative: from the end). With `wait_ms` it waits for new bytes or the end."""
    params = TailParams(job_id=job_id, offset=offset, attempt=attempt, stream=stream, limit=limit, wait_ms=wait_ms)
    return Call("logs.tail.v1", params, _as(TailedChunk), wait_ms=wait_ms)


# --- change ----------------------------------------------------------------------------------------------------------


def cancel(
    job_id: str | UnsetType = UNSET,
    *,
    tag: str | UnsetType = UNSET,
    chain_group_id: str | UnsetType = UNSET,
    grace_ms: int | UnsetType = UNSET,
) -> Call[Cancelled]:
    """Cancel a job, or all live jobs of a tag or group. A running job ends later: see `wait`."""
    params = CancelParams(job_id=job_id, tag=tag, chain_group_id=chain_group_id, grace_ms=grace_ms)
    return Call("dev.cancel.v1", params, _as(Cancelled))


def retry(
    job_id: str | UnsetType = UNSET,
    *,
    tag: str | UnsetType = UNSET,
    chain_group_id: str | UnsetType = UNSET,
    queue: str | UnsetType = UNSET,
) -> Call[Retried]:
    """Enqueue a copy of a finished job, or of the failed jobs of a tag, a group or a queue: again while `more`."""
    params = RetryParams(job_id=job_id, tag=tag, chain_group_id=chain_group_id, queue=queue)
    return Call("dev.retry.v1", params, _as(Retried))


# --- apps, tasks, workers --------------------------------------------------------------------------------------------


def list_apps() -> Call[list[AppView]]:
    """The apps of the daemon, and whether they could be imported."""
    return Call("apps.list.v1", NoParams(), _apps)


def reload_apps(app: str | UnsetType = UNSET, *, wait_ms: int = 0) -> Call[list[AppView]]:
    """Read the list of apps again and import all of them again, or the one named `app`.

    With `wait_ms` (at most 60,000) the answer waits until each of them was imported or failed.
    """
    return Call("apps.reload.v1", ReloadAppsParams(app=app, wait_ms=wait_ms), _apps, wait_ms=wait_ms)


def list_tasks() -> Call[list[TaskView]]:
    """The registered tasks with their signatures."""
    return Call("tasks.list.v1", NoParams(), lambda raw: _decode(Tasks, raw).tasks)


def list_workers() -> Call[list[WorkerView]]:
    """The worker processes."""
    return Call("workers.list.v1", NoParams(), lambda raw: _decode(Workers, raw).workers)


# --- queues and the daemon -------------------------------------------------------------------------------------------


def list_queues() -> Call[list[QueueView]]:
    """All queues with their counts."""
    return Call("queues.list.v1", NoParams(), lambda raw: _decode(Queues, raw).queues)


def pause_queue(queue: str) -> Call[QueueView]:
    """Start no more jobs of a queue."""
    return Call("queues.pause.v1", QueueParams(queue=queue), _as(QueueView))


def resume_queue(queue: str) -> Call[QueueView]:
    """Start jobs of a queue again."""
    return Call("queues.resume.v1", QueueParams(queue=queue), _as(QueueView))


def configure_queue(
    queue: str,
    *,
    concurrency: int | UnsetType | None = UNSET,
    class_: QueueClass | UnsetType = UNSET,
    sandbox: SandboxLevel | UnsetType = UNSET,
) -> Call[QueueView]:
    """Set how many jobs of a queue may run simultaneously (None: the default), how it yields to people, or the weakest
    sandbox of its commands.
    """
    params = ConfigureQueueParams(queue=queue, concurrency=concurrency, class_=class_, sandbox=sandbox)
    return Call("queues.configure.v1", params, _as(QueueView))


def stats() -> Call[Stats]:
    """Counts, queues, limits and counters of the daemon."""
    return Call("admin.stats.v1", NoParams(), _as(Stats))


def maintenance(*, force_vacuum: bool = False) -> Call[Maintained]:
    """Delete what is over its retention now, and give free space back to the file system."""
    params = MaintenanceParams(force_vacuum=force_vacuum)
    return Call("admin.maintenance.v1", params, _as(Maintained), wait_ms=MAINTENANCE_LIMIT_MS)


def start_daemon(env: Mapping[str, str], *, umask: int = 0o077) -> Call[StartedDaemon]:
    """Have this daemon start the one of another home, SEMANTICA_HOME in `env`; it outlives the job that asks for it."""
    params = StartDaemonParams(env=dict(env), umask=umask)
    return Call("admin.start_daemon.v1", params, _as(StartedDaemon))


def discover() -> Call[dict[str, Any]]:
    """The API as an OpenRPC document."""
    return Call("rpc.discover", NoParams(), _as(dict[str, Any]))


_BUILDERS: dict[str, Callable[..., Call[Any]]] = {WAIT.name: wait, TAIL.name: read_log}


def call_of(request: Request[R]) -> Call[R]:
    """The request of one who waits for a job or reads its output, as a call: its answer is read by msgspec."""
    return _BUILDERS[request.method](**request.params)


def _apps(raw: msgspec.Raw) -> list[AppView]:
    return _decode(Apps, raw).apps


def _raw(payload: Any) -> msgspec.Raw:
    if isinstance(payload, msgspec.Raw):
        return payload
    try:
        return msgspec.Raw(msgspec.json.encode(payload))
    except (TypeError, ValueError, RecursionError) as error:
        raise errors.ValidationError(f"the payload cannot be sent as JSON: {error}") from error


def _enqueue_params(job: Mapping[str, Any]) -> EnqueueParams:
    try:
        return EnqueueParams(**{**job, "payload": _raw(job["payload"])})
    except (TypeError, KeyError) as error:
        raise errors.ValidationError(f"this is no job to enqueue: {error}") from error
