"""What the fixture `semantica` gives to a test."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from semtask.client import calls
from semtask.client.calls import Call
from semtask.client.http import request
from semtask.model.job import ExecutionMode, Job
from semtask.model.state import FINAL, State
from semtask.protocol.jobs import JobView, Waited, WaitParams
from semtask.protocol.logs import TailParams
from semtask.sdk.failures import failure_of
from semtask.sdk.task import AsyncTask, Task
from semtask.tasks.codec import BadPayload
from semtask.tasks.options import Seconds, milliseconds
from semtask.tasks.registry import Registry, TaskDefinition
from semtask.testing.engine_thread import EngineThread
from semtask.testing.errors import JobNotEnded
from semtask.testing.execution import Execution

R = TypeVar("R")
AnyTask: TypeAlias = Task[..., Any] | AsyncTask[..., Any] | str

_LIMIT = 1000
_PAGE = 200
_PATIENCE_MS = 20


class InlineSemantica:
    """semtask in this process: jobs are stored, claimed, retried and expired as by a daemon, and run when the test says
    so, in the thread that says it, by a clock that the test moves.

    Every app of the process enqueues here. To wait for a job, as by handle.result(), runs what is due until it has
    ended, and raises JobNotEnded where that does not end it. Output goes where the test's own goes. A task is not
    interrupted by its timeout, which counts real time; it can see it in check_cancelled(), and its job ends by it.
    Commands (app.run) are stored and never run.
    """

    def __init__(self, home: Path) -> None:
        self._now_ms = time.time_ns() // 1_000_000
        self._thread = EngineThread(home, self._now_ms)
        self._loop: asyncio.Runner | None = None
        self._running: list[Execution] = []

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
        self._thread.stop()

    # --- time -------------------------------------------------------------------------------------------------------

    def now_ms(self) -> int:
        """What the clock shows, epoch ms."""
        return self._now_ms

    @property
    def now(self) -> datetime:
        """The time of the clock. It moves only when the test moves it, and starts at the current time."""
        return datetime.fromtimestamp(self._now_ms / 1000, UTC)

    def advance(self, duration: Seconds) -> None:
        """Let seconds, or a timedelta, pass: jobs fall due, or expire. What is due is run by `run_pending`."""
        self._move(milliseconds("advance", duration) or 0)

    def _move(self, ms: int) -> None:
        self._now_ms += ms
        self._thread.call(self._thread.engine.move(ms))

    # --- running ----------------------------------------------------------------------------------------------------

    def run_pending(self, *, check: bool = False, limit: int = _LIMIT) -> list[JobView]:
        """Run all that is due, also what that enqueues, one job after the other; the jobs that ran, as they are then.

        A job that runs twice is named twice. `check`: raises JobFailed for the first one that FAILED for good. Raises
        AssertionError after `limit` jobs.
        """
        ran: list[str] = []
        while (execution := self._next()) is not None:
            _require_less(limit, ran)
            ran.append(execution.job_id)
            self._run(execution)
        return self._views(ran, check=check)

    async def arun_pending(self, *, check: bool = False, limit: int = _LIMIT) -> list[JobView]:
        """As `run_pending`, for an async test: async tasks run on its loop."""
        ran: list[str] = []
        while (execution := await self._anext()) is not None:
            _require_less(limit, ran)
            ran.append(execution.job_id)
            await self._arun(execution)
        return self._views(ran, check=check)

    def run_all(self, *, check: bool = False, limit: int = _LIMIT) -> list[JobView]:
        """As `run_pending`; then, as long as a job waits for its time, move the clock there and go on."""
        ran = [job.job_id for job in self.run_pending(limit=limit)]
        while (due := self._thread.call(self._thread.engine.next_due())) is not None:
            self._move(max(due - self._now_ms, 0))
            ran += [job.job_id for job in self.run_pending(limit=limit - len(ran))]
        return self._views(ran, check=check)

    def _next(self) -> Execution | None:
        job = self._thread.call(self._thread.engine.take())
        return None if job is None else self._execution(job)

    async def _anext(self) -> Execution | None:
        job = await self._thread.acall(self._thread.engine.take())
        return None if job is None else self._execution(job)

    def _execution(self, job: Job) -> Execution:
        definition = self._thread.engine.workers.definition(job.job_type)
        assert definition is not None, "only tasks that are known are claimed"
        return Execution(self._thread, job, definition)

    def _run(self, execution: Execution) -> None:
        self._running.append(execution)
        try:
            if execution.is_async:
                self._run_in_loop(execution)
            else:
                execution.run()
        finally:
            self._running.remove(execution)

    async def _arun(self, execution: Execution) -> None:
        # Who awaits it may be cancelled; the job goes on.
        await asyncio.shield(asyncio.get_running_loop().create_task(self._tracked(execution)))

    async def _tracked(self, execution: Execution) -> None:
        self._running.append(execution)
        try:
            await execution.arun()
        finally:
            self._running.remove(execution)

    def _run_in_loop(self, execution: Execution) -> None:
        if not _in_loop():
            self._loop = self._loop or asyncio.Runner(loop_factory=asyncio.new_event_loop)
            self._loop.run(execution.arun())
            return
        # This thread cannot run a second loop inside of the one that it runs.
        with ThreadPoolExecutor(1) as other:
            other.submit(contextvars.copy_context().run, asyncio.run, execution.arun()).result()

    # --- looking ----------------------------------------------------------------------------------------------------

    def jobs(self, *, state: State | str | Sequence[State | str] = (), task: AnyTask | None = None) -> list[JobView]:
        """The jobs in the order in which they were enqueued, with payload and result, of some states or one task."""
        states = [State(state)] if isinstance(state, str) else [State(one) for one in state]
        job_type = UNSET if task is None else _name(task)
        found: list[JobView] = []
        cursor: str | UnsetType = UNSET
        while True:
            page = self._ask(
                calls.query_jobs(state=states, job_type=job_type, sort="oldest", limit=_PAGE, cursor=cursor)
            )
            found += [self.job(job.job_id) for job in page.items]
            if page.next_cursor is None:
                return found
            cursor = page.next_cursor

    def job(self, job_id: str) -> JobView:
        """All that is known about a job, with its payload, its attempts and its result."""
        return self._ask(calls.get_job(job_id, include=["payload", "attempts", "result"]))

    def enqueued(self, task: AnyTask, /, **arguments: Any) -> list[JobView]:
        """The jobs of a task that were enqueued with these arguments, and any others."""
        return [job for job in self.jobs(task=task) if self._fits(job, arguments)]

    def assert_enqueued(self, task: AnyTask, /, *, count: int | None = None, **arguments: Any) -> list[JobView]:
        """There must be a job of this task with these arguments, or exactly `count` of them; returns them.

        Whether they have run or not. Raises AssertionError, which names what was enqueued.
        """
        __tracebackhide__ = True
        found = self.enqueued(task, **arguments)
        if len(found) == count or (count is None and found):
            return found
        wanted = _shown(_name(task), arguments)
        expected = "expected one or more" if count is None else f"expected {count}"
        jobs = self.jobs()
        shown = "".join(f"\n  {_shown(job.job_type, self._arguments(job))}  {job.state}" for job in jobs)
        raise AssertionError(
            f"{len(found)} jobs {wanted} were enqueued, {expected}; "
            + (f"enqueued were:{shown}" if jobs else "nothing was enqueued at all")
        )

    def _fits(self, job: JobView, arguments: dict[str, Any]) -> bool:
        had = self._arguments(job)
        return all(name in had and had[name] == value for name, value in arguments.items())

    def _arguments(self, job: JobView) -> dict[str, Any]:
        """By the names of the parameters, with defaults; the payload of what is no task that is known here."""
        definition = self._thread.engine.workers.definition(job.job_type)
        if definition is None or job.execution_mode is ExecutionMode.SUBPROCESS:
            return dict(job.payload)
        try:
            return _bound(definition, job.payload)
        except BadPayload:
            return dict(job.payload)

    def _views(self, job_ids: Sequence[str], *, check: bool) -> list[JobView]:
        views = [self.job(job_id) for job_id in job_ids]
        for view in views:
            if check and view.state is State.FAILED and (failure := failure_of(view)) is not None:
                raise failure
        return views

    # --- the apps ask here, instead of a daemon ---------------------------------------------------------------------

    def send(self, call: Call[R], registry: Registry) -> R:
        self._know(registry)
        waits, patience_ms = self._waits(call), 0
        while waits and not _any_ended(self._ask(_look(waits, patience_ms))):
            if (execution := self._next()) is not None:
                self._run(execution)
            else:
                patience_ms = self._require_hope(waits)
        return self._ask(call)

    async def asend(self, call: Call[R], registry: Registry) -> R:
        self._know(registry)
        waits, patience_ms = self._waits(call), 0
        while waits and not _any_ended(await self._aask(_look(waits, patience_ms))):
            if (execution := await self._anext()) is not None:
                await self._arun(execution)
            else:
                patience_ms = self._require_hope(waits)
        return await self._aask(call)

    def _know(self, registry: Registry) -> None:
        self._thread.tell(self._thread.engine.workers.know, registry)

    def _ask(self, call: Call[R]) -> R:
        return call.result(self._thread.call(self._thread.engine.answer(request(call.method, call.body))))

    async def _aask(self, call: Call[R]) -> R:
        return call.result(await self._thread.acall(self._thread.engine.answer(request(call.method, call.body))))

    @staticmethod
    def _waits(call: Call[Any]) -> list[str]:
        """The jobs that the call would wait for."""
        match call.params:
            case WaitParams(job_ids=job_ids) if call.wait_ms:
                return job_ids
            case TailParams(job_id=job_id) if call.wait_ms:
                return [job_id]
        return []

    def _require_hope(self, job_ids: list[str]) -> int:
        """How long to wait, in ms, for what runs in another thread. Raises JobNotEnded if nothing does."""
        looked = self._ask(_look(job_ids, 0))
        if not _any_ended(looked) and all(execution.is_blocked for execution in self._running):
            raise JobNotEnded(looked.jobs[0], self._now_ms)
        return _PATIENCE_MS


def _look(job_ids: list[str], patience_ms: int) -> Call[Waited]:
    return calls.wait(job_ids, mode="any", timeout_ms=patience_ms)


def _any_ended(looked: Waited) -> bool:
    return any(job.state in FINAL for job in looked.jobs)


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _require_less(limit: int, ran: Sequence[str]) -> None:
    if len(ran) >= limit:
        raise AssertionError(f"{limit} jobs have run, and there are more: does a task enqueue itself forever?")


def _name(task: AnyTask) -> str:
    return task if isinstance(task, str) else task.name


def _bound(definition: TaskDefinition, payload: Any) -> dict[str, Any]:
    args, kwargs = definition.signature.decode_arguments(msgspec.json.encode(payload))
    bound = inspect.signature(definition.function).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _shown(name: str, arguments: dict[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
