"""One job, run here and now: what a worker does with it, without the worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from semtask.model.job import Job
from semtask.model.state import StopReason
from semtask.protocol.frames import PROTOCOL, ProgressInfo, Setup
from semtask.tasks import context
from semtask.tasks.codec import BadPayload
from semtask.tasks.context import JobContext
from semtask.tasks.control import Interrupted
from semtask.tasks.registry import TaskDefinition
from semtask.testing.engine_thread import EngineThread
from semtask.worker.results import RefusedPayload, Results
from semtask.workers.calls import call_of

# What ends the job. Anything else, such as Ctrl-C or pytest.fail(), is meant for the test.
_OF_THE_JOB = (Exception, SystemExit, Interrupted, asyncio.CancelledError)


class Execution:
    """A claimed job, whose end is stored by `run` or `arun`."""

    def __init__(self, thread: EngineThread, job: Job, definition: TaskDefinition) -> None:
        self._thread = thread
        self._job = job
        self._definition = definition
        self._results = Results(_setup(thread.engine.artifacts_dir))
        self._context = JobContext(call_of(job), self, thread.engine.artifacts_dir)
        self._on_stop: Callable[[], object] = lambda: None
        self.is_blocked = False  # it waits for another job

    @property
    def job_id(self) -> str:
        return self._job.job_id

    @property
    def is_async(self) -> bool:
        return self._definition.is_async

    def run(self) -> None:
        """Call a sync task in this thread."""
        self._listen()
        began = time.perf_counter()
        value: Any = None
        error: BaseException | None = None
        try:
            value = context.context_of(self._context).run(self._call)
        except BaseException as raised:  # noqa: BLE001 - as a worker does
            error = raised
        self._thread.call(self._end(value, error, began))
        _raise_for_test(error)

    async def arun(self) -> None:
        """Await an async task on this loop; a sync one is called as by `run`."""
        if not self.is_async:
            self.run()
            return
        self._listen()
        loop = asyncio.get_running_loop()
        began = time.perf_counter()
        task = loop.create_task(self._acall(), context=context.context_of(self._context))
        self._on_stop = lambda: loop.call_soon_threadsafe(task.cancel)
        await asyncio.wait([task])
        error: BaseException | None = asyncio.CancelledError() if task.cancelled() else task.exception()
        value: Any = None if error else task.result()
        if isinstance(value, _Exited):
            value, error = None, value.error
        await self._thread.acall(self._end(value, error, began))
        _raise_for_test(error)

    # --- the channel of the context -----------------------------------------------------------------------------------

    def progress(self, job: JobContext, progress: ProgressInfo) -> None:
        self._thread.tell(self._thread.engine.progress, job, progress)

    def blocked(self, job: JobContext, on: Sequence[str]) -> None:
        self.is_blocked = bool(on)
        self._thread.tell(self._thread.engine.blocked, job, on)

    def look_for_stop(self, job: JobContext) -> None:
        """Nothing to do: the engine sets it."""

    # --- pieces -------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        self._thread.tell(self._thread.engine.workers.listen, self._job, self._stop)

    def _stop(self, reason: StopReason) -> None:
        self._context.stop_reason = reason
        self._on_stop()

    def _call(self) -> Any:
        args, kwargs = self._arguments()
        return self._definition.function(*args, **kwargs)

    async def _acall(self) -> Any:
        args, kwargs = self._arguments()
        try:
            return await self._definition.function(*args, **kwargs)
        except SystemExit as error:  # raised, it would end the loop of the test
            return _Exited(error)

    def _arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            return self._definition.signature.decode_arguments(self._job.payload)
        except BadPayload as error:
            raise RefusedPayload from error

    def _end(self, value: Any, error: BaseException | None, began: float) -> Coroutine[Any, Any, None]:
        told_to_stop = self._context.stop_reason is not None
        if error is None:
            ended = self._results.of_value(self._context, self._definition, value)
        else:
            ended = self._results.of_error(self._context, _without_our_frames(error))
        self._context.end()
        ended.ran_us = round((time.perf_counter() - began) * 1e6)
        return self._thread.engine.end(self._job, ended, told_to_stop=told_to_stop)


@dataclass
class _Exited:
    error: SystemExit


def _raise_for_test(error: BaseException | None) -> None:
    if error is not None and not isinstance(error, _OF_THE_JOB):
        raise error


def _without_our_frames(error: BaseException) -> BaseException:
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return error.with_traceback(trace)


def _setup(artifacts_dir: str) -> Setup:
    return Setup(
        protocol=PROTOCOL,
        app="in:test",
        worker="inline",
        shim_pid=0,
        logs_dir="",
        artifacts_dir=artifacts_dir,
        mark_path="",
        log_path="",
        inline_result_bytes=256 * 1024,
        max_result_bytes=64 * 1024 * 1024,
        max_artifact_bytes=1 << 30,
        max_job_artifact_bytes=4 << 30,
        max_job_artifacts=1000,
        max_jobs=0,
        max_memory_bytes=0,
    )
