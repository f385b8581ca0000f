"""The Python client: one typed method per method of the API."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from semtask import config, errors
from semtask.client import autostart as starter
from semtask.client.transport import DEFAULT_TIMEOUT, Notice, NotRunning, Transport, address_of, print_notice
from semtask.model.job import Durability, ExecutionMode, OnInterrupt
from semtask.model.state import State
from semtask.protocol.messages import (
    METHODS,
    Cancelled,
    CancelParams,
    ConfigureQueueParams,
    Enqueued,
    EnqueuedMany,
    EnqueueManyParams,
    EnqueueParams,
    GetJobParams,
    JobView,
    NoParams,
    Params,
    QueriedJobs,
    QueryFilter,
    QueryJobsParams,
    QueueParams,
    Queues,
    QueueView,
    Schedule,
    Stats,
    TailedChunk,
    TailedLines,
    TailParams,
    Waited,
    WaitParams,
)

R = TypeVar("R")


class _Answer(msgspec.Struct):
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: dict[str, Any] | None = None


class Client:
    """A connection to the daemon of one home. Not thread-safe: make one per thread; it costs a socket.

    `home` and `autostart` go before the settings; `url` (http://127.0.0.1:port) before SEMANTICA_RPC_URL and the unix
    socket. Nothing is opened, and no daemon started, before the first request.

    Every method raises the class of `semtask.errors` that stands for the daemon's error code, and DaemonUnavailable
    if none answers. Times are epoch milliseconds, durations milliseconds. A parameter that is left out is not sent.
    """

    def __init__(
        self,
        home: str | os.PathLike[str] | None = None,
        url: str | None = None,
        autostart: bool | None = None,
        *,
        notice: Notice = print_notice,
    ) -> None:
        self._settings = config.load(flags={"home": home, "autostart": autostart})
        self._notice = notice
        self._transport = Transport(address_of(self._settings, url), notice=notice)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. The next request opens another one."""
        self._transport.close()

    def enqueue(
        self,
        job_type: str,
        payload: Any,
        *,
        queue: str = "default",
        execution_mode: ExecutionMode | UnsetType = UNSET,
        priority: int = 0,
        schedule: Schedule | UnsetType = UNSET,
        grace_ms: int = 5000,
        tag: str | UnsetType = UNSET,
        chain_group_id: str | UnsetType = UNSET,
        parent_job_id: str | UnsetType = UNSET,
        traceparent: str | UnsetType = UNSET,
        idempotency_key: str | UnsetType = UNSET,
        on_interrupt: OnInterrupt | UnsetType = UNSET,
        durability: Durability = Durability.FSYNC,
    ) -> Enqueued:
        """Store a job; once this returns, it survives any crash. `payload` is anything that JSON can hold.

        With an `idempotency_key` the request is repeated if its answer gets lost; it still makes one job.
        """
        params = EnqueueParams(
            job_type=job_type,
            payload=_raw(payload),
            queue=queue,
            execution_mode=execution_mode,
            priority=priority,
            schedule=schedule,
            grace_ms=grace_ms,
            tag=tag,
            chain_group_id=chain_group_id,
            parent_job_id=parent_job_id,
            traceparent=traceparent,
            idempotency_key=idempotency_key,
            on_interrupt=on_interrupt,
            durability=durability,
        )
        return self._call("dev.enqueue.v1", params, Enqueued, repeatable=idempotency_key is not UNSET)

    def enqueue_many(self, jobs: Sequence[EnqueueParams | Mapping[str, Any]]) -> list[Enqueued]:
        """Store up to 10,000 jobs in one transaction, all or none. A job is EnqueueParams or a mapping like it."""
        members = [job if isinstance(job, EnqueueParams) else _enqueue_params(job) for job in jobs]
        keyed = all(job.idempotency_key is not UNSET for job in members)
        params = EnqueueManyParams(jobs=members)
        return self._call("dev.enqueue_many.v1", params, EnqueuedMany, repeatable=keyed).jobs

    def get_job(self, job_id: str, *, include: Sequence[Literal["payload", "attempts"]] = ()) -> JobView:
        """One job; `include` adds its payload or its ended attempts."""
        return self._read("dev.get_job.v1", GetJobParams(job_id=job_id, include=list(include)), JobView)

    def query_jobs(
        self,
        *,
        state: Sequence[State] = (),
        queue: Sequence[str] = (),
        job_type: str | UnsetType = UNSET,
        tag: str | UnsetType = UNSET,
        chain_group_id: str | UnsetType = UNSET,
        created_after: int | UnsetType = UNSET,
        id_suffix: str | UnsetType = UNSET,
        sort: Literal["newest", "oldest"] = "newest",
        limit: int = 50,
        cursor: str | UnsetType = UNSET,
    ) -> QueriedJobs:
        """One page of jobs that match all filters; `next_cursor` of the answer leads to the next page."""
        wanted = QueryFilter(
            state=list(state),
            queue=list(queue),
            job_type=job_type,
            tag=tag,
            chain_group_id=chain_group_id,
            created_after=created_after,
            id_suffix=id_suffix,
        )
        params = QueryJobsParams(filter=wanted, sort=sort, limit=limit, cursor=cursor)
        return self._read("dev.query_jobs.v1", params, QueriedJobs)

    def wait(self, job_ids: Sequence[str], *, mode: Literal["any", "all"] = "all", timeout_ms: int = 30_000) -> Waited:
        """Wait until any or all of the jobs have ended. After `timeout_ms` (at most 60,000) `timed_out` is set."""
        params = WaitParams(job_ids=list(job_ids), mode=mode, timeout_ms=timeout_ms)
        return self._read("dev.wait.v1", params, Waited, wait_ms=timeout_ms)

    def cancel(
        self,
        job_id: str | UnsetType = UNSET,
        *,
        tag: str | UnsetType = UNSET,
        chain_group_id: str | UnsetType = UNSET,
        grace_ms: int | UnsetType = UNSET,
    ) -> Cancelled:
        """Cancel a job, or all live jobs of a tag or group. A running job ends later: see `wait`."""
        params = CancelParams(job_id=job_id, tag=tag, chain_group_id=chain_group_id, grace_ms=grace_ms)
        return self._call("dev.cancel.v1", params, Cancelled)

    def tail_lines(
        self,
        job_id: str,
        *,
        lines: int = 50,
        attempt: int | UnsetType = UNSET,
        stream: Literal["stdout", "stderr"] = "stdout",
    ) -> TailedLines:
        """The last lines of a job's output."""
        params = TailParams(job_id=job_id, lines=lines, attempt=attempt, stream=stream)
        return self._read("logs.tail.v1", params, TailedLines)

    def read_log(
        self,
        job_id: str,
        *,
        offset: int = 0,
        attempt: int | UnsetType = UNSET,
        stream: Literal["stdout", "stderr"] = "stdout",
        limit: int = 65_536,
        wait_ms: int = 0,
    ) -> TailedChunk:
        """Output from byte `offset` on (negative: from the end). With `wait_ms` it waits for new bytes or the end."""
        params = TailParams(job_id=job_id, offset=offset, attempt=attempt, stream=stream, limit=limit, wait_ms=wait_ms)
        return self._read("logs.tail.v1", params, TailedChunk, wait_ms=wait_ms)

    def list_queues(self) -> list[QueueView]:
        """All queues with their counts."""
        return self._read("queues.list.v1", NoParams(), Queues).queues

    def pause_queue(self, queue: str) -> QueueView:
        """Start no more jobs of a queue."""
        return self._call("queues.pause.v1", QueueParams(queue=queue), QueueView)

    def resume_queue(self, queue: str) -> QueueView:
        """Start jobs of a queue again."""
        return self._call("queues.resume.v1", QueueParams(queue=queue), QueueView)

    def configure_queue(self, queue: str, *, concurrency: int | UnsetType | None = UNSET) -> QueueView:
        """Set how many jobs of a queue may run at once; None returns to the daemon's default."""
        params = ConfigureQueueParams(queue=queue, concurrency=concurrency)
        return self._call("queues.configure.v1", params, QueueView)

    def stats(self) -> Stats:
        """Counts, queues, limits and counters of the daemon."""
        return self._read("admin.stats.v1", NoParams(), Stats)

    def discover(self) -> dict[str, Any]:
        """The API as an OpenRPC document."""
        return self._read("rpc.discover", NoParams(), dict[str, Any])

    def _read(self, method: str, params: Params, result: type[R], *, wait_ms: int = 0) -> R:
        return self._call(method, params, result, repeatable=True, wait_ms=wait_ms)

    def _call(self, method: str, params: Params, result: type[R], *, repeatable: bool = False, wait_ms: int = 0) -> R:
        assert method in METHODS
        body = msgspec.json.encode(params)
        timeout = DEFAULT_TIMEOUT + wait_ms / 1000
        try:
            raw = self._transport.exchange(method, body, timeout=timeout, repeatable=repeatable)
        except NotRunning:
            if not self._settings.autostart:
                raise
            starter.start(self._settings, self._transport, self._notice)  # nothing was sent yet
            raw = self._transport.exchange(method, body, timeout=timeout, repeatable=repeatable)
        answer = msgspec.json.decode(raw, type=_Answer)
        if answer.error is not None:
            raise errors.from_wire(answer.error)
        return msgspec.json.decode(answer.result, type=result)


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
