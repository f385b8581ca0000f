"""Async tasks: side by side on one event loop, in the main thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from semtask.worker.exceptions import clean, type_name
from semtask.worker.job_loop import JobLoop, name_all
from semtask.worker.kit import Kit
from semtask.worker.results import RefusedPayload
from semtask.worker.threads import hand_on_contexts

_POOL_OF_LOOP = "asyncio_"  # its threads stay, as those of a pool do
_LEFT_MAY_LAST_S = 2.0  # what a job has left is ended by force then
_PART_OF_GRACE = 0.8  # after that part of it: with the whole of it the daemon ends the worker
_GLANCE_S = 1.0  # so often the process is looked at while jobs run


@dataclass(eq=False)
class _Running:
    job: JobContext
    definition: TaskDefinition
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
        self._glanced = 0.0  # in time of the loop
        self._changed: str | None = None
        self._threads = hand_on_contexts()
        self._loop = asyncio.new_event_loop()
        # As asyncio makes it; the threads of that of uvloop could not be told from those of jobs.
        self._loop.set_default_executor(ThreadPoolExecutor(thread_name_prefix=_POOL_OF_LOOP.rstrip("_")))
        self._jobs = JobLoop(self._loop, kit.mark, self._threads, kit.warn)
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
                self._loop.run_forever()  # again if a job stops it
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
                case Stop(job_id=job_id, claim_no=claim_no, reason=reason, grace_ms=grace_ms):
                    self._stop((job_id, claim_no), reason, grace_ms)

    # --- one job ----------------------------------------------------------------------------------------------------

    def _begin(self, label: bytes, call: Call) -> None:
        kit = self._kit
        job = JobContext(call, self, kit.setup.artifacts_dir, artifact_limits=kit.artifact_limits)
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
        running = self._running[job] = _Running(job, definition, time.perf_counter_ns())
        self._jobs.begin(job, label)
        own = context.context_of(job)
        coroutine = Marked(_perform(definition, call.payload), kit.mark, label, own)
        task = running.task = self._loop.create_task(coroutine, context=own)
        # Not in the context of the job: what follows its end is no code of it.
        task.add_done_callback(functools.partial(self._ended, running), context=self._outside)

    def _ended(self, running: _Running, task: asyncio.Task[Any]) -> None:
        """The code of a job has ended; the job has when nothing of it is left on the loop."""
        kit, job = self._kit, running.job
        ran_ns = time.perf_counter_ns() - running.started_ns
        try:
            ended = kit.results.of_value(job, running.definition, task.result())
        except BaseException as error:  # noqa: BLE001 - whatever a task raises is its end, not ours
            ended = kit.results.of_error(job, error)
        kit.hygiene.untrace()
        if self._jobs.has_left(job):
            self._loop.create_task(self._clear(running, ended, ran_ns), context=self._outside.copy())
        else:
            self._report(running, ended, ran_ns)

    async def _clear(self, running: _Running, ended: Ended, ran_ns: int) -> None:
        """End what the job has left. What cannot be ended costs the worker its place."""
        job = running.job
        try:
            self._jobs.limit(job, self._loop.time() + _LEFT_MAY_LAST_S)
            survivors = await self._jobs.end(job)
        except Exception as error:  # noqa: BLE001 - methods of what the job has left take part in this
            survivors = [f"something that raised {type_name(error)} when it was ended"]
        if survivors:
            change = f"a job left what could not be ended: {clean(name_all(survivors))}"
            self._kit.warn(job, f"{change}: its process is replaced")
            ended.recycle = ended.recycle or change
        self._report(running, ended, ran_ns)

    def _report(self, running: _Running, ended: Ended, ran_ns: int) -> None:
        kit, job = self._kit, running.job
        del self._running[job]
        job.end()
        self._jobs.forget(job)
        ended.ran_us = ran_ns // 1000
        self._inspect(job, ended, ran_ns)
        ended.log_bytes = kit.capture.close(job, alone=False)
        kit.channel.send(ended)

    def _inspect(self, job: JobContext, ended: Ended, ran_ns: int) -> None:
        """Whether the worker must be replaced: soon, if other jobs run in it, or now."""
        self._kit.hygiene.count()
        self._recycle = self._recycle or ended.recycle
        ended.recycle = None
        if self._running:
            self._glance(job)
            ended.retire = self._recycle
        else:
            self._look(job, ended, ran_ns)
            self._rests = ended.leftovers or ended.recycle is not None

    def _glance(self, job: JobContext) -> None:
        """What is changed for some time is not put back by the job that has changed it."""
        now = self._loop.time()
        if now - self._glanced < _GLANCE_S:
            return
        self._glanced = now
        before, self._changed = self._changed, self._kit.hygiene.glance()
        if self._changed is not None and self._changed == before:
            self._replace_for(job, self._changed)

    def _look(self, job: JobContext, ended: Ended, ran_ns: int) -> None:
        """No other job needs the process as it is."""
        hygiene = self._kit.hygiene
        self._kit.capture.restore_streams()
        spare = [thread for thread in threading.enumerate() if thread.name.startswith(_POOL_OF_LOOP)]
        ended.leftovers = hygiene.leftovers()
        self._changed = hygiene.change(ran_ns, spare)
        if self._changed is not None:
            self._replace_for(job, self._changed)
        ended.recycle = self._recycle or hygiene.wear(ran_ns)

    def _replace_for(self, job: JobContext, change: str) -> None:
        if self._recycle is None:
            self._recycle = change
            self._kit.warn(job, f"{change}, this one or one beside it: their process is replaced")

    def _stop(self, key: tuple[str, int], reason: str, grace_ms: int) -> None:
        for job, running in self._running.items():
            if (job.job_id, job.claim_no) == key:
                self._jobs.limit(job, self._loop.time() + _PART_OF_GRACE * grace_ms / 1000)
                first = job.stop_reason is None
                job.stop_reason = reason
                if first and running.task is not None and not running.task.done():
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
