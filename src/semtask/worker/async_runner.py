"""Async tasks: side by side on one event loop, in the main thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import signal
import threading
import time
import traceback
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from semtask.protocol.frames import Blocked, Call, Ended, Progress, ProgressInfo, Run, Stop, ToWorker
from semtask.tasks import context
from semtask.tasks.codec import BadPayload
from semtask.tasks.context import JobContext
from semtask.tasks.registry import TaskDefinition
from semtask.worker import mark
from semtask.worker.channel import DaemonGone
from semtask.worker.coroutines import Marked, frames_of
from semtask.worker.exceptions import clean
from semtask.worker.kit import Kit
from semtask.worker.results import RefusedPayload
from semtask.worker.threads import hand_on_contexts

_POOL_OF_LOOP = "asyncio_"  # its threads stay, as those of a pool do


@dataclass(eq=False)
class _Running:
    job: JobContext
    definition: TaskDefinition
    label: bytes
    started_ns: int
    task: asyncio.Task[Any] | None = None


class AsyncRunner:
    """Runs what the daemon sends until the socket ends. It is the channel of the contexts of its jobs."""

    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self._running: dict[JobContext, _Running] = {}
        self._received = 0
        self._recycle: str | None = None
        self._rests = False
        self._pool_work = hand_on_contexts()
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(self._make_task)  # type: ignore[arg-type]
        self._outside = contextvars.copy_context()
        asyncio.set_event_loop(self._loop)
        # A Stop is seen by the loop; the daemon's signal would be for a sync job.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    def run(self, messages: Iterable[ToWorker]) -> None:
        """Raises DaemonGone at the end of the socket. Jobs that run then go no step further."""
        over = self._loop.create_future()
        over.add_done_callback(lambda _: self._loop.stop())
        self._loop.add_reader(self._kit.channel.fileno(), self._read, over)
        self._loop.call_soon(self._kit.hygiene.settle)  # the loop sets some of it when it runs
        self._loop.call_soon(self._take, messages)
        while not over.done():
            try:
                self._loop.run_forever()  # once more if a job stops it
            except (SystemExit, KeyboardInterrupt):  # of a job: the loop goes on where it was
                traceback.print_exc(file=self._kit.capture.stderr)
        raise DaemonGone

    def _read(self, over: asyncio.Future[None]) -> None:
        try:
            self._take(self._kit.channel.receive_now())
        except DaemonGone:
            self._loop.remove_reader(self._kit.channel.fileno())
            if not over.done():
                over.set_result(None)

    def _take(self, messages: Iterable[ToWorker]) -> None:
        for message in messages:
            match message:
                case Run(calls=calls):
                    for call in calls:
                        self._received += 1
                        if not self._rests:
                            self._begin(mark.label(self._received), call)
                case Stop(job_id=job_id, claim_no=claim_no, reason=reason):
                    self._stop((job_id, claim_no), reason)

    # --- one job ----------------------------------------------------------------------------------------------------

    def _begin(self, label: bytes, call: Call) -> None:
        kit = self._kit
        job = JobContext(call, self, kit.setup.artifacts_dir)
        definition = kit.registry.get(call.task)
        if definition is None:
            kit.channel.send(kit.results.unknown_task(job))
            return
        if not definition.is_async:
            kit.channel.send(kit.results.wrong_kind(job, "async"))
            return
        if definition.is_foreign(call.source):
            kit.channel.send(kit.results.foreign(job, call, str(definition.source)))
            return
        running = self._running[job] = _Running(job, definition, label, time.perf_counter_ns())
        coroutine = Marked(_perform(definition, call.payload), kit.mark, label)
        task = running.task = self._loop.create_task(coroutine, context=context.context_of(job))
        # Not in the context of the job: what follows its end is no code of it.
        task.add_done_callback(functools.partial(self._ended, running), context=self._outside)

    def _ended(self, running: _Running, task: asyncio.Task[Any]) -> None:
        kit, job = self._kit, running.job
        ran_ns = time.perf_counter_ns() - running.started_ns
        try:
            ended = kit.results.of_value(job, running.definition, task.result())
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its end, not ours
            ended = kit.results.of_error(job, error)
        del self._running[job]
        job.end()
        ended.log_bytes = kit.capture.close(job, alone=False)
        ended.ran_us = ran_ns // 1000
        self._inspect(ended, ran_ns)
        kit.channel.send(ended)

    def _inspect(self, ended: Ended, ran_ns: int) -> None:
        """What jobs have left is looked at when no other one is there to need it."""
        self._recycle = self._recycle or ended.recycle
        ended.recycle = None
        self._kit.hygiene.count()
        if self._running:
            return
        self._kit.capture.restore_streams()
        spare = [thread for thread in threading.enumerate() if thread.name.startswith(_POOL_OF_LOOP)]
        ended.leftovers = self._kit.hygiene.leftovers()
        if self._pool_work:
            self._recycle = self._recycle or "a job left work running in a thread"
        ended.recycle = self._recycle or self._kit.hygiene.change(ran_ns, spare) or self._kit.hygiene.wear(ran_ns)
        self._rests = ended.leftovers or ended.recycle is not None

    def _stop(self, key: tuple[str, int], reason: str) -> None:
        for job, running in self._running.items():
            if (job.job_id, job.claim_no) == key:
                first = job.stop_reason is None
                job.stop_reason = reason
                if first and running.task is not None:
                    self._note_where(running, running.task)
                    running.task.cancel()
                return

    def _note_where(self, running: _Running, task: asyncio.Task[Any]) -> None:
        """Where the code is that will be cancelled."""
        frames = frames_of(task.get_coro())[1:]  # without _perform
        stack = traceback.StackSummary.extract((frame, frame.f_lineno) for frame in frames)
        where = clean("".join(stack.format()))
        text = f"the job is being stopped ({running.job.stop_reason})"
        try:
            self._kit.capture.log_of(running.job).write(
                "WARNING", f"{text}; its code is here:\n{where}" if where else f"{text}; its code has just begun"
            )
        except OSError:  # a full disk
            print(text, where, file=self._kit.capture.stderr)

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        if not isinstance(coroutine, Marked) and asyncio.iscoroutine(coroutine):
            job = context.current_or_none()
            running = None if job is None else self._running.get(job)
            coroutine = Marked(coroutine, self._kit.mark, mark.NOBODY if running is None else running.label)
        return asyncio.Task(coroutine, loop=loop, **options)

    # --- the channel of contexts ------------------------------------------------------------------------------------

    def progress(self, job: JobContext, progress: ProgressInfo) -> None:
        self._kit.channel.send(Progress(job_id=job.job_id, claim_no=job.claim_no, progress=progress))

    def blocked(self, job: JobContext, on: Sequence[str]) -> None:
        if not self._kit.channel.is_closed:  # if a forked child waits, the job itself does not
            self._kit.channel.send(Blocked(job_id=job.job_id, claim_no=job.claim_no, on=list(on)))

    def look_for_stop(self, job: JobContext) -> None:
        """Nothing to do: the loop reads what comes."""


async def _perform(definition: TaskDefinition, payload: str) -> Any:
    try:
        args, kwargs = definition.signature.decode_arguments(payload)
    except BadPayload as error:
        raise RefusedPayload from error
    return await definition.function(*args, **kwargs)
