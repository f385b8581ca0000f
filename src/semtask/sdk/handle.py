"""A job that was enqueued: its state, its result, its output."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

from msgspec import UNSET

from semtask.client import calls
from semtask.client.calls import Call
from semtask.model.state import FINAL, State
from semtask.protocol.jobs import ArtifactView, Cancelled, ExceptionView, JobView, ProgressView
from semtask.sdk import log_lines
from semtask.sdk.connection import Connection
from semtask.sdk.log_lines import Stream
from semtask.sdk.waiting import await_end, wait_for_end
from semtask.tasks.context import current_or_none
from semtask.tasks.options import Seconds, milliseconds

R_co = TypeVar("R_co", covariant=True)


class JobHandle(Generic[R_co]):
    """A job, by its id. `await handle` is its result, as of `aresult()`.

    `deduplicated`: the enqueue found it, by its idempotency key or its subject. All methods raise NotFound once the
    job was deleted, and DaemonUnavailable where none answers; what waits first gives a daemon that is being restarted
    some time. A task that waits for a job here does not count in the limits of its queue meanwhile.
    """

    __slots__ = ("_connection", "_read", "deduplicated", "id")

    def __init__(
        self, connection: Connection, job_id: str, read: Callable[[JobView], R_co], *, deduplicated: bool = False
    ) -> None:
        self._connection = connection
        self._read = read
        self.id = job_id
        self.deduplicated = deduplicated

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    # --- the result -------------------------------------------------------------------------------------------------

    def result(self, timeout: float | None = None) -> R_co:
        """Wait for the end of the job and return its result.

        Raises JobFailed (JobTimeout if its time limit ended it), JobCancelled, JobSuperseded or JobExpired; and the
        builtin TimeoutError if the job has not ended within `timeout` seconds: it goes on. It goes on after a
        KeyboardInterrupt (Ctrl-C) as well; `cancel()` stops it.

        If nobody can run the job (no app offers its task, the queue is paused), a warning of the logger `semtask` says
        so after two seconds, with the next step; on stderr where no logging is set up.
        """
        return self._read(self._ended(timeout))

    async def aresult(self, timeout: float | None = None) -> R_co:
        return self._read(await self._aended(timeout))

    def __await__(self) -> Generator[Any, Any, R_co]:
        return self.aresult().__await__()

    def wait(self, timeout: float | None = None) -> State:
        """Wait for the end of the job, however it ends. Raises TimeoutError as `result` does."""
        return self._ended(timeout).state

    async def await_end(self, timeout: float | None = None) -> State:
        return (await self._aended(timeout)).state

    def _ended(self, timeout: float | None) -> JobView:
        if current_or_none() is not None and (job := self.info()).state in FINAL:
            return job
        with self._blocking():
            return wait_for_end(self._connection, self.id, timeout)

    async def _aended(self, timeout: float | None) -> JobView:
        if current_or_none() is not None and (job := await self.ainfo()).state in FINAL:
            return job
        with self._blocking():
            return await await_end(self._connection, self.id, timeout)

    def _blocking(self) -> AbstractContextManager[None]:
        job = current_or_none()
        return nullcontext() if job is None or job.ended else job.blocked([self.id])

    # --- looking at it ----------------------------------------------------------------------------------------------

    def info(self) -> JobView:
        """All that the daemon knows about the job, with its attempts and its result."""
        return self._connection.send(self._look())

    async def ainfo(self) -> JobView:
        return await self._connection.asend(self._look())

    def _look(self) -> Call[JobView]:
        return calls.get_job(self.id, include=["attempts", "result"])

    def state(self) -> State:
        return self.info().state

    async def astate(self) -> State:
        return (await self.ainfo()).state

    def progress(self) -> ProgressView | None:
        """How far the task says it is; None if it says nothing."""
        return self.info().progress

    async def aprogress(self) -> ProgressView | None:
        return (await self.ainfo()).progress

    def exception(self) -> ExceptionView | None:
        """What the last attempt that failed raised, with its traceback and cause; None otherwise."""
        return self.info().exception

    async def aexception(self) -> ExceptionView | None:
        return (await self.ainfo()).exception

    def artifacts(self) -> list[ArtifactView]:
        """The files that the job keeps. A large result is one of them."""
        return self.info().artifacts or []

    async def aartifacts(self) -> list[ArtifactView]:
        return (await self.ainfo()).artifacts or []

    def logs(self, *, follow: bool = False, stream: Stream = "stdout") -> Iterator[str]:
        """The lines of its output, of the newest attempt; with `follow` until the job has ended, retries included.

        `stream` is for commands that were started with stderr="split".
        """
        return log_lines.read_lines(self._connection, self.id, stream, follow_it=follow)

    def alogs(self, *, follow: bool = False, stream: Stream = "stdout") -> AsyncIterator[str]:
        waiting = self._blocking if follow else nullcontext
        return log_lines.aread_lines(self._connection, self.id, stream, waiting, follow_it=follow)

    # --- ending it --------------------------------------------------------------------------------------------------

    def cancel(self, *, grace: Seconds | None = None) -> bool:
        """Cancel the job; false if it had ended. A running one ends later: `wait` for it.

        `grace`: how long it is given to end by itself, in place of its own grace.
        """
        return self._connection.send(self._cancel(grace)).cancelled

    async def acancel(self, *, grace: Seconds | None = None) -> bool:
        return (await self._connection.asend(self._cancel(grace))).cancelled

    def _cancel(self, grace: Seconds | None) -> Call[Cancelled]:
        grace_ms = milliseconds("grace", grace)
        return calls.cancel(self.id, grace_ms=UNSET if grace_ms is None else grace_ms)
