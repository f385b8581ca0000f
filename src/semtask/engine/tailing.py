"""Reading the output of a job, and waiting for more of it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

from msgspec import UNSET

from semtask.engine.changes import Changes
from semtask.engine.waits import NOBODY, Waiter, Waits
from semtask.errors import NotFound, SystemFailure, ValidationError
from semtask.host.clocks import Clock
from semtask.model.job import ExecutionMode, Job
from semtask.model.state import FINAL, State
from semtask.protocol.logs import TailedChunk, TailedLines, TailParams
from semtask.store.base import Store

DEFAULT_LINES = 50

Stream = Literal["stdout", "stderr"]


class Chunk(Protocol):
    """A piece of a log: see executors.output."""

    @property
    def data(self) -> bytes: ...
    @property
    def next_offset(self) -> int: ...
    @property
    def omitted_bytes(self) -> int: ...
    @property
    def size(self) -> int: ...


class Logs(Protocol):
    """The logs of attempts: see executors.output."""

    def path(self, job_id: str, claim_no: int, stream: Stream) -> Path: ...
    def read(self, job_id: str, claim_no: int, stream: Stream, offset: int, limit: int) -> Chunk: ...
    def last_lines(self, job_id: str, claim_no: int, stream: Stream, n: int) -> list[str]: ...
    async def wait_for_growth(
        self, job_id: str, claim_no: int, stream: Stream, beyond: int, timeout_s: float
    ) -> None: ...


class Tailing:
    """`logs.tail.v1` in both of its forms."""

    def __init__(self, store: Store, logs: Logs, changes: Changes, clock: Clock, waits: Waits) -> None:
        self._store = store
        self._logs = logs
        self._changes = changes
        self._clock = clock
        self._waits = waits

    def log_path(self, job: Job) -> str | None:
        """Where the newest attempt writes; None if there was none, or it is a task that wrote nothing."""
        if job.claim_no == 0:
            return None
        path = self._logs.path(job.job_id, job.claim_no, "stdout")
        return str(path) if job.execution_mode is ExecutionMode.SUBPROCESS or path.exists() else None

    async def tail(self, params: TailParams, waiter: Waiter = NOBODY) -> TailedLines | TailedChunk:
        if params.lines is not UNSET and params.offset is not UNSET:
            raise ValidationError("`lines` and `offset` exclude each other", details={"parameter": "lines"})
        try:
            if params.offset is UNSET:
                return await self._tail_lines(params, DEFAULT_LINES if params.lines is UNSET else params.lines)
            return await self._tail_chunk(params, params.offset, waiter)
        except OSError as error:
            raise SystemFailure(
                f"the log of job {params.job_id} cannot be read: {error.strerror}", details={"job_id": params.job_id}
            ) from error

    async def _tail_lines(self, params: TailParams, lines: int) -> TailedLines:
        job = await self._job(params.job_id)
        attempt = _attempt_of(job, params)
        if attempt == 0:
            return TailedLines(job_id=job.job_id, log_path=None, lines=[])
        return TailedLines(
            job_id=job.job_id,
            log_path=str(self._logs.path(job.job_id, attempt, params.stream)),
            # In a thread: it may have to read megabytes.
            lines=await asyncio.to_thread(self._logs.last_lines, job.job_id, attempt, params.stream, lines),
        )

    async def _tail_chunk(self, params: TailParams, offset: int, waiter: Waiter) -> TailedChunk:
        end = self._clock.monotonic() + params.wait_ms / 1000
        with self._changes.watch(params.job_id) as watch, ExitStack() as waiting:
            while True:
                job = await self._job(params.job_id)
                attempt = _attempt_of(job, params)
                # The state is read before the log: if the attempt had ended by then, the log is whole.
                ended = job.state in FINAL or (attempt > 0 and not _runs(job, attempt))
                answer = self._chunk(job, attempt, params, offset, ended=ended)
                left = end - self._clock.monotonic()
                if answer.chunk or answer.omitted_bytes or ended or left <= 0:
                    return answer
                if waiter is not NOBODY:
                    waiting.enter_context(self._waits.during(waiter, [job], enough=1, follows=True))
                    waiter = NOBODY  # said once
                if attempt == 0:
                    await watch.changed(left)
                else:
                    await _first_of(
                        self._logs.wait_for_growth(job.job_id, attempt, params.stream, answer.next_offset, left),
                        watch.changed(left),
                    )

    def _chunk(self, job: Job, attempt: int, params: TailParams, offset: int, *, ended: bool) -> TailedChunk:
        if attempt == 0:
            return TailedChunk(
                chunk="", encoding="utf-8", next_offset=max(offset, 0), eof=ended, omitted_bytes=0, attempt=0
            )
        chunk = self._logs.read(job.job_id, attempt, params.stream, offset, params.limit)
        last = ended and chunk.next_offset >= chunk.size
        text, encoding, held_back = _as_text(chunk.data, last=last)
        return TailedChunk(
            chunk=text,
            encoding=encoding,
            next_offset=chunk.next_offset - held_back,
            eof=last,
            omitted_bytes=chunk.omitted_bytes,
            attempt=attempt,
        )

    async def _job(self, job_id: str) -> Job:
        job = await self._store.get(job_id)
        if job is None:
            raise NotFound(f"there is no job {job_id}", details={"job_id": job_id})
        return job


async def _first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait for the first of them; the others are cancelled."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _as_text(data: bytes, *, last: bool) -> tuple[str, Literal["utf-8", "base64"], int]:
    """Text if it is UTF-8, else base64; and how many bytes are left for the next chunk, whose character they begin."""
    try:
        return data.decode(), "utf-8", 0
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data" and error.start > 0 and not last:
            return data[: error.start].decode(), "utf-8", len(data) - error.start
        return base64.b64encode(data).decode(), "base64", 0


def _runs(job: Job, attempt: int) -> bool:
    return job.state is State.RUNNING and job.claim_no == attempt


def _attempt_of(job: Job, params: TailParams) -> int:
    """The claim_no to read: the one asked for, else the newest; 0 if nothing was ever claimed."""
    if params.attempt is UNSET:
        return job.claim_no
    if params.attempt > job.claim_no:
        newest = f"the newest is {job.claim_no}" if job.claim_no else "it was never started"
        raise NotFound(
            f"job {job.job_id} has no attempt {params.attempt}; {newest}",
            details={"job_id": job.job_id, "attempt": params.attempt},
        )
    return params.attempt
